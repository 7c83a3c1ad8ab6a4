"""Trains TRACE, or one of its controls, on a dataset: the whole job, top to bottom.

RUN/train.log              what happened, and when
RUN/VARIANT/run.json       settings, data and steps; a resumed run must have the same
RUN/VARIANT/metrics.jsonl  one line per step
RUN/VARIANT/checkpoints/   to resume from
RUN/VARIANT/model/         the finished embedder
"""

from __future__ import annotations

import logging
import math
import sys
import time
from pathlib import Path
from typing import Final

import torch
from torch import nn

from pipeline.files.durable import replace_text
from pipeline.files.run_log import log_failure, run_log
from pipeline.progress_meter import Meter, is_quiet, quiet_progress
from schemas.errors import ConfigError, InputError
from schemas.training import TrainConfig, Variant
from trainer.data.batch_sampler import rng_for
from trainer.data.batches import Batch, allow_open_files, make_loader, unpack
from trainer.data.dataset import Candidates, Records
from trainer.data.mined import training_records
from trainer.data.process_group import ProcessGroup
from trainer.data.shared_memory import check_shared_memory
from trainer.data.unreadable import StudentBatches, readable_records
from trainer.model.emb_token import initialise_emb_token
from trainer.model.embedder import Embedder
from trainer.model.location import SETTINGS
from trainer.training import checkpoint
from trainer.training.metrics_log import MetricsLog, start_trackers
from trainer.training.micro_batch_size import settle_chunk
from trainer.training.optimiser import make_optimiser, set_learning_rate
from trainer.training.run_directory import RunDirectory, run_conditions
from trainer.training.self_traces import generate_traces
from trainer.training.step import DivergedError, StepLosses, train_step

logger = logging.getLogger(__name__)

COLLAPSED: Final = 0.9
"""Mean cosine of two candidates above which a training says so."""
_SETTLED_STEPS: Final = 20


def train(config: TrainConfig, variant: Variant) -> Path:
    """Trains one variant, or resumes an earlier run; returns the directory of the finished embedder."""
    allow_open_files()
    processes = ProcessGroup.join(config.device)
    run = RunDirectory(config.out, variant)
    records, candidates = _load_data(config, processes)
    traces = learnt_traces(config, variant, records)
    embedder = _create_embedder(config, processes)
    source = StudentBatches(
        config,
        variant,
        records,
        traces=traces,
        encoder=embedder.encoder(),
        candidates=candidates,
        rank=processes.rank,
        world_size=processes.size,
    )
    steps = config.optimiser.max_steps or max(1, math.ceil(config.optimiser.epochs * source.sampler.per_epoch))
    if (first := config.traces.first_stage_steps) >= steps and variant != "direct":
        raise ConfigError(
            f"traces.first_stage_steps is {first}, and the training has {steps} steps: the embedding would learn nothing",
            "name fewer",
        )
    if processes.first:
        run.claim(run_conditions(config, variant, records, steps))
        replace_text(config.out / SETTINGS, config.model_dump_json(indent=1) + "\n")
    if run.finished:
        return run.model
    level = logging.INFO if processes.first else logging.WARNING
    with run_log(run.log(processes.rank), level=level), log_failure(logger, variant):
        _Training(config, run, processes, embedder, source=source, steps=steps).run()
    return run.model


def _load_data(config: TrainConfig, processes: ProcessGroup) -> tuple[Records, Candidates]:
    """Without what cannot be read, if the config allows it."""
    records = training_records(config.data)
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
    if config.data.skip_unreadable:
        if processes.first:
            readable_records(config, records, candidates)
        processes.wait()  # the other processes use its list
        with quiet_progress():
            records = readable_records(config, records, candidates)
    return records, candidates


def _create_embedder(config: TrainConfig, processes: ProcessGroup) -> Embedder:
    """The same in every process. From here on each process has its own random numbers."""
    torch.manual_seed(config.seed)
    embedder = Embedder.create(
        config.model,
        config.data.prompts,
        temperature=config.loss.temperature,
        learn_temperature=config.loss.learn_temperature,
    )
    dim = int(embedder.model.config.get_text_config().hidden_size)
    if any(size >= dim for size in config.loss.matryoshka):
        raise ConfigError(
            f"loss.matryoshka {list(config.loss.matryoshka)}: the vectors have {dim} dimensions", "name smaller ones"
        )
    embedder.to(processes.device).train()
    torch.manual_seed(int(rng_for("process", config.seed, processes.rank).integers(2**62)))  # its own dropout
    return embedder


class _Training:
    """The loop of one variant, from its last checkpoint to the finished embedder."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunDirectory,
        processes: ProcessGroup,
        embedder: Embedder,
        *,
        source: StudentBatches,
        steps: int,
    ) -> None:
        self.config, self.variant, self.directory, self.processes = config, run.variant, run, processes
        self.embedder, self.source, self.steps = embedder, source, steps
        self.step = 0
        self._told_collapse = False

    def run(self) -> None:
        self._settle_memory()
        self._initialise()
        config, first = self.config, self.processes.first
        trackers = start_trackers(config, self.variant, self.directory.path) if first else ()
        log = MetricsLog(self.directory.path, self.step, config.tensorboard, trackers=trackers) if first else None
        with quiet_progress(not first), Meter(f"{self.variant}", self.steps, unit="steps") as meter:
            meter.resume(self.step)
            while self.step < self.steps:
                if _self_traces_due(config, self.variant, self.step):
                    self._refresh_self_traces()
                until = _next_stop(config, self.variant, self.step, self.steps)
                began = time.monotonic()
                pin = self.processes.device.type == "cuda"
                for made in make_loader(self.source, self.step, until, config.data.workers, pin=pin):
                    batch = unpack(made)
                    losses, norm = self._take_step(batch)
                    rate = config.batch.global_batch_size / (time.monotonic() - began)
                    began = time.monotonic()
                    self._record(batch, losses, norm, rate, log=log, meter=meter)
                if self.step % config.checkpoint.save_every == 0 or self.step == self.steps:
                    self._save_checkpoint()
                self.processes.wait()
        if log is not None:
            log.close()
        if first:
            self.directory.save_model(self.embedder, self.steps)
            logger.info("%s: finished after %d steps: %s", self.variant, self.steps, self.directory.model)
        self.processes.wait()

    def _settle_memory(self) -> None:
        chunk = settle_chunk(self.embedder, self.source, self.directory.conditions, self.processes)
        for line in (chunk, check_shared_memory(self.source, self.processes)):
            if line is not None and self.processes.first:
                logger.info("%s", line)
                if not is_quiet():
                    sys.stderr.write(f"{line}\n")

    def _initialise(self) -> None:
        """From the last checkpoint; without one, initialises the embedding token's row."""
        self.optimiser = make_optimiser(self.embedder, self.config.optimiser, self.config.batch.global_batch_size)
        last = checkpoint.find_latest(self.directory.checkpoints) if self.processes.first else None
        last = self.processes.gather_objects(last)[0]
        if last is not None:
            self.step, self.source.own = checkpoint.restore(last, self.embedder, self.optimiser, rank=self.processes.rank)
        else:
            initialise_emb_token(self.embedder, self.source.sample_labelled(), self.processes)
        logger.info(
            "%s: steps %d to %d of %d queries, %d processes, on %s",
            *(self.variant, self.step, self.steps, self.config.batch.global_batch_size),
            *(self.processes.size, self.processes.device),
        )

    def _refresh_self_traces(self) -> None:
        needed = self.source.list_reasoning(self.step, min(self.step + self.config.traces.refresh, self.steps))
        self.source.own = generate_traces(self.embedder, self.source, needed, self.config.adaptive, self.processes)
        logger.info("%s: step %d: %d traces generated by the student", self.variant, self.step, len(self.source.own))

    def _take_step(self, batch: Batch) -> tuple[StepLosses, float]:
        """(losses, the gradient's norm before clipping). Raises DivergedError before the weights change."""
        config = self.config
        set_learning_rate(self.optimiser, config.optimiser, self.step, self.steps)
        self.optimiser.zero_grad(set_to_none=True)
        cache_gib = config.batch.vision_cache_gib
        losses = train_step(self.embedder, batch, config.loss, self.processes, vision_cache_gib=cache_gib)
        norm = float(nn.utils.clip_grad_norm_(self.embedder.parameters(), config.optimiser.max_grad_norm))
        if not math.isfinite(norm):
            raise DivergedError(
                f"step {self.step}: the gradient is not finite ({', '.join(batch.ids[:8])}, …)",
                "lower optimiser.lr or raise loss.temperature; the last checkpoint is as it was",
            )
        self.optimiser.step()
        self.step += 1
        return losses, norm

    def _record(
        self, batch: Batch, losses: StepLosses, norm: float, rate: float, *, log: MetricsLog | None, meter: Meter
    ) -> None:
        lr = self.optimiser.param_groups[0]["lr"]
        counts = self.processes.gather_objects((batch.reasoning, len(batch.ids)))
        reasoning, queries = map(sum, zip(*counts, strict=True))
        share = reasoning / max(1, queries)
        if log is not None:
            log.write(self.step, losses, lr=lr, norm=norm, rate=rate, share=share)
        meter.note = (
            f"loss {losses.total:.3f} (retrieval {losses.retrieval:.3f}, {losses.hit:.0%} right, "
            f"words {losses.generation:.3f}), lr {lr:.1e}, {rate:.0f} queries/s, {share:.0%} reason"
        )
        logger.debug("%s: step %d: %s", self.variant, self.step, meter.note)
        self._watch_collapse(losses.similarity)
        meter.advance()

    def _watch_collapse(self, similarity: float) -> None:
        """Says once that the embeddings are all alike; at the start those of an untrained base are."""
        if similarity < COLLAPSED or self._told_collapse or self.step < max(_SETTLED_STEPS, self.steps // 10):
            return
        self._told_collapse = True
        said = (
            f"{self.variant}: step {self.step}: the embeddings have collapsed: the mean cosine of two candidates is "
            f"{similarity:.2f}. Mined negatives may be right answers (mbeir-cot mine --margin, --skip), or the learning rate"
        )
        logger.warning("%s", said)
        if self.processes.first and not is_quiet():
            sys.stderr.write(f"{said}\n")

    def _save_checkpoint(self) -> None:
        random = self.processes.gather_objects(checkpoint.random_state())
        if self.processes.first:
            place, keep = self.directory.checkpoints, self.config.checkpoint.keep
            saved = checkpoint.save(place, self.step, self.embedder, self.optimiser, keep, own=self.source.own, random=random)
            logger.info("%s: step %d: checkpoint %s", self.variant, self.step, saved)


def learnt_traces(config: TrainConfig, variant: Variant, records: Records) -> dict[str, str]:
    """Record id -> the trace that the variant learns."""
    if variant == "direct":
        return {}
    if variant == "trace":
        traces = records.traces()
        if not traces:
            raise InputError(
                f"{config.data.dataset} has no record with a trace",
                "build it with a lower route.threshold, or train the variant `direct`",
            )
        return traces
    assert config.data.always_reason_dataset is not None, "checked by TrainConfig"
    traces = Records.load(config.data.always_reason_dataset).traces()
    if not set(records.table["id"].to_pylist()) & traces.keys():
        raise InputError(
            f"{config.data.always_reason_dataset} has no trace for any query of {config.data.dataset}",
            "build both from the same M-BEIR; the one of data.always_reason_dataset with --set route.threshold=0",
        )
    return traces


def _self_traces_due(config: TrainConfig, variant: Variant, step: int) -> bool:
    traces = config.traces
    if traces.contrastive == "teacher" or variant == "direct" or step < traces.first_own:
        return False
    return (step - traces.first_own) % traces.refresh == 0


def _next_stop(config: TrainConfig, variant: Variant, step: int, steps: int) -> int:
    """The next step before which the loop must stop: for a checkpoint, new traces, or the end."""
    stops = [steps, step - step % config.checkpoint.save_every + config.checkpoint.save_every]
    if config.traces.contrastive != "teacher" and variant != "direct":
        begin, every = config.traces.first_own, config.traces.refresh
        stops.append(begin if step < begin else begin + ((step - begin) // every + 1) * every)
    return min(stops)
