"""Downloads M-BEIR from the Hugging Face Hub and extracts its images. Both continue after an interruption."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from pydantic import BaseModel, ConfigDict

from pipeline.mbeir.extract import IMAGES, extract_images, find_parts
from pipeline.mbeir.extracted import ExtractSummary, covers, lost_images, read_marker
from pipeline.mbeir.layout import Layout
from schemas.errors import ConfigError, CotError
from schemas.mbeir import DATASET_IDS
from schemas.os_errors import explained

REPO_ID: Final = "TIGER-Lab/M-BEIR"
_INSTRUCTIONS: Final = "instructions/query_instructions.tsv"
_GLOBAL: Final = ("query/union_train/*", "query/union_val/*", "cand_pool/global/*")
_PARTS: Final = f"{IMAGES}.tar.gz.part-*"


class FetchSummary(BaseModel):
    model_config = ConfigDict(frozen=True)

    dest: Path
    datasets: tuple[str, ...]
    images: ExtractSummary | None
    lost: int = 0
    """Images of an earlier extraction that were missing or had another size, and were extracted again."""

    @property
    def lacks(self) -> str:
        """A sentence on what the training split lacks without the global pool; empty if nothing."""
        if Layout(self.dest).global_pool("train").is_file() or "mscoco" not in self.datasets:
            return ""
        return "MSCOCO's training candidates are in the global pool only: to build or train on it, add --union"


def image_folder(dataset: str) -> str:
    """The folder of ``mbeir_images`` that holds a dataset's pictures."""
    return f"{'oven' if dataset == 'infoseek' else dataset}_images"


def patterns(datasets: Sequence[str], *, union: bool, images: bool) -> list[str]:
    """What to download, as the Hub's patterns."""
    wanted = [_INSTRUCTIONS]
    for dataset in datasets:
        wanted += [
            f"query/*/mbeir_{dataset}_*.jsonl",
            f"cand_pool/local/mbeir_{dataset}_*.jsonl",
            f"qrels/*/mbeir_{dataset}_*.txt",
        ]
    return wanted + (list(_GLOBAL) if union else []) + ([_PARTS] if images else [])


def checked_datasets(names: Sequence[str] | None) -> tuple[str, ...]:
    """Dataset names; all ten if none are given. Raises ConfigError for an unknown one and suggests the nearest."""
    for name in names or ():
        if name not in DATASET_IDS:
            near = difflib.get_close_matches(name.lower(), DATASET_IDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"unknown dataset {name!r}", f"{hint}known are {', '.join(DATASET_IDS)}")
    return tuple(names or DATASET_IDS)


def fetch_mbeir(
    dest: Path,
    *,
    datasets: Sequence[str] | None = None,
    images: bool = True,
    union: bool | None = None,
    remove_parts: bool = False,
    revision: str | None = None,
    repo_id: str = REPO_ID,
) -> FetchSummary:
    """Downloads M-BEIR to `dest`.

    Args:
        datasets: dataset names; None for all ten.
        images: also download the image archive (169 GB in four parts, all of which are needed) and extract it.
        union: also download the union query files and global pools; None: only with all datasets.
        remove_parts: delete the archive once everything is extracted.
        revision: a branch, tag or commit of the dataset repository.
    """
    names = checked_datasets(datasets)
    whole = set(names) == set(DATASET_IDS)
    union = whole if union is None else union
    folders = None if whole else frozenset(image_folder(name) for name in names)
    done = read_marker(dest)
    extracted = covers(done, folders)
    lost = lost_images(dest, done) if images and extracted and done is not None else 0
    if lost and done is not None:
        extracted = False
        folders = None if done.folders is None else frozenset(done.folders)  # the marker must keep covering the same folders
    _download(dest, patterns(names, union=union, images=images and not extracted), repo_id, revision)
    summary = None
    if images:
        summary = done if extracted else None
        if summary is None:
            summary = extract_images(find_parts(dest), dest, folders=folders, again=lost > 0)
        if remove_parts:
            for part in dest.glob(_PARTS):
                part.unlink()
    return FetchSummary(dest=dest, datasets=names, images=summary, lost=lost)


def _download(dest: Path, allow: list[str], repo_id: str, revision: str | None) -> None:
    """Downloads with the Hub's client, which resumes, verifies sizes and shows progress; translates its errors."""
    where = f"{repo_id}{f' at {revision}' if revision else ''}"
    try:
        snapshot_download(repo_id, repo_type="dataset", revision=revision, local_dir=dest, allow_patterns=allow)
    except GatedRepoError as error:
        raise CotError(f"{where} asks for an agreement", "accept it on its page, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise CotError(
            f"the Hub does not show {where}", "check the name; for a private copy set HF_TOKEN (and HF_ENDPOINT for a mirror)"
        ) from error
    except RevisionNotFoundError as error:
        raise CotError(f"{where} does not exist", "name a branch, tag or commit of the repository") from error
    except OfflineModeIsEnabled as error:
        raise CotError(
            "the Hub client is offline (HF_HUB_OFFLINE is set)", "unset it, or copy M-BEIR here by other means"
        ) from error
    except (LocalEntryNotFoundError, httpx.TransportError) as error:
        raise CotError(
            f"the Hub cannot be reached for {where} ({_cause(error)})",
            "check the network, its proxy (https_proxy) and HF_ENDPOINT, and run again: it continues",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        raise CotError(f"the Hub answered {status} for {where}", "run again: it continues") from error
    except OSError as error:
        cause, remedy = explained(error)
        raise CotError(f"cannot write to {dest}: {cause}", f"{remedy}; then run again: it continues") from error


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
