"""Builds an index: embeds pools part by part, resumable, and joins the parts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.dataset.training_store import training_store
from pipeline.files.array_file import allocate_array
from pipeline.files.durable import replace_text, sync
from pipeline.files.run_log import log_failure, run_log
from pipeline.mbeir.image_store import ImageStore
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.progress_meter import Meter
from schemas.errors import ConfigError, InputError
from schemas.mbeir import DATASET_TASKS, Split
from schemas.training import DataSettings, TrainConfig
from trainer.data.exclusions import Exclusion, describe_exclusions, load_exclusions, save_exclusions
from trainer.embedding.embed import write_array
from trainer.embedding.files import exclusions_path, ids_path, load_embeddings
from trainer.embedding.recovered_candidates import embed_whole_pool
from trainer.embedding.workers import EmbedderSpec, Workers, open_workers
from trainer.model.location import is_checkpoint, model_directory
from trainer.model.metadata import fingerprint
from trainer.retrieval.index import IDS, LOG, METADATA, UNREADABLE, VECTORS, Index, IndexMetadata

logger = logging.getLogger(__name__)

_PARTS: Final = "parts.json"
"""Names the index that the parts in the directory belong to, while it is being built."""


def pool_paths(layout: Layout, split: Split, names: Sequence[str]) -> list[Path]:
    """Pool files: the local pools of the named dataset-tasks, or the split's global pool if none is named."""
    if not names:
        path = layout.global_pool(split)
        if not path.is_file():
            raise InputError(
                f"{path} is missing",
                f"`mbeir-cot mbeir fetch {layout.root} --union --no-images` brings it, or name local pools with --pool",
            )
        return [path]
    by_name = {task.name: task for task in DATASET_TASKS}
    paths = []
    for name in names:
        if name not in by_name:
            raise ConfigError(f"--pool {name}: unknown", f"one of {', '.join(by_name)}")
        local = layout.local_pool(by_name[name], split)
        if local is None or not local.is_file():
            raise InputError(
                f"{local or name}: no such pool in {layout.root}", layout.fetch_remedy(by_name[name].dataset, split)
            )
        paths.append(local)
    return list(dict.fromkeys(paths))


def index_run(config: TrainConfig, run: Path, variant: str, *, split: Split, pools: Sequence[str] = (), out: Path) -> Index:
    """Indexes a split's pools with a run's or a checkpoint's embedder. `pools` and errors: see `pool_paths`, `build_index`."""
    model = model_directory(config, run, variant)
    layout = Layout.open(config.data.mbeir)
    paths = pool_paths(layout, split, pools)
    metadata = IndexMetadata(
        run=run.absolute(),
        variant=variant,
        embedder_sha256=fingerprint(model),
        base=config.model.base if is_checkpoint(run) else None,
        mbeir=config.data.mbeir.absolute(),
        cache=config.data.candidate_cache,
        pools=tuple(layout.relative(path) for path in paths),
        count=0,
        dim=0,
    )
    with open_workers(EmbedderSpec(config, model), logs=out) as workers:
        return build_index(out, metadata, paths, workers, images=training_store(config), data=config.data)


def build_index(
    out: Path, metadata: IndexMetadata, paths: Sequence[Path], workers: Workers, *, images: ImageStore, data: DataSettings
) -> Index:
    """Embeds the pools part by part (parts on disk are kept) and writes the index.

    metadata: `count` and `dim` are filled in. data: whether candidates whose images cannot be read are left out, and how many.
    Raises ConfigError if `out` holds anything else than this index or its parts.
    """
    skip = data.skip_unreadable
    if (out / METADATA).is_file():
        built = Index.open(out)
        if (built.metadata.embedder_sha256, built.metadata.pools) == (metadata.embedder_sha256, metadata.pools):
            _check_left_out(built, data)
            return built
    _claim_directory(out, metadata, skip=skip)
    with run_log(out / LOG), log_failure(logger, "index"):
        logger.info("%s of %s, pools %s", metadata.variant, metadata.run, ", ".join(metadata.pools))
        pools = [CandidatePool.open(path, metadata.cache) for path in paths]
        parts = [out / f"{path.stem}_embed.npy" for path in paths]
        left_out: list[Exclusion] = []
        with Meter("candidates", sum(map(len, pools)), unit="candidates") as meter:
            for pool, part in zip(pools, parts, strict=True):
                ids = np.asarray(pool.hashed_dids, np.int64)
                embed = partial(workers.embed_ranges, pool)
                left_out += embed_whole_pool(part, embed, ids, images, meter.advance, most=data.most_unreadable)
        (out / UNREADABLE).unlink(missing_ok=True)
        if left_out:
            save_exclusions(out / UNREADABLE, left_out)
            logger.warning("%s", describe_exclusions("candidates", left_out, out / UNREADABLE))
        _join_parts(out, parts, metadata)
        logger.info("finished: %s", out)
    return Index.open(out)


def _check_left_out(built: Index, data: DataSettings) -> None:
    """Raises an error for an index that lacks candidates, if the settings do not allow it, or not so many."""
    out, left_out = built.directory, load_exclusions(built.directory / UNREADABLE)
    if left_out and not data.skip_unreadable:
        raise ConfigError(
            f"{out} was built without the candidates that cannot be read", "name another --out, or data.skip_unreadable=true"
        )
    total = built.metadata.count + len(left_out)
    if len(left_out) > data.most_unreadable * total:
        raise InputError(
            f"{out} was built without {len(left_out):,} of {total:,} candidates, which could not be read",
            f"remove {out} and run again with their images mounted; data.most_unreadable allows more",
        )


def _claim_directory(out: Path, metadata: IndexMetadata, *, skip: bool) -> None:
    """Raises ConfigError unless the directory is empty but for logs, or holds parts of the same index."""
    marker = out / _PARTS
    others = out.exists() and any(".log" not in path.name for path in out.iterdir())  # actors open theirs before
    if others and not marker.is_file():
        raise ConfigError(f"{out} holds something else", "name another --out, or remove that directory")
    out.mkdir(parents=True, exist_ok=True)
    owner = json.dumps(
        {"embedder": metadata.embedder_sha256, "pools": metadata.pools} | ({"skip_unreadable": True} if skip else {})
    )
    if marker.is_file() and marker.read_text(encoding="utf-8") != owner:
        raise ConfigError(f"{out} holds the parts of another index", "name another --out, or remove that directory")
    marker.write_text(owner, encoding="utf-8")


def _join_parts(out: Path, parts: Sequence[Path], metadata: IndexMetadata) -> None:
    """Writes vectors, ids and, last, the metadata that makes it an index; then removes the parts."""
    loaded = [load_embeddings(part) for part in parts]
    dim = loaded[0].vectors.shape[1]
    count = sum(len(part.ids) for part in loaded)
    vectors_CD = allocate_array(out / VECTORS, np.float16, (count, dim))
    start = 0
    for part in loaded:
        vectors_CD[start : start + len(part.ids)] = part.vectors
        start += len(part.ids)
    vectors_CD.flush()
    sync(out / VECTORS)
    write_array(out / IDS, np.concatenate([part.ids for part in loaded]))
    replace_text(out / METADATA, metadata.model_copy(update={"count": count, "dim": dim}).model_dump_json(indent=1) + "\n")
    for path in parts:
        path.unlink()
        ids_path(path).unlink()
        exclusions_path(path).unlink(missing_ok=True)
    (out / _PARTS).unlink()
