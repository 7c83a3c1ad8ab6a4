"""The shipped checkpoints load with plain transformers, have the skills on their cards, and give the same results in vLLM."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from pocket.evaluation.skills import measure
from pocket.training.train_models import MODELS, Role
from schemas.hosting import Endpoint
from schemas.teacher import Transport

ROLES: tuple[Role, ...] = ("teacher", "base")
LIMIT = 15 << 20


@pytest.mark.parametrize("role", ROLES)
def test_shipped_checkpoints_are_small_complete_and_labelled(role: Role) -> None:
    directory = MODELS / role
    names = {path.name for path in directory.iterdir()}
    assert {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert {"README.md", "training.jsonl", "stem.training.jsonl"} <= names
    assert sum(path.stat().st_size for path in directory.iterdir()) <= LIMIT
    card = (directory / "README.md").read_text()
    assert card.split("---")[2].strip().startswith("**SYNTHETIC")
    parameters = int(re.search(r"of ([\d,]+) parameters", card)[1].replace(",", ""))  # type: ignore[index]
    assert parameters <= 6_000_000


def test_both_share_one_tokenizer() -> None:
    assert (MODELS / "teacher/tokenizer.json").read_bytes() == (MODELS / "base/tokenizer.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_the_cards_figures_hold_on_other_lessons(role: Role) -> None:
    """Uses fewer lessons than the card, with another seed, and a tolerance for so few."""
    card = (MODELS / role / "README.md").read_text()
    found = measure(role, MODELS / role, 24, seed=77)
    checked = 0
    for skill, figures in found.items():
        row = re.search(rf"^\| {re.escape(skill)} \|(.*)\|$", card, re.MULTILINE)
        assert row is not None, skill
        cells = [float(cell) if cell.strip() else None for cell in row[1].split("|")]
        stated = dict(zip(("n", "exact", "answer", "auc", "accuracy"), cells, strict=False))
        for name in ("answer", "auc"):
            if name in figures and figures[name] == figures[name]:
                assert figures[name] == pytest.approx(stated[name], abs=0.25), (skill, name)
                checked += 1
    assert checked >= (8 if role == "teacher" else 4)


def assert_vllm_agrees_with_transformers(role: Role, endpoint: Endpoint, media: Path) -> None:
    """Compares the answers to a question about three images, which are written to `media`, where the server may read.

    Called in tests/pipeline/teacher/test_real_server.py, where servers of both models run.
    """
    import random

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from pipeline.teacher.client import TeacherClient
    from pipeline.teacher.request_body import TeacherRequest
    from pipeline.traces.judgements import VERIFY, choice_fields
    from pocket.curriculum.example import Lesson
    from pocket.training.train_loop import collate
    from pocket.world.draw import draw_scene
    from pocket.world.scene import sample_scene

    rng = random.Random("parity")
    pictures = [draw_scene(sample_scene(rng), rng) for _ in range(3)]
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(media / f"{number}.png")
        picture.save(paths[-1])
    text = "Verify: yes or no?\n"

    async def served() -> list[dict[str, float]]:
        async with TeacherClient(Transport().client((endpoint,))) as client:
            requests = [
                TeacherRequest(
                    str(path),
                    [
                        {
                            "role": "user",
                            "content": [
                                {"type": "text", "text": text},
                                {"type": "image_url", "image_url": {"url": path.as_uri()}},
                            ],
                        }
                    ],
                    choice_fields(VERIFY),
                )
                for path in paths
            ]
            return [(await client.ask(request)).first_token_logprobs for request in requests]

    found = asyncio.run(served())
    processor = AutoProcessor.from_pretrained(MODELS / role)
    model = AutoModelForImageTextToText.from_pretrained(MODELS / role, dtype=torch.float32).eval()
    first = {label: processor.tokenizer.encode(label, add_special_tokens=False)[0] for label in ("yes", "no")}
    for picture, logprobs in zip(pictures, found, strict=True):
        inputs = collate([Lesson("parity", (text, picture), "")], processor, with_reply=False)
        with torch.inference_mode():
            logits = model(**inputs).logits[0, -1]
        expected = float(logits[first["yes"]] - logits[first["no"]])
        names = {processor.tokenizer.decode([token]): label for label, token in first.items()}
        given = {names[token]: value for token, value in logprobs.items() if token in names}
        assert given["yes"] - given["no"] == pytest.approx(expected, abs=5e-3)
