"""Fits TRACE, or one of its controls, to a dataset: the whole job, top to bottom.

RUN/VARIANT/run.json       what was fitted on what; a later run must agree
RUN/VARIANT/metrics.jsonl  one line per step
RUN/VARIANT/checkpoints/   to go on from
RUN/VARIANT/model/         the finished embedder
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from pipeline.files.atomic_directory import replace_directory, staging_path
from pipeline.files.durable import replace_text
from pipeline.meter import Meter
from schemas.errors import ConfigError, InputError
from schemas.training import OptimiserSettings, TrainConfig, Variant
from trainer.data.batch_sampler import rng_for
from trainer.data.batches import allow_open_files, loader, unwrapped
from trainer.data.dataset import Candidates, Records
from trainer.data.shared_memory import check_shared_memory
from trainer.data.unreadable import StudentBatches, readable_records
from trainer.distributed import ProcessGroup
from trainer.model.emb_token import initialise_emb_token
from trainer.model.embedder import Embedder
from trainer.model.location import SETTINGS
from trainer.training import checkpoint
from trainer.training.micro_batch_size import settle_chunk
from trainer.training.self_traces import generate_traces
from trainer.training.step import DivergedError, StepLosses, train_step

"""In a run's directory: its whole config, so that the directory can be named instead of the file."""

_FREE: Final = {"out", "variants", "device", "checkpoint", "adaptive", "evaluation", "tensorboard"}
"""Settings that may change between two runs of the same training."""


def train(config: TrainConfig, variant: Variant, *, quiet: bool = False) -> Path:
    """Fits one variant, or goes on where an earlier run stopped; returns the directory of the finished embedder."""
    allow_open_files()
    processes = ProcessGroup.join(config.device)
    directory = config.out / variant
    model_directory = directory / "model"

    # What to learn from
    records = Records.load(config.data.dataset)
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
    if config.data.skip_unreadable:
        if processes.first:
            readable_records(config, records, candidates, quiet=quiet)
        processes.wait()  # the others take what was found
        records = readable_records(config, records, candidates, quiet=True)
    traces = learnt_traces(config, variant, records)
    torch.manual_seed(config.seed)
    embedder = Embedder.create(
        config.model,
        config.data.prompts,
        temperature=config.loss.temperature,
        learn_temperature=config.loss.learn_temperature,
    )
    embedder.to(processes.device).train()
    torch.manual_seed(int(rng_for("process", config.seed, processes.rank).integers(2**62)))  # dropout of its own
    source = StudentBatches(
        config,
        variant,
        records,
        traces,
        embedder.encoder(),
        candidates,
        rank=processes.rank,
        world_size=processes.size,
    )
    steps = config.optimiser.max_steps or max(1, math.ceil(config.optimiser.epochs * source.order.per_epoch))
    identity = _identity(config, variant, records, steps)
    if processes.first:
        _claim(directory, identity)
        replace_text(config.out / SETTINGS, config.model_dump_json(indent=1) + "\n")
    if (model_directory / "finished.json").is_file():
        return model_directory

    for told in (settle_chunk(embedder, source, directory / "run.json", processes), check_shared_memory(source, processes)):
        if told is not None and processes.first and not quiet:
            sys.stderr.write(f"{told}\n")

    # Where to begin
    optimiser = _optimiser(embedder, config.optimiser)
    last = checkpoint.latest(directory / "checkpoints") if processes.first else None
    last = processes.gather_objects(last)[0]
    step = 0
    if last is not None:
        step, source.own = checkpoint.restore(last, embedder, optimiser, rank=processes.rank)
    else:
        initialise_emb_token(embedder, source.opening(), processes)
    log = _Log(directory, step, config.tensorboard) if processes.first else None

    # Steps
    with Meter(f"{variant}", steps, unit="steps", quiet=quiet or not processes.first) as meter:
        meter.resume(step)
        while step < steps:
            if _own_due(config, variant, step):
                needed = source.reasoning(step, min(step + config.traces.refresh, steps))
                source.own = generate_traces(embedder, source, needed, config.adaptive, processes)
            until = _next_stop(config, variant, step, steps)
            began = time.monotonic()
            for made in loader(source, step, until, config.data.workers, pin=processes.device.type == "cuda"):
                batch = unwrapped(made)
                for group in optimiser.param_groups:
                    group["lr"] = config.optimiser.lr * group["factor"] * _schedule(step, steps, config.optimiser)
                optimiser.zero_grad(set_to_none=True)
                losses = train_step(embedder, batch, config.loss, processes, vision_cache_gib=config.batch.vision_cache_gib)
                norm = nn.utils.clip_grad_norm_(embedder.parameters(), config.optimiser.max_grad_norm)
                if not math.isfinite(float(norm)):  # before the step: the weights stay what they were
                    raise DivergedError(
                        f"step {step}: the gradient is no finite number ({', '.join(batch.ids[:8])}, …)",
                        "lower optimiser.lr or raise loss.temperature; the last checkpoint is as it was",
                    )
                optimiser.step()
                step += 1
                lr, rate = optimiser.param_groups[0]["lr"], config.batch.global_batch_size / (time.monotonic() - began)
                began = time.monotonic()
                reasoning, queries = map(sum, zip(*processes.gather_objects((batch.reasoning, len(batch.ids))), strict=True))
                share = reasoning / max(1, queries)
                if log is not None:
                    log.write(step, losses, lr, float(norm), rate, share)
                meter.note = (
                    f"loss {losses.total:.3f} (retrieval {losses.retrieval:.3f}, {losses.hit:.0%} right, "
                    f"words {losses.generation:.3f}), lr {lr:.1e}, {rate:.0f} queries/s, {share:.0%} reason"
                )
                meter.advance()
            if step % config.checkpoint.save_every == 0 or step == steps:
                random = processes.gather_objects(checkpoint.random_state())
                if processes.first:
                    place, keep = directory / "checkpoints", config.checkpoint.keep
                    checkpoint.save(place, step, embedder, optimiser, keep, own=source.own, random=random)
            processes.wait()

    # The finished embedder
    if processes.first:
        new = staging_path(model_directory)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        embedder.save(new)
        (new / "finished.json").write_text(json.dumps({"variant": variant, "steps": steps}) + "\n", encoding="utf-8")
        replace_directory(new, model_directory)
    processes.wait()
    return model_directory


def learnt_traces(config: TrainConfig, variant: Variant, records: Records) -> dict[str, str]:
    """Record id -> the trace that is learnt."""
    if variant == "direct":
        return {}
    if variant == "trace":
        found = records.traces()
        if not found:
            raise InputError(
                f"{config.data.dataset} has no record with a trace",
                "build it with a lower route.threshold, or fit the variant `direct`",
            )
        return found
    assert config.data.always_reason_dataset is not None, "checked by TrainConfig"
    everything = Records.load(config.data.always_reason_dataset).traces()
    known = set(records.table["id"].to_pylist())
    if not known & everything.keys():
        raise InputError(
            f"{config.data.always_reason_dataset} has no trace for any query of {config.data.dataset}",
            "build both from the same M-BEIR; the one of data.always_reason_dataset with --set route.threshold=0",
        )
    return everything


def _optimiser(embedder: Embedder, settings: OptimiserSettings) -> torch.optim.AdamW:
    rows: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in embedder.named_parameters():
        if parameter.requires_grad:
            (rows if "trainable_tokens" in name else others).append(parameter)
    groups = [{"params": others, "factor": 1.0}, {"params": rows, "factor": settings.token_lr_multiplier}]
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def _schedule(step: int, steps: int, settings: OptimiserSettings) -> float:
    """Factor on the learning rate: linear warm-up, then a half cosine to zero."""
    warmup = round(settings.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _own_due(config: TrainConfig, variant: Variant, step: int) -> bool:
    traces = config.traces
    if traces.contrastive == "teacher" or variant == "direct" or step < traces.first_refresh:
        return False
    return (step - traces.first_refresh) % traces.refresh == 0


def _next_stop(config: TrainConfig, variant: Variant, step: int, steps: int) -> int:
    """The next step at which something else is to be done: a checkpoint, new traces, the end."""
    stops = [steps, step - step % config.checkpoint.save_every + config.checkpoint.save_every]
    if config.traces.contrastive != "teacher" and variant != "direct":
        begin, every = config.traces.first_refresh, config.traces.refresh
        stops.append(begin if step < begin else begin + ((step - begin) // every + 1) * every)
    return min(stops)


def _identity(config: TrainConfig, variant: Variant, records: Records, steps: int) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude=_FREE)
    for part, free in (
        ("data", ("workers", "prefetch", "candidate_cache", "image_roots")),
        ("batch", ("vision_cache_gib", "memory_share")),
    ):
        for key in free:
            settings[part].pop(key)
    if not config.data.skip_unreadable:  # runs that were begun before there was such a setting go on
        settings["data"].pop("skip_unreadable")
    if config.traces.contrastive != "teacher":  # decides the student's own traces, and so the losses
        settings["max_new_tokens"] = config.adaptive.max_new_tokens
    found = {"variant": variant, "steps": steps, "dataset_sha256": records.digest, "settings": settings}
    if variant == "always-reason" and config.data.always_reason_dataset is not None:
        found["reasoned_sha256"] = Records.load(config.data.always_reason_dataset).digest
    return found


def _claim(directory: Path, identity: dict[str, Any]) -> None:
    """Writes what this run is; raises ConfigError where the directory holds another one."""
    file = directory / "run.json"
    if file.is_file():
        old = json.loads(file.read_text(encoding="utf-8"))
        old.pop("chunk", None)  # what `batch.micro_batch_size: auto` came to
        if differing := _differing(old, identity):
            raise ConfigError(
                f"{directory} holds a run with other settings or data: {', '.join(differing)}",
                "name another `out`, or remove that directory to begin anew",
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(identity, indent=1) + "\n")


def _differing(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [line for name in names for line in _differing(old.get(name), new.get(name), f"{key}.{name}" if key else name)]
    return [] if old == new else [f"{key.removeprefix('settings.')} was {old!r}, is {new!r}"]


class _Log:
    """metrics.jsonl, cut back to the step that a run goes on from."""

    def __init__(self, directory: Path, step: int, tensorboard: bool) -> None:
        self.path = directory / "metrics.jsonl"
        if self.path.is_file():
            kept = []
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # torn by a kill
                    break
                if entry["step"] > step:
                    break
                kept.append(line)
            replace_text(self.path, "".join(f"{line}\n" for line in kept))
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (not everyone has it)

            self._board = SummaryWriter(str(directory / "tensorboard"))

    def write(self, step: int, losses: StepLosses, lr: float, norm: float, rate: float, share: float) -> None:
        values = losses._asdict() | {"lr": lr, "gradient": norm, "queries_per_s": rate, "reasoning": share}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | {name: float(f"{value:.7g}") for name, value in values.items()}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
