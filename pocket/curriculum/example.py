"""One training example for a tiny model: a user turn of text and images, and the reply to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer within a prompt that the reply judges, word by word (`pocket/training/verification_loss.py` says what for).

    answer: as it stands in the prompt. truth: the right answer.
    words: for each word, where it ends in `answer` and whether it is right.
    complete: nothing is missing after the last word.
    """

    answer: str
    truth: str
    words: tuple[tuple[int, bool], ...]
    complete: bool

    @property
    def right(self) -> bool:
        return self.complete and all(right for _, right in self.words)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Args:
    skill: what it teaches, e.g. ``reason/composed``; accuracies are reported per skill.
    parts: the user turn in order: strings, and images as RGB.
    reply: what the model learns to write, without the end-of-turn token.
    judged: the answer within the prompt that the reply judges, if there is one.
    """

    skill: str
    parts: tuple[str | Image.Image, ...]
    reply: str
    judged: Judged | None = None

    @property
    def images(self) -> list[Image.Image]:
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The user turn as chat templates take it."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in self.parts]
        return [{"role": "user", "content": content}]
