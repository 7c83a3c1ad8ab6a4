"""The files of a dataset repository: those of the directory, with card and manifest for what is really published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from data_cards import render_dataset_card
from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.hub.push import PushError, Upload

FINAL: Final = ("README.md", "manifest.json")
_FOLDERS: Final = ("data/", "rejected/", "with_images/", "assets/")


def uploads(dataset: BuiltDataset, repo: str, *, with_images: bool, accepted: Sequence[str] = ()) -> list[Upload]:
    """The card names the repository; without `with_images`, card and manifest leave that config out.

    accepted: rows of which a finding of the check was accepted; card and manifest say so.
    """
    if with_images and "with_images" not in dataset.parts():
        raise PushError(
            f"{dataset.directory} has no images",
            "build with --set output.with_images=true (nothing is asked again), or push without",
        )
    files = tuple(file for file in dataset.manifest.files if with_images or not file.path.startswith("with_images/"))
    manifest = dataset.manifest.model_copy(update={"files": files, "accepted": tuple(accepted)})
    card = render_dataset_card(manifest, dataset.directory, repo)
    return [
        *(Upload(file.path, dataset.directory / file.path) for file in files),
        Upload("README.md", card.encode()),
        Upload("manifest.json", (manifest.model_dump_json(indent=1) + "\n").encode()),
    ]


def belongs(path: str) -> bool:
    """Whether a file of a repository may be an earlier dataset's, to be replaced or deleted."""
    return path in FINAL or path.startswith(_FOLDERS)
