"""One training example for a tiny model: a user turn of text and images, and the reply to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer within a prompt, judged word by word (`pocket/training/verification_loss.py` explains what for).

    answer: its text in the prompt. truth: the correct answer.
    words: for each word, its end in `answer` and whether it is correct.
    complete: whether nothing is missing after the last word.
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
    skill: the skill that it teaches, e.g. ``reason/composed``; accuracies are reported per skill.
    parts: strings and RGB images of the user turn, in order.
    reply: the text that the model learns to write, without the end-of-turn token.
    judged: the answer within the prompt that the reply judges, if any.
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
        """Returns the user turn in the form that chat templates take."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in self.parts]
        return [{"role": "user", "content": content}]
