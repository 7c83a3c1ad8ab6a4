"""`batch.micro_batch_size: auto`, and the shared memory that loaders need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from schemas.errors import ConfigError
from schemas.training import TrainConfig
from tests.trainer.conftest import fresh, source_of
from tests.trainer.training.test_step import ONE
from trainer.data import shared_memory
from trainer.data.batches import pack
from trainer.data.process_group import ProcessGroup
from trainer.data.shared_memory import check_shared_memory
from trainer.training import micro_batch_size
from trainer.training.micro_batch_size import count_tokens, find_largest, settle_chunk
from trainer.training.train import train


@pytest.mark.parametrize(
    ("each", "crash", "most", "expected"),
    [
        (1.0, 1000, 256, 100),  # the limit itself
        (1.0, 60, 256, 56),  # out of memory above 59, for any limit
        (0.1, 1000, 256, 256),  # all rows of a process
        (0.1, 1000, 10, 10),
        (30.0, 1000, 256, 3),  # fewer than a step
        (200.0, 1000, 256, 0),
    ],
)
def test_the_largest_chunk_within_the_limit_is_found(each: float, crash: int, most: int, expected: int) -> None:
    asked: list[int] = []

    def takes(chunk: int) -> float | None:
        asked.append(chunk)
        return None if chunk >= crash else chunk * each

    assert find_largest(takes, 100.0, most) == expected
    assert len(asked) == len(set(asked)) <= 16
    assert max(asked) <= most


def auto(config: TrainConfig, **data: Any) -> TrainConfig:
    batch = config.batch.model_copy(update={"micro_batch_size": "auto"})
    return config.model_copy(update={"batch": batch, "data": config.data.model_copy(update=data)})


def test_on_cpu_it_is_a_fixed_value_and_a_resumed_run_keeps_its_own(config: TrainConfig, tmp_path: Path) -> None:
    embedder, run = fresh(config), tmp_path / "run.json"
    run.write_text("{}")
    source = source_of(auto(config), embedder)
    assert "16 sequences" in (settle_chunk(embedder, source, run, ONE) or "")
    assert (source.chunk, json.loads(run.read_text())) == (16, {"chunk": 16})
    run.write_text('{"chunk": 4}')
    assert "4 sequences, as when the run began" in (settle_chunk(embedder, source, run, ONE) or "")
    assert max(map(len, source.make_batch(0).queries)) == 4
    assert settle_chunk(embedder, source_of(config, embedder), run, ONE) is None, "a number stays one"


@pytest.mark.slow
def test_a_training_prints_and_records_its_chunk(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = auto(config, workers=1)
    chosen = chosen.model_copy(
        update={"out": tmp_path, "optimiser": chosen.optimiser.model_copy(update={"max_steps": 1}), "device": "cpu"}
    )
    train(chosen, "direct")
    told = capsys.readouterr().err
    assert "batch.micro_batch_size: auto is 16 sequences, the fixed value on CPU\n" in told
    assert "loaders hold up to" in told
    assert json.loads((tmp_path / "direct" / "run.json").read_text())["chunk"] == 16
    (tmp_path / "direct" / "model" / "finished.json").unlink()
    train(chosen, "direct")
    assert "16 sequences, as when the run began" in capsys.readouterr().err


@dataclass(frozen=True, slots=True)
class Beside(ProcessGroup):
    """A process whose only neighbour has a GPU that holds 12 rows; this machine has no GPU."""

    def gather_objects(self, mine: Any) -> list[Any]:
        return [mine, 12 if mine is not None else None]


def test_processes_agree_on_the_smallest_gpus_chunk(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, run = fresh(config), tmp_path / "run.json"
    found = {"rows": 20}
    monkeypatch.setattr(micro_batch_size, "_probe", lambda *_: found["rows"])
    world = Beside(0, 2, torch.device("cuda"))
    for rows, expected in ((20, 12), (8, 8)):
        run.write_text("{}")
        source, found["rows"] = source_of(auto(config), embedder), rows
        settle_chunk(embedder, source, run, world)
        assert source.chunk == json.loads(run.read_text())["chunk"] == expected
    run.write_text("{}")
    found["rows"] = 0
    with pytest.raises(ConfigError, match=r"(?s)not even one sequence fits 85% of the GPU's memory.*gradient_checkpointing"):
        settle_chunk(embedder, source, run, world)


@pytest.mark.slow
def test_chunks_are_tried_with_real_passes(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with a fake memory that counts the tokens of a chunk: it holds twenty rows; larger chunks crash."""
    embedder = fresh(config).train()
    source = source_of(auto(config), embedder)
    each = max(source.encoder.make_chunk([row]).labels.shape[1] for row in source.sample(micro_batch_size.SAMPLE))
    seen: list[int] = []
    forward = type(embedder).forward

    def counted(self: Any, chunk: Any, **losses: Any) -> Any:
        seen.append(chunk.labels.numel())
        if len(chunk) > 28:
            raise torch.cuda.OutOfMemoryError("as many as that")
        return forward(self, chunk, **losses)

    monkeypatch.setattr(type(embedder), "forward", counted)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    later = 8 * sum(p.numel() for p in embedder.parameters() if p.requires_grad) + 4 * 2**30
    total = int((20 * each + later) / source.config.batch.memory_share) + 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (total, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: seen[-1])
    before = torch.get_rng_state()
    assert micro_batch_size._probe(embedder, source, ProcessGroup(0, 1, torch.device("cpu"))) == 16, "all rows of a process"
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in embedder.parameters())
    many = source.config.model_copy(update={"batch": source.config.batch.model_copy(update={"global_batch_size": 200})})
    source.config = many
    assert micro_batch_size._probe(embedder, source, ProcessGroup(0, 1, torch.device("cpu"))) == 20


def test_the_largest_rows_are_tried(config: TrainConfig) -> None:
    source = source_of(auto(config), fresh(config))
    rows = sorted(source.sample(24), key=lambda row: count_tokens(source, row))
    small, large = (source.encoder.make_chunk(part).inputs["attention_mask"].sum() for part in (rows[:8], rows[-8:]))
    assert large > 1.3 * small


def test_too_little_shared_memory_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = source_of(auto(config, workers=3), fresh(config))
    made = pack(source.make_batch(0))
    flat = sum(tensor.nbytes for tensor in made.flat.values())  # type: ignore[union-attr]
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    room = {"blocks": 1 << 30}
    monkeypatch.setattr(shared_memory.os, "statvfs", lambda _: SimpleNamespace(f_bavail=room["blocks"], f_frsize=1024))
    wanted = shared_memory.estimate_bytes(source, 1, shared_memory.measure_row_bytes(source))
    assert 3 * 2 * flat * 0.8 < wanted < 3 * 2 * flat * 2
    assert "1 x 3 workers x 2 batches" in (check_shared_memory(source, ONE, tmp_path) or "")
    room["blocks"] = 10
    with pytest.raises(ConfigError, match=r"(?s)which has 10\.2 kB.*--shm-size=1g.*data.workers or data.prefetch"):
        check_shared_memory(source, ONE, tmp_path)
    assert check_shared_memory(source_of(config, fresh(config)), ONE, tmp_path) is None, "no workers, no need"
