"""Images and captions that belong together, as one task in each direction: what Flickr30K, Urban1K and ShareGPT4V share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from trainer.zero_shot.tasks import Candidate, Measure, Picture, Query, Task

DESCRIBE: Final = "Find an image caption describing the following everyday image."
"""Asked with an image; a caption that is a query stands alone."""

Pairs = Callable[[], Iterator[tuple[str, Picture, tuple[str, ...]]]]
"""(id, image, its captions) in the order of the files."""


def both_directions(dataset: str, title: str, pairs: Pairs) -> tuple[Task, Task]:
    """Text to image, then image to text, where any of the image's captions is right."""

    def images() -> Iterator[Candidate]:
        for identifier, picture, _ in pairs():
            yield Candidate(identifier, (picture,))

    def texts() -> Iterator[Candidate]:
        for identifier, _, captions in pairs():
            for at, caption in enumerate(captions):
                yield Candidate(f"{identifier}/{at}", (caption,))

    def by_text() -> Iterator[Query]:
        for identifier, _, captions in pairs():
            for at, caption in enumerate(captions):
                yield Query(f"{identifier}/{at}", (caption,), (identifier,))

    def by_image() -> Iterator[Query]:
        for identifier, picture, captions in pairs():
            right = tuple(f"{identifier}/{at}" for at in range(len(captions)))
            yield Query(identifier, (picture,), right, instruction=DESCRIBE)

    return (
        Task(f"{dataset}/t2i", f"{title} t2i", Measure.HITS, (1, 5, 10), by_text, images),
        Task(f"{dataset}/i2t", f"{title} i2t", Measure.HITS, (1, 5, 10), by_image, texts),
    )
