"""Images on another disk: one module decides the allowed roots, and every command that opens images takes the option."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main

from pipeline.config import load_config
from pipeline.dataset.training_store import training_store
from pipeline.mbeir.check import check
from pipeline.mbeir.image_store import ImageProblem
from pipeline.mbeir.stats import collect_stats
from pipeline.mbeir.stores import build_store
from schemas.config import BuildConfig
from schemas.training import TrainConfig
from tests.pipeline.mbeir.conftest import COCO
from tests.support.cli import mbeir_cot
from tests.support.sources import nodes

ROOT = Path(__file__).parents[3]
PICTURE = f"{COCO}/COCO_1.jpg"
OPENING = (
    ["build", "preview", "estimate", "reroute", "report", "export", "train", "eval", "index", "merge"],
    {"mbeir": ["check", "stats"], "teacher": ["check"], "pocket": ["sheet"]},
)


@pytest.fixture
def linked(mbeir: Path) -> Path:
    """An M-BEIR root whose images are on another disk."""
    disk = mbeir.parent / "disk"
    disk.mkdir()
    (mbeir / "mbeir_images").rename(disk / "images")
    (mbeir / "mbeir_images").symlink_to(disk / "images")
    return mbeir


def test_only_one_module_decides_where_images_may_be() -> None:
    made = {
        path.relative_to(ROOT).as_posix()
        for package in ("mbeir_cot", "pipeline", "trainer", "pocket", "bench")
        for path in (ROOT / package).rglob("*.py")
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ImageStore"
    }
    assert made == {"pipeline/mbeir/stores.py", "pipeline/dataset/training_store.py"}


def test_every_command_that_opens_images_has_the_option() -> None:
    from mbeir_cot.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    alone, grouped = OPENING
    for command in [*(commands[name] for name in alone), *(commands[g].commands[n] for g, ns in grouped.items() for n in ns)]:
        assert any("--image-root" in parameter.opts for parameter in command.params), command.name


def test_check_names_the_option_that_helps(linked: Path) -> None:
    refused = mbeir_cot("mbeir", "check", linked)
    assert refused.returncode == 1
    assert "image_outside_root" in refused.stdout
    option = re.search(r"--image-root", refused.stdout)
    assert option is not None
    for place in (linked / "mbeir_images", linked.parent / "disk"):  # the link itself, or its target
        done = mbeir_cot("mbeir", "check", linked, option[0], place)
        assert done.returncode == 0, done.stdout
    nowhere = mbeir_cot("mbeir", "check", linked, "--image-root", linked.parent / "none")
    assert nowhere.returncode == 2
    assert "does not" in nowhere.stderr  # typer wraps the lines of its boxes


def test_check_and_stats_count_images_elsewhere(linked: Path, cache: Path) -> None:
    roots = (linked.parent / "disk",)
    assert not check(linked).ok
    assert check(linked, decode=True, image_roots=roots).ok
    assert {pool.missing_images for pool in collect_stats(linked, image_roots=roots, cache_dir=cache).pools} == {0}


BUILD = "mbeir: {root}\nout: out\nteacher:\n  hosting: external\n  endpoints: [{{url: 'http://x/v1', model: m}}]\n"
TRAIN = "model: {{base: b}}\ndata: {{dataset: {dataset}, mbeir: {root}}}\nout: run\n"


def test_builds_and_training_runs_use_config_option_and_the_datasets_build(linked: Path, tmp_path: Path) -> None:
    disk = linked.parent / "disk"
    build, train = tmp_path / "build.yaml", tmp_path / "train.yaml"
    build.write_text(BUILD.format(root=linked), encoding="utf-8")
    train.write_text(TRAIN.format(root=linked, dataset="org/name"), encoding="utf-8")
    for store in (build_store(load_config(build, BuildConfig)), training_store(load_config(train, TrainConfig))):
        with pytest.raises(ImageProblem, match=r"--image-root DIR .*input\.image_roots.*data\.image_roots"):
            store.open(PICTURE)
    by_config = (f"input.image_roots=[{disk}]", f"data.image_roots=[{disk}]")
    for roots, sets in (((), by_config), ((disk,), ("input.limit=3", "data.workers=1"))):
        build_store(load_config(build, BuildConfig, sets[:1], image_roots=roots)).open(PICTURE)
        training_store(load_config(train, TrainConfig, sets[1:], image_roots=roots)).open(PICTURE)
    both = load_config(build, BuildConfig, ("input.image_roots=[/a]",), image_roots=(disk,))
    assert both.input.image_roots == (Path("/a"), disk)


def test_a_training_run_uses_the_roots_of_the_datasets_build(linked: Path, pictured_build: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "build"
    shutil.copytree(pictured_build, copied, ignore=shutil.ignore_patterns("ledger", "with_images"))
    settings = BuildConfig.model_validate_json((copied / "work/config.json").read_bytes())
    choice = settings.input.model_copy(update={"image_roots": (linked.parent / "disk",)})
    (copied / "work/config.json").write_text(settings.model_copy(update={"input": choice}).model_dump_json(), encoding="utf-8")
    train = tmp_path / "train.yaml"
    train.write_text(TRAIN.format(root=linked, dataset=copied), encoding="utf-8")
    training_store(load_config(train, TrainConfig)).open(PICTURE)
