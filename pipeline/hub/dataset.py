"""The files of a dataset repository: the directory's files, with card and manifest for what is pushed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from data_cards import render_dataset_card
from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.dataset.publication_guard import Contents, lost
from pipeline.hub.push import PushError, Target, Upload
from schemas.config import PublishConfig

FINAL: Final = ("README.md", "manifest.json")
_FOLDERS: Final = ("data/", "rejected/", "with_images/", "assets/")


def uploads(dataset: BuiltDataset, repo: str, *, with_images: bool, accepted: Sequence[str] = ()) -> list[Upload]:
    """The card names the repository; without `with_images`, card and manifest leave that config out.

    accepted: rows whose findings were accepted; card and manifest list them.
    """
    if with_images and "with_images" not in dataset.parts():
        raise PushError(
            f"{dataset.directory} has no images",
            "build with --set output.with_images=true (no request is sent again), or push without --with-images",
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


def refuse_worse(dataset: BuiltDataset, target: Target) -> None:
    """Raises PushError if this dataset keeps too few records or traces of the one in the repository.

    It must keep the build's `publish.least_share`, as in its own directory.
    """
    manifest = target.content("manifest.json")
    if manifest is None:
        return
    as_asked = "or, if it is intended, push again with --replace; or push to another repository or --revision"
    try:
        old = Contents.model_validate_json(manifest)
    except ValidationError:
        raise PushError(
            f"manifest.json of {target.address} at {target.revision} cannot be read, so what would be replaced is unknown; "
            "nothing was sent",
            f"look at it; {as_asked}",
        ) from None
    settings = dataset.settings()
    share = (settings.publish if settings is not None else PublishConfig()).least_share
    worse = lost(dataset.manifest, old, share, f"the dataset at {target.address} ({target.revision})")
    if worse is not None:
        raise PushError(
            f"{worse}\n  nothing was sent",
            f"look at its rejections (`mbeir-cot stats DIR`, `mbeir-cot report DIR`), build again; {as_asked}",
        )
