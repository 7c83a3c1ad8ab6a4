"""The pocket base's lessons in general skills, in a wording and format that no trace uses.

It describes pictures in sentences, imagines changes to scenes that are shown or described, rephrases riddles plainly, and
answers questions from passages (`closed_book` adds brief answers and facts from memory). It never sees a trace, an assessment,
a verification, a retrieval prompt or a contrastive loss: TRACE adds these.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from PIL import Image

from pocket.curriculum.difficulty import is_demanding
from pocket.curriculum.example import Lesson
from pocket.world.draw import draw_banner, draw_emblems, draw_garment, draw_news, draw_scene
from pocket.world.edits import Edit, sample_edit, sample_edits
from pocket.world.encyclopedia import encyclopedia
from pocket.world.garment import Garment, GarmentClaim, sample_garment
from pocket.world.garment_edits import sample_garment_edit
from pocket.world.language import caption, garment_caption, garment_riddle, riddle
from pocket.world.lexicon import CELLS, SETTINGS, article, listing
from pocket.world.passages import one_hop, person_passage, summary, topic_passage, town_passage, two_hops
from pocket.world.scene import Claim, Scene, sample_scene

_SETTING_SENTENCES: Final = {
    "day": "It is day.",
    "dusk": "The sun is setting.",
    "night": "It is night.",
    "meadow": "The ground is a meadow.",
}
LOOKS: Final = ("What do you see?", "Tell me about this picture.", "What is shown?")
IMAGINES: Final = ("Imagine this change: {}. What would one see?", "Suppose: {}. What is shown then?")


def scene_sentence(scene: Scene) -> str:
    """``There is a large red circle at the top left and a small blue square at the bottom. It is night.``"""
    things = [f"{article(thing.noun)} at the {CELLS[thing.cell]}" for thing in scene.things]
    return f"There is {listing(things)}. {_SETTING_SENTENCES[scene.setting]}"


def claim_sentence(claim: Claim) -> str:
    things = []
    for partial in claim.things:
        words = " ".join(word for word in (partial.size, partial.colour, partial.shape) if word)
        things.append(article(words) + (f" at the {CELLS[partial.cell]}" if partial.cell is not None else ""))
    setting = f" {_SETTING_SENTENCES[claim.setting]}" if claim.setting else ""
    return f"There is {listing(things)}.{setting}"


def garment_sentence(garment: Garment) -> str:
    """``This is a red dress. It is long and striped. It has white trim.``"""
    are, trim = ("These are", "no") if garment.kind == "trousers" else ("This is", "no")
    named = f"{garment.colour} {garment.kind}"
    trim = garment.trim or "no"
    named = named if garment.kind == "trousers" else article(named)
    return f"{are} {named}, {garment.length} and {garment.pattern}, and has {trim} trim."


def _garment_claim_sentence(claim: GarmentClaim) -> str:
    words = " ".join(word for word in (claim.length, claim.pattern, claim.colour, claim.kind) if word)
    return f"A {words}{f' and {claim.trim} trim' if claim.trim else ''}."


def _about(skill: str, picture: Image.Image, question: str, reply: str) -> Lesson:
    return Lesson(skill, (picture, f"\n{question}"), reply)


def see_scene(rng: random.Random) -> Lesson:
    scene = sample_scene(rng)
    return _about("see/scene", draw_scene(scene, rng), rng.choice(LOOKS), scene_sentence(scene))


def see_garment(rng: random.Random) -> Lesson:
    garment = sample_garment(rng)
    return _about("see/garment", draw_garment(garment, rng), rng.choice(LOOKS), garment_sentence(garment))


def see_emblem(rng: random.Random) -> Lesson:
    emblem = rng.choice(list(encyclopedia().entities.values())).emblem
    picture = draw_emblems([emblem], rng.choice(list(SETTINGS)), rng)
    return _about("see/emblem", picture, rng.choice(LOOKS), f"There is {article(emblem.words)}.")


def see_two_emblems(rng: random.Random) -> Lesson:
    first, second = rng.sample([entity.emblem for entity in encyclopedia().entities.values()], 2)
    if rng.random() < 0.5:
        places, words = [(0.26, 0.5), (0.74, 0.5)], ("left", "right")
    else:
        places, words = [(0.5, 0.26), (0.5, 0.74)], ("upper", "lower")
    picture = draw_emblems([first, second], rng.choice(list(SETTINGS)), rng, places=places)
    asked = rng.randrange(2)
    return _about(
        "see/place", picture, f"What is the {words[asked]} one like?", f"It is {article((first, second)[asked].words)}."
    )


def see_news(rng: random.Random) -> Lesson:
    town, scene = rng.choice(list(encyclopedia().towns.values())), sample_scene(rng, most=3)
    reply = f"Below a banner of {town.banner[0]} and {town.banner[1]}: {scene_sentence(scene)}"
    return _about("see/news", draw_news(scene, town.banner, rng), rng.choice(LOOKS), reply)


def see_banner(rng: random.Random) -> Lesson:
    banner = rng.choice(list(encyclopedia().towns.values())).banner
    return _about("see/banner", draw_banner(banner, rng), rng.choice(LOOKS), f"A banner of {banner[0]} and {banner[1]}.")


GARMENT_CHANGES: Final = {False: (1, 1, 2), True: (1, 1, 2, 3)}
"""Choices for the number of changed attributes of a garment, by whether lessons are demanding."""


def some_edit(scene: Scene, rng: random.Random) -> Edit:
    """Draws one change, or sometimes two or three if lessons are demanding."""
    if is_demanding() and rng.random() < 0.3:
        return sample_edits(scene, rng, rng.choice((2, 2, 3)))
    return sample_edit(scene, rng, simple=0.1)


def imagine_seen(rng: random.Random) -> Lesson:
    scene = sample_scene(rng)
    edit = some_edit(scene, rng)
    return _about("imagine/seen", draw_scene(scene, rng), rng.choice(IMAGINES).format(edit.text), scene_sentence(edit.target))


def imagine_told(rng: random.Random) -> Lesson:
    scene = sample_scene(rng)
    edit = some_edit(scene, rng)
    prompt = f"{scene_sentence(scene)}\n{rng.choice(IMAGINES).format(edit.text)}"
    return Lesson("imagine/told", (prompt,), scene_sentence(edit.target))


def imagine_garment(rng: random.Random) -> Lesson:
    garment = sample_garment(rng)
    edit = sample_garment_edit(garment, rng, simple=0.1, attributes=GARMENT_CHANGES[is_demanding()])
    question, reply = rng.choice(IMAGINES).format(f"it {edit.text}"), garment_sentence(edit.target)
    if rng.random() < 0.5:
        return _about("imagine/garment", draw_garment(garment, rng), question, reply)
    return Lesson("imagine/garment", (f"{garment_sentence(garment)}\n{question}",), reply)


def put_plainly(rng: random.Random) -> Lesson:
    if rng.random() < 0.3:
        garment = sample_garment(rng)
        said = garment_riddle(garment, rng) if rng.random() < 0.5 else garment_caption(garment, rng)
        return Lesson("plain/garment", (f"Say it plainly: {said.text}",), _garment_claim_sentence(said.claim))
    scene = sample_scene(rng, least=2)
    spoken = (riddle(scene, rng) if rng.random() < 0.6 else None) or caption(scene, rng)
    return Lesson("plain/scene", (f"Say it plainly: {spoken.text}",), claim_sentence(spoken.claim))


def read(rng: random.Random) -> Lesson:
    """Draws a question that is answered from a passage, never from memory."""
    world = encyclopedia()
    entity = rng.choice(list(world.entities.values()))
    if rng.random() < 0.5:
        question = one_hop(entity, f"the {entity.name}", rng)
        texts = [topic_passage(entity, question.topic, rng).text]
    else:
        question = two_hops(entity, f"the {entity.name}", world, rng)
        if question.topic == "town":
            texts = [topic_passage(entity, "home", rng).text, town_passage(world.towns[question.subject], rng).text]
        else:
            texts = [topic_passage(entity, "finder", rng).text, person_passage(world.persons[question.subject], rng).text]
    if rng.random() < 0.5:
        texts.append(summary(rng.choice(list(world.entities.values())), rng).text)
    rng.shuffle(texts)
    return Lesson("read", (f"{' '.join(texts)}\n{question.text}",), f"{question.answer[0].upper()}{question.answer[1:]}.")


_KINDS: Final[tuple[tuple[Callable[[random.Random], Lesson], float], ...]] = (
    (see_scene, 2.0),
    (see_garment, 1.2),
    (see_emblem, 1.0),
    (see_two_emblems, 1.0),
    (see_news, 1.0),
    (see_banner, 0.2),
    (imagine_seen, 2.5),
    (imagine_told, 2.5),
    (imagine_garment, 1.5),
    (put_plainly, 1.2),
    (read, 1.5),
)


def sample_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson of the base's first course."""
    kinds, weights = zip(*_KINDS, strict=True)
    lesson: Lesson = rng.choices(kinds, weights)[0](rng)
    return lesson


_PRACTISED: Final[dict[Callable[[random.Random], Lesson], float]] = {
    imagine_seen: 4.0,
    imagine_told: 4.0,
    imagine_garment: 2.5,
    put_plainly: 1.6,
    read: 1.6,
}
"""Skills that the first course does not finish."""


def sample_practice_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson of the second course: the same kinds, with more of those that take longer to learn."""
    weights = [_PRACTISED.get(kind, 0.3 * weight) for kind, weight in _KINDS]
    lesson: Lesson = rng.choices([kind for kind, _ in _KINDS], weights)[0](rng)
    return lesson
