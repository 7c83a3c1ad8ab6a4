"""Queries whose targets show or say the same: MSCOCO, VisualNews, Fashion200K, NIGHTS."""

from __future__ import annotations

import random

from pocket.curriculum.solved_query import (
    SolvedQuery,
    claim_words,
    garment_words,
    other_claim,
    other_garment,
    other_scene,
    thing_count,
)
from pocket.world.draw import draw_garment, draw_news, draw_scene
from pocket.world.encyclopedia import encyclopedia
from pocket.world.garment import sample_garment
from pocket.world.language import (
    aside,
    caption,
    garment_caption,
    garment_riddle,
    news_caption,
    news_riddle,
    riddle,
)
from pocket.world.lexicon import COLOURS, other
from pocket.world.reasoning_kinds import ReasoningKind
from pocket.world.scene import sample_scene


def scene_from_text(rng: random.Random) -> SolvedQuery:
    scene = sample_scene(rng, least=2)
    said = (riddle(scene, rng) if rng.random() < 0.4 else None) or caption(scene, rng)
    words = claim_words(said.claim)
    return SolvedQuery(
        "mscoco_task0",
        aside(said.text, rng),
        None,
        said.why,
        (words, thing_count(len(said.claim.things), said.claim.setting)),
        words,
        (other_claim(said.claim, rng),),
        draw_scene(scene, rng),
    )


def scene_from_picture(rng: random.Random) -> SolvedQuery:
    scene = sample_scene(rng, least=2)
    alike = rng.random() < 0.4
    said = caption(scene, rng)
    return SolvedQuery(
        "nights_task4" if alike else "mscoco_task3",
        "",
        draw_scene(scene, rng),
        ReasoningKind.NONE,
        (scene.canonical, thing_count(len(scene.things), scene.setting)),
        scene.canonical,
        (other_scene(scene, rng, than=None if alike else said.claim).canonical,),
        draw_scene(scene, rng, jitter=3) if alike else None,
        "" if alike else said.text,
    )


def news_from_text(rng: random.Random) -> SolvedQuery:
    world = encyclopedia()
    town, scene = rng.choice(list(world.towns.values())), sample_scene(rng, most=3)
    if rng.random() < 0.35:
        born = next(person.name for person in world.persons.values() if person.birthplace == town.name)
        said = news_riddle(scene, town, rng, born)
    else:
        said = news_caption(scene, town, rng)
    words = f"{town.name}: {claim_words(said.claim)}"
    elsewhere = other(list(world.towns), town.name, rng=rng)
    return SolvedQuery(
        "visualnews_task0",
        said.text,
        None,
        said.why,
        (words, f"{town.name}, {thing_count(len(said.claim.things), said.claim.setting)}"),
        words,
        (f"{elsewhere}: {claim_words(said.claim)}", f"{town.name}: {other_claim(said.claim, rng)}"),
        draw_news(scene, town.banner, rng),
    )


def news_from_picture(rng: random.Random) -> SolvedQuery:
    world = encyclopedia()
    town, scene = rng.choice(list(world.towns.values())), sample_scene(rng, most=3)
    words = f"{town.name}: {scene.canonical}"
    said = news_caption(scene, town, rng)
    return SolvedQuery(
        "visualnews_task3",
        "",
        draw_news(scene, town.banner, rng),
        ReasoningKind.NONE,
        (words, f"{town.name}, {thing_count(len(scene.things), scene.setting)}"),
        words,
        (
            f"{other(list(world.towns), town.name, rng=rng)}: {scene.canonical}",
            f"{town.name}: {other_scene(scene, rng, than=said.claim).canonical}",
        ),
        None,
        said.text,
    )


def garment_from_text(rng: random.Random) -> SolvedQuery:
    garment = sample_garment(rng)
    said = garment_riddle(garment, rng) if rng.random() < 0.4 else garment_caption(garment, rng)
    words = garment_words(said.claim)
    wrong = words.replace(garment.colour, other(list(COLOURS), garment.colour, garment.trim or "", rng=rng), 1)
    return SolvedQuery(
        "fashion200k_task0", said.text, None, said.why, (words, garment.kind), words, (wrong,), draw_garment(garment, rng)
    )


def garment_from_picture(rng: random.Random) -> SolvedQuery:
    garment = sample_garment(rng)
    said = garment_caption(garment, rng)
    return SolvedQuery(
        "fashion200k_task3",
        "",
        draw_garment(garment, rng),
        ReasoningKind.NONE,
        (garment.canonical, garment.kind),
        garment.canonical,
        (other_garment(garment, rng, than=said.claim),),
        None,
        said.text,
    )
