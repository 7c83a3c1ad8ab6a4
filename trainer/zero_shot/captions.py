"""Tasks of images and captions.

In both directions: Flickr30K, Urban1K and ShareGPT4V. One of two captions: SugarCrepe and CC-Neg.
"""

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


Choices = Callable[[], Iterator[tuple[str, Picture, str, str]]]
"""(id, image, its caption, a caption that does not describe it) in the order of the file."""


def one_of_two(name: str, column: str, choices: Choices) -> Task:
    """The caption that describes the image is to score more than the other."""

    def queries() -> Iterator[Query]:
        for identifier, picture, _, _ in choices():
            right, wrong = f"{identifier}/caption", f"{identifier}/negative"
            yield Query(identifier, (picture,), (right,), gallery=(right, wrong))

    def candidates() -> Iterator[Candidate]:
        for identifier, _, caption, negative in choices():
            yield Candidate(f"{identifier}/caption", (caption,))
            yield Candidate(f"{identifier}/negative", (negative,))

    return Task(name, column, Measure.PAIRWISE, (1,), queries, candidates)
