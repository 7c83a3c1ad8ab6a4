"""One training example for a tiny model: a user turn of text and images, and the reply to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True, slots=True)
class Lesson:
    """Args:
    skill: what it teaches, e.g. ``reason/composed``; accuracies are reported per skill.
    parts: the user turn in order: strings, and images as RGB.
    reply: what the model learns to write, without the end-of-turn token.
    """

    skill: str
    parts: tuple[str | Image.Image, ...]
    reply: str

    @property
    def images(self) -> list[Image.Image]:
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The user turn as chat templates take it."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in self.parts]
        return [{"role": "user", "content": content}]
