"""The stages of the rehearsal. Each runs a shipped config with the real command; `--set` changes only paths, sizes and the device."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.oracle import Oracle
from bench.real_vocabulary import CACHE
from bench.rehearse.commands import ROOT, StageFailed, await_steps, await_text, failed, kill, lines_of, mbeir_cot, run, started
from bench.rehearse.data import thin_evaluation
from bench.rehearse.layouts import Layout, write_checkpoint

BUILD: Final = "configs/mbeir-cot.yaml"
TRAIN: Final = "configs/train-trace-7b.yaml"
STAND_INS: Final = ("tests/pipeline/serving/test_placement.py", "tests/pipeline/serving/test_server_pool.py")
"""Tests with simulated hardware: several nodes with GPUs."""
ENDPOINTS: Final = ("tests/e2e/test_endpoints.py", "tests/pipeline/teacher/test_proxy.py")
"""Tests of external endpoints: one that accepts OpenAI's fields only, one whose model thinks, one behind a proxy."""
LAYOUTS: Final[dict[str, Layout]] = {"3b": "qwen2.5-vl-3b", "7b": "qwen2.5-vl-7b", "qwen3": "qwen3-vl-8b"}
CHECKPOINT: Final = 4


class StageSkipped(Exception):
    """A stage that this machine cannot run: the reason."""


@dataclass(frozen=True)
class Rehearsal:
    """Directory, device and checkpoints of a rehearsal."""

    directory: Path
    device: str
    vocabulary: Path = CACHE
    heads: int = 1
    """Width of the checkpoints in attention heads; small, because a processor without bfloat16 emulates it slowly."""

    @property
    def mbeir(self) -> Path:
        return self.directory / "world" / "mbeir"

    @property
    def dataset(self) -> Path:
        return self.directory / "build" / "dataset"

    def model(self, name: str) -> Path:
        return self.directory / "models" / LAYOUTS[name]

    def log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def out(self, name: str) -> Path:
        return self.directory / f"run-{name}"

    def sets_of_training(self, name: str, steps: int, checkpoint: int = CHECKPOINT) -> list[str]:
        """Returns the changes to the shipped 7B recipe on this machine; all other settings are the recipe's own."""
        return _sets(
            **{
                "model.base": self.model(name),
                "model.lora.r": 8,
                "data.dataset": self.dataset,
                "data.mbeir": self.mbeir,
                "data.candidate_cache": self.directory / "cache",
                "data.workers": 1,
                "out": self.out(name),
                "variants": "[trace]",
                "batch.global_batch_size": 4,
                "batch.micro_batch_size": 4,
                "optimiser.max_steps": steps,
                "checkpoint.save_every": checkpoint,
                "adaptive.max_new_tokens": 6,
                "adaptive.prefill_rows": 4,
                "adaptive.decode_rows": 8,
                "evaluation.candidate_batch_size": 8,
                "device": self.device,
            }
        )

    def sets_of_build(self) -> list[str]:
        return _sets(
            **{"mbeir": self.mbeir, "out": self.directory / "build", "input.candidate_cache": self.directory / "cache"}
        )


@dataclass(frozen=True)
class Stage:
    name: str
    what: str
    run: Callable[[Rehearsal], str]
    """Runs the stage and returns a one-line summary. Raises StageFailed or StageSkipped."""
    needs: tuple[str, ...] = ()


def write_models(rehearsal: Rehearsal) -> str:
    for name, layout in LAYOUTS.items():
        write_checkpoint(layout, rehearsal.model(name), heads=rehearsal.heads, vocabulary=rehearsal.vocabulary)
    return f"{', '.join(LAYOUTS.values())}: bfloat16, {rehearsal.heads * 128} wide"


def write_data(rehearsal: Rehearsal) -> str:
    """Writes a pocket world, and builds it with the shipped config and an oracle as teacher."""
    world = rehearsal.directory / "world"
    shutil.rmtree(world, ignore_errors=True)
    shutil.rmtree(rehearsal.directory / "build", ignore_errors=True)
    run(mbeir_cot("pocket", "world", world, "--queries", "64"), log=rehearsal.log("world"))
    thin_evaluation(rehearsal.mbeir)
    with Oracle(rehearsal.log("oracle")) as oracle:
        external = _sets(
            **{
                "teacher.hosting": "external",
                "teacher.server": "null",
                "teacher.endpoints": json.dumps([{"url": oracle.url, "model": "oracle"}]),
                "screen.tokenizer": rehearsal.model("7b"),
                "output.synthetic": "true",
            }
        )
        command = mbeir_cot("build", BUILD, "--quiet", "--limit", "48", *rehearsal.sets_of_build(), *external)
        said = run(command, log=rehearsal.log("build"))
    return next((line for line in said.splitlines() if "records of" in line), "")


def ask_teacher(rehearsal: Rehearsal) -> str:
    """Runs `serve`, then `teacher check` and `preview` with the server that it started."""
    if importlib.util.find_spec("vllm") is None:
        raise StageSkipped("vLLM is not installed")
    cpu = {"dtype": "auto", "max_num_seqs": 8} if rehearsal.device == "cpu" else {"gpu_memory_utilization": 0.3}
    server = {
        "model": rehearsal.model("3b"),
        "device": rehearsal.device,
        "tensor_parallel_size": 1,
        "max_model_len": 4096,
    } | cpu
    sets = rehearsal.sets_of_build() + _sets(
        **{f"teacher.server.{key}": value for key, value in server.items()},
        **{"teacher.sampling.max_tokens": 160, "teacher.reuse": "true"},
        **{
            "teacher.grammar": "bounded",
            "teacher.max_facet_chars": 12,
            "teacher.max_answer_chars": 12,
        },  # random weights never stop
    )
    serve, log = mbeir_cot("serve", BUILD, *sets), rehearsal.log("serve")
    with started(serve, log=log) as process:
        await_text(process, serve, log, "Ctrl-C", timeout=400)
        check = mbeir_cot("teacher", "check", BUILD, *sets)
        checked = run(check, log=rehearsal.log("teacher-check"))
        if "using the running server at" not in checked:
            raise failed(check, rehearsal.log("teacher-check"), "started its own server instead of using the running one")
        preview = mbeir_cot("preview", BUILD, "-n", "2", *sets)
        run(preview, log=rehearsal.log("preview"))
    abilities = sum(line.startswith("ok ") for line in checked.splitlines())
    return f"{abilities} kinds of request ok, 2 annotations"


def train_and_resume(
    name: str, *, steps: int = 12, killed: int = 6, checkpoint: int = CHECKPOINT
) -> Callable[[Rehearsal], str]:
    """Trains, kills the training after some steps, and resumes it from its last checkpoint with the same losses."""

    def stage(rehearsal: Rehearsal) -> str:
        shutil.rmtree(rehearsal.out(name), ignore_errors=True)
        command = mbeir_cot("train", TRAIN, *rehearsal.sets_of_training(name, steps, checkpoint))
        metrics, log = rehearsal.out(name) / "trace" / "metrics.jsonl", rehearsal.log(f"train-{name}")
        with started(command, log=log) as process:
            await_steps(process, command, log, metrics, killed, timeout=600)
            kill(process)
        before = lines_of(metrics)
        again = rehearsal.log(f"resume-{name}")
        run(command, log=again)
        after = lines_of(metrics)
        if [line["step"] for line in after] != list(range(1, steps + 1)):
            raise failed(command, again, f"wrote the steps {[line['step'] for line in after]}")
        for old, new in zip(before, after, strict=False):
            if abs(old["total"] - new["total"]) > 1e-3 * abs(old["total"]):
                raise failed(
                    command,
                    again,
                    f"differs from the interrupted run: loss {new['total']}, before {old['total']} in {old['step']}",
                )
        first, last = after[0]["total"], after[-1]["total"]
        return f"{steps} steps, killed after {len(before)}; loss {first:.2f} -> {last:.2f}"

    return stage


def train_some(name: str, steps: int = 3) -> Callable[[Rehearsal], str]:
    def stage(rehearsal: Rehearsal) -> str:
        shutil.rmtree(rehearsal.out(name), ignore_errors=True)
        run(mbeir_cot("train", TRAIN, *rehearsal.sets_of_training(name, steps)), log=rehearsal.log(f"train-{name}"))
        after = lines_of(rehearsal.out(name) / "trace" / "metrics.jsonl")
        return f"{len(after)} steps; loss {after[0]['total']:.2f} -> {after[-1]['total']:.2f}"

    return stage


def evaluate(name: str) -> Callable[[Rehearsal], str]:
    def stage(rehearsal: Rehearsal) -> str:
        command, log = mbeir_cot("eval", rehearsal.out(name)), rehearsal.log(f"eval-{name}")
        run(command, log=log)
        results = json.loads((rehearsal.out(name) / "eval" / "results_test.json").read_text(encoding="utf-8"))
        if not results:
            raise failed(command, log, "scored nothing")
        return f"{len(results)} models and routings scored"

    return stage


def merge(name: str) -> Callable[[Rehearsal], str]:
    """Merges the weights, after a vLLM server has reproduced embeddings and routes."""

    def stage(rehearsal: Rehearsal) -> str:
        if importlib.util.find_spec("vllm") is None:
            raise StageSkipped("vLLM is not installed")
        out = rehearsal.directory / f"merged-{name}"
        shutil.rmtree(out, ignore_errors=True)
        said = run(mbeir_cot("merge", rehearsal.out(name), out), log=rehearsal.log(f"merge-{name}"))
        if not (out / "merge_report.json").is_file():
            raise StageFailed(f"merge printed {said[-200:]!r} and wrote no report to {out}")
        return (out / "merge_report.json").read_text(encoding="utf-8").replace("\n", " ").strip("{} ")

    return stage


def run_tests(*paths: str) -> Callable[[Rehearsal], str]:
    """Runs the given tests, as far as this checkout has them."""

    def stage(rehearsal: Rehearsal) -> str:
        there = [path for path in paths if (ROOT / path).is_file()]
        if not there:
            raise StageSkipped("these tests are not in this checkout")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *there]
        said = run(command, log=rehearsal.log("tests"))
        return said.strip().splitlines()[-1].strip("= ")

    return stage


STAGES: Final = (
    Stage("models", "checkpoints in the published layouts, with the real vocabulary", write_models),
    Stage("data", "a small M-BEIR; the shipped build with an oracle as teacher", write_data, ("models",)),
    Stage("teacher", "serve, teacher check, preview: vLLM with the 3B layout", ask_teacher, ("models", "data")),
    Stage("train-7b", "the shipped 7B recipe: train, kill, resume", train_and_resume("7b"), ("data",)),
    Stage("eval-7b", "M-BEIR's table for it", evaluate("7b"), ("train-7b",)),
    Stage("merge-7b", "merged weights, reproduced by vLLM", merge("7b"), ("train-7b",)),
    Stage("train-3b", "the same recipe with a tied head", train_some("3b"), ("data",)),
    Stage("eval-3b", "M-BEIR's table for it", evaluate("3b"), ("train-3b",)),
    Stage("train-qwen3", "the same recipe on Qwen3-VL", train_some("qwen3"), ("data",)),
    Stage("eval-qwen3", "M-BEIR's table for it", evaluate("qwen3"), ("train-qwen3",)),
    Stage("placement", "placement of servers on simulated GPUs", run_tests(*STAND_INS)),
    Stage("endpoints", "check, remedies and build with strict and thinking fake servers, and a proxy", run_tests(*ENDPOINTS)),
)


def _sets(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
