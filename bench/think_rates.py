"""What a smaller think rate costs: the same evaluation, with fewer of the queries that reasoned embedded after their trace.

    python -m bench.think_rates RUN... [--markdown]

A query with a higher probability of the embedding token as its first token is embedded at once first; its bypass embedding is
that of the swap test (`evaluation.swap_test`). Reads the files of `mbeir-cot eval` and embeds nothing. Each figure is the mean
hit@k over dataset-tasks: mean over the runs (seeds), least and greatest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from bench.seeds import Rows, over_seeds, print_table
from mbeir_cot.options import choose
from pipeline.mbeir.layout import Layout
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, SPLITS, EvaluationSplit
from schemas.record import task_of_record
from trainer.embedding.files import EmbeddingFiles
from trainer.evaluation.diagnostics import Ranks, hit_rate
from trainer.evaluation.evaluate_run import SWAP_NONE
from trainer.evaluation.hit_rates import Pool
from trainer.evaluation.query_log import queries_file, read_query_log
from trainer.evaluation.run_files import read_ranks

SHARES: Final = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)
"""Of the queries that reasoned."""
POOLS: Final[tuple[Pool, ...]] = ("single", "union")


def surest(p_direct: Mapping[str, float], share: float) -> frozenset[str]:
    """The share of the queries that reasoned whose routes were the most certain. p_direct: record id -> probability of `<|emb|>`."""
    order = sorted(p_direct, key=lambda identifier: (p_direct[identifier], identifier))
    return frozenset(order[: round(share * len(order))])


def hit_rate_after(reasoning: Collection[str], ids: Sequence[str], own: Ranks, bypass: Ranks) -> float:
    """Mean over dataset-tasks. reasoning: record ids that keep their trace. bypass: ranks of the queries that reasoned, without it.

    NaN where the pool was not searched (`evaluation.union: false`)."""
    if not own:
        return float("nan")
    by_task: dict[str, list[str]] = defaultdict(list)
    for identifier in ids:
        by_task[task_of_record(identifier).name].append(identifier)
    mixed = {identifier: own[identifier] for identifier in ids if identifier in own}
    mixed |= {identifier: ranked for identifier, ranked in bypass.items() if identifier not in reasoning}
    return float(np.mean([hit_rate(of_task, mixed) for of_task in by_task.values()]))


def read_rates(run: Path, world: Path, split: EvaluationSplit) -> list[tuple[float, ...]]:
    """For each share: (think rate, hit rate in local pools, in the union). Raises InputError for a run without evaluation or swap test."""
    entries = read_query_log(queries_file(run / "eval", "trace", split))
    if not entries:
        raise InputError(f"{run} has no evaluation of TRACE on {split}", f"evaluate it: mbeir-cot eval {run}")
    ids = [entry["id"] for entry in entries]
    p_direct = {entry["id"]: entry["p_direct"] for entry in entries if entry["reasoned"]}
    layout = Layout.open(world / "mbeir")
    own, bypass = (
        [read_ranks(EmbeddingFiles(run / "eval", suffix), layout, DATASET_TASKS, pool, split) for pool in POOLS]
        for suffix in ("trace", SWAP_NONE)
    )
    if p_direct and not bypass[0]:
        raise InputError(f"{run} has no swap test", "evaluate it with --set evaluation.swap_test=true")
    rows = []
    for share in SHARES:
        kept = surest(p_direct, share)
        rates = [hit_rate_after(kept, ids, *ranks) for ranks in zip(own, bypass, strict=True)]
        rows.append((len(kept) / len(ids), *rates))
    return rows


def make_rows(runs: Sequence[Sequence[tuple[float, ...]]]) -> Rows:
    """A row for each share, from `read_rates` of each run."""
    return [
        [f"{share:.0%}", *(over_seeds(column) for column in zip(*of_share, strict=True))]
        for share, *of_share in zip(SHARES, *runs, strict=True)
    ]


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    world: Path = Path("build/pocket/world"),
    split: str = "test",
    markdown: Annotated[bool, typer.Option("--markdown", help="As a document's table.")] = False,
) -> None:
    """Prints the table in per cent."""
    of_split: EvaluationSplit = "val" if choose("--split", split, SPLITS) == "val" else "test"
    header = ("think rate", "local", "union")
    print_table(
        "of the queries that reasoned", header, make_rows([read_rates(run, world, of_split) for run in runs]), markdown=markdown
    )


if __name__ == "__main__":
    typer.run(main)
