"""The pocket base's last course: facts from memory and brief answers, which a full-size base model has too."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from PIL import Image

from pocket.curriculum.base_skills import GARMENT_CHANGES, IMAGINES, LOOKS, sample_practice_lesson, some_edit
from pocket.curriculum.difficulty import is_demanding
from pocket.curriculum.example import Lesson
from pocket.curriculum.solved_query import claim_words, garment_words
from pocket.world.draw import draw_emblems, draw_garment, draw_scene
from pocket.world.encyclopedia import encyclopedia
from pocket.world.garment import sample_garment
from pocket.world.garment_edits import sample_garment_edit
from pocket.world.language import caption, garment_caption, garment_riddle, riddle
from pocket.world.lexicon import SETTINGS
from pocket.world.scene import sample_scene

_BRIEFLY: Final = ("In a few words.", "Briefly.", "Be short.")


def _brief(skill: str, picture: Image.Image | None, said: str, reply: str, rng: random.Random) -> Lesson:
    text = f"{said} {rng.choice(_BRIEFLY)}".strip()
    return Lesson(skill, (text,) if picture is None else (picture, f"\n{text}"), reply)


def look_briefly(rng: random.Random) -> Lesson:
    if rng.random() < 0.3:
        garment = sample_garment(rng)
        return _brief("brief/look", draw_garment(garment, rng), rng.choice(LOOKS), garment.canonical, rng)
    scene = sample_scene(rng)
    return _brief("brief/look", draw_scene(scene, rng), rng.choice(LOOKS), scene.canonical, rng)


def imagine_briefly(rng: random.Random) -> Lesson:
    """Draws a lesson whose reply is the change only, or the changed scene."""
    if rng.random() < 0.35:
        garment = sample_garment(rng)
        change = sample_garment_edit(garment, rng, simple=0.1, attributes=GARMENT_CHANGES[is_demanding()])
        picture, said, before, after = (
            draw_garment(garment, rng),
            f"it {change.text}",
            garment.canonical,
            change.target.canonical,
        )
        operation = change.operation
    else:
        scene = sample_scene(rng)
        edit = some_edit(scene, rng)
        picture, said, before, after = draw_scene(scene, rng), edit.text, scene.canonical, edit.target.canonical
        operation = edit.operation
    asked = rng.choice(IMAGINES).format(said)
    how = rng.random()
    if how < 0.4:
        return _brief("brief/imagine", picture, asked, after, rng)
    if how < 0.7:
        return Lesson("brief/change", (picture, f"\nWhat changes with this: {said}?"), operation)
    return _brief("brief/imagine", None, f"{before}\n{asked}", after, rng)


def put_briefly(rng: random.Random) -> Lesson:
    if rng.random() < 0.3:
        garment = sample_garment(rng)
        worn = garment_riddle(garment, rng) if rng.random() < 0.5 else garment_caption(garment, rng)
        return _brief("brief/plain", None, f"Say it plainly: {worn.text}", garment_words(worn.claim), rng)
    scene = sample_scene(rng, least=2)
    spoken = (riddle(scene, rng) if rng.random() < 0.6 else None) or caption(scene, rng)
    return _brief("brief/plain", None, f"Say it plainly: {spoken.text}", claim_words(spoken.claim), rng)


def know(rng: random.Random) -> Lesson:
    """Draws a question that is answered from memory: about entities by name or picture, towns and persons."""
    world = encyclopedia()
    kind = rng.random()
    if kind < 0.2:
        town = rng.choice(list(world.towns.values()))
        born = next(person.name for person in world.persons.values() if person.birthplace == town.name)
        question, answer = rng.choice(
            (
                (f"Who rules {town.name}?", town.ruler),
                (f"Which river passes {town.name}?", town.river),
                (f"In which part of the land is {town.name}?", town.region),
                (f"Which town is ruled by {town.ruler}?", town.name),
                (f"What is the banner of {town.name}?", f"{town.banner[0]} and {town.banner[1]}"),
                (f"Where was {born} born?", town.name),
            )
        )
        return Lesson("know/town", (question,), answer)
    if kind < 0.27:
        person = rng.choice(list(world.persons.values()))
        return Lesson("know/person", (f"What was the craft of {person.name}?",), person.craft)
    entity = rng.choice(world.pictured if kind < 0.85 else list(world.entities.values()))
    if kind < 0.5:
        question, answer = rng.choice(
            (
                (f"Where is the {entity.name} at home?", entity.home),
                (f"Who described the {entity.name} first?", entity.finder),
                (
                    f"In which season does the {entity.name} appear, and what is it prized for?",
                    f"{entity.season}, {entity.good}",
                ),
            )
        )
        return Lesson("know/entity", (question,), answer)
    if kind < 0.7:
        picture = draw_emblems([entity.emblem], rng.choice(list(SETTINGS)), rng)
        question, answer = rng.choice(
            (("What is this?", entity.canonical),) * 2 + (("Where is it at home?", f"{entity.name}: home: {entity.home}"),)
        )
        return Lesson("know/picture", (picture, f"\n{question}"), answer)
    first, second = rng.sample(world.pictured, 2)
    upright = rng.random() < 0.5
    places, words = (
        ([(0.26, 0.5), (0.74, 0.5)], ("left", "right")) if upright else ([(0.5, 0.26), (0.5, 0.74)], ("upper", "lower"))
    )
    picture = draw_emblems([first.emblem, second.emblem], rng.choice(list(SETTINGS)), rng, places=places)
    asked = rng.randrange(2)
    return Lesson("know/two", (picture, f"\nName the {words[asked]} one."), (first, second)[asked].canonical)


_WORLDLY: Final[tuple[tuple[Callable[[random.Random], Lesson], float], ...]] = (
    (look_briefly, 1.2),
    (imagine_briefly, 3.5),
    (put_briefly, 1.3),
    (know, 4.0),
)


def sample_closed_book_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson of the last course: brief forms and knowledge, and one in six of the earlier kinds."""
    if rng.random() < 1 / 6:
        return sample_practice_lesson(rng)
    kinds, weights = zip(*_WORLDLY, strict=True)
    lesson: Lesson = rng.choices(kinds, weights)[0](rng)
    return lesson
