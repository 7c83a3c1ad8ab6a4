"""One training example for a tiny model: a user turn of text and images, and the reply to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True, slots=True)
class Doubted:
    """An answer in a prompt that is to be judged: the first `right_until` characters of it are right.

    Training judges it after each token. One yes or no for a whole answer is too little to learn from: it does not say which
    word is wrong.
    """

    answer: str
    right_until: int

    @property
    def right(self) -> bool:
        return self.right_until >= len(self.answer)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Args:
    skill: what it teaches, e.g. ``reason/composed``; accuracies are reported per skill.
    parts: the user turn in order: strings, and images as RGB.
    reply: what the model learns to write, without the end-of-turn token.
    doubted: the answer within the prompt that the reply judges, if there is one.
    """

    skill: str
    parts: tuple[str | Image.Image, ...]
    reply: str
    doubted: Doubted | None = None

    @property
    def images(self) -> list[Image.Image]:
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The user turn as chat templates take it."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in self.parts]
        return [{"role": "user", "content": content}]
