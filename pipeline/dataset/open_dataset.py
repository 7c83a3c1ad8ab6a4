"""Opens a built dataset from a directory or the Hub."""

from __future__ import annotations

from pathlib import Path

from pipeline.dataset.built_dataset import BuiltDataset
from schemas.errors import InputError
from schemas.os_errors import refused_by_system
from schemas.repository import is_repository_name


def open_dataset(place: str | Path, *, revision: str | None = None) -> BuiltDataset:
    """Opens a dataset's directory, a build's, or a downloaded snapshot; or downloads ORG/NAME from the Hub.

    revision: a branch, tag or commit of the repository. HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured.

    `BuiltDataset` has `records()` and `rejections()` (Arrow tables), `rows()` (dicts) and `manifest` (counts, provenance,
    files). Raises InputError for anything else, and for a directory with no finished dataset or a damaged one.
    """
    path = Path(place)
    if path.exists() or not is_repository_name(str(place)):
        return BuiltDataset.open(path)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (reads HF_* when imported)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    wanted = ["manifest.json", "data/*.parquet", "rejected/*.parquet", "with_images/*.parquet"]
    try:
        snapshot = snapshot_download(str(place), repo_type="dataset", revision=revision, allow_patterns=wanted)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        if (refused := refused_by_system(error)) is not None:
            raise InputError(f"{place} cannot be downloaded: {refused.cause}", f"{refused.remedy}; then run again") from error
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{place} is neither a directory nor a dataset repository that can be downloaded: {message}",
            "name a dataset's or a build's directory, or ORG/NAME on the Hub (HF_TOKEN for a private one)",
        ) from error
    return BuiltDataset.open(Path(snapshot))
