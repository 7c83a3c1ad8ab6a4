"""`mbeir-cot mteb`: a trained embedder on tasks of MTEB."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mbeir_cot import printing
from mbeir_cot.commands.train import Run, Set
from mbeir_cot.options import choose


def mteb(
    run: Run,
    tasks: Annotated[list[str], typer.Option("--tasks", help="A task's name as MTEB spells it; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Directory for MTEB's results, which are kept between calls, and routes.json.")],
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    route: Annotated[str, typer.Option(help="adaptive: as the embedder decides; bypass or reason: every query.")] = "adaptive",
    name: Annotated[str, typer.Option(help="ORG/NAME under which the results are kept.")] = "mbeir-cot/trace",
    overrides: Set = None,
) -> None:
    """Scores an embedder with MTEB, which must be installed separately (`pip install mteb`).

    Queries get the task's own prompt as instruction. Tasks with results in OUT are not run again. MTEB downloads to its usual
    place (HF_HOME).
    """
    import json

    from pipeline.files.durable import replace_text
    from schemas.errors import ConfigError, InputError
    from trainer.embedding.trace_embedder import TraceEmbedder
    from trainer.evaluation.mteb_model import MtebModel
    from trainer.zero_shot.run import ROUTES

    choose("--route", route, tuple(ROUTES))
    try:
        import mteb as library
    except ImportError as error:
        raise ConfigError(f"mteb cannot be imported: {error}", "pip install 'mteb>=2'") from error
    try:
        chosen = library.get_tasks(tasks=tasks)
    except (KeyError, ValueError) as error:
        raise InputError(f"--tasks {', '.join(tasks)}: {error}", "`mteb available-tasks` lists them") from error
    model = MtebModel(TraceEmbedder.load(run, variant, overrides=overrides or ()), name, route=ROUTES[route])
    results = library.evaluate(model, chosen, cache=library.ResultCache(out), show_progress_bar=False)
    replace_text(out / "routes.json", json.dumps(model.routes, indent=1) + "\n")
    table = Table("task", "main score", "think rate", "tokens/query", box=None)
    for result in results.task_results:
        count = model.routes.get(result.task_name)
        queries = max(1, count["queries"]) if count is not None else 1
        costs = (f"{count['reasoned'] / queries:.0%}", f"{count['tokens'] / queries:.1f}") if count is not None else ("", "")
        table.add_row(escape(result.task_name), f"{result.get_score():.4f}", *costs)
    console = printing.console()
    console.print(table)
    console.print("think rate: only for tasks that were run now, not for kept results")
    console.print(escape(str(out)))
