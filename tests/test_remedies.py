"""The remedies in messages name existing commands and settings, and work when followed."""

from __future__ import annotations

import ast
import functools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from pydantic import BaseModel

from pipeline.config import load_config
from schemas.config import BuildConfig, StopConfig
from schemas.errors import ConfigError
from schemas.renamed import RENAMED
from schemas.training import TrainConfig
from tests.pipeline.mbeir.conftest import mbeir  # noqa: F401 (a fixture)
from tests.pipeline.mbeir.test_extract import archive, write_parts
from tests.support.cli import mbeir_cot
from tests.support.hub import serve
from tests.support.sources import nodes

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "trainer", "schemas", "pocket", "prompts", "data_cards", "mbeir_cot")


@functools.cache
def texts() -> tuple[tuple[str, str], ...]:
    """(place, text) for every string of the program, with X for interpolated values."""
    return tuple(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in nodes(path):
                where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield where, node.value
                elif isinstance(node, ast.JoinedStr):
                    yield where, "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)


def named_commands() -> list[tuple[str, str]]:
    return sorted({(where, found) for where, text in texts() for found in re.findall(r"`mbeir-cot ([^`]+)`", text)})


@pytest.mark.slow
def test_every_command_that_is_named_exists_with_its_options() -> None:
    from mbeir_cot.app import app

    found = named_commands()
    assert len(found) > 30
    wrong = []
    for where, line in found:
        command: Any = typer.main.get_command(app)
        words = line.replace("…", "").split()
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        if hasattr(command, "commands") and words and not words[0].startswith("--"):
            wrong.append(f"{where}: `mbeir-cot {line}`: no command {words[0]}")
        wrong += [f"{where}: `mbeir-cot {line}`: no option {w}" for w in words if w.startswith("--") and w not in options]
    assert not wrong


def test_no_text_names_a_setting_by_its_old_name() -> None:
    dotted = [old for old in RENAMED if "." in old] + [f"stop.{field}" for field in StopConfig.model_fields]
    old = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, dotted))})(?!\w)")
    pages = [(str(path), path.read_text(encoding="utf-8")) for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]]
    given = [(where, text) for where, text in texts() if not where.startswith("schemas/renamed.py")]
    assert not [f"{where}: {found[0]}" for where, text in [*given, *pages] if (found := old.search(text))]


def keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{before}{name}"
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner, f"{before}{name}.")


def test_every_setting_that_is_named_exists() -> None:
    known = {*keys(BuildConfig), *keys(TrainConfig)}
    sections = {key.split(".")[0] for key in known if "." in key}
    pattern = re.compile(rf"(?<![\w./`@-])(?:{'|'.join(sorted(sections))})(?:\.[a-z_0-9]+)+(?![\w(./-])")
    named = {(where, found) for where, text in texts() if "schemas/renamed.py" not in where for found in pattern.findall(text)}
    assert len(named) > 30
    files = ("json", "py", "yaml", "jsonl", "safetensors", "parquet", "html", "md", "txt", "arrow")
    assert not sorted(f"{w}: {key}" for w, key in named if key not in known and key.rsplit(".", 1)[1] not in files)


BUILD = """
mbeir: /data/M-BEIR
out: out
teacher:
  hosting: managed
  server: {model: org/model}
"""
TRAIN = """
model: {base: org/base}
data: {dataset: org/name, mbeir: /data/M-BEIR}
out: run
"""


@pytest.mark.parametrize(
    ("text", "model", "provoked", "named", "followed"),
    [
        (BUILD, BuildConfig, ["input.image_roots=[/disk]"], "teacher.images: data_url", ["teacher.images=data_url"]),
        (BUILD, BuildConfig, ["input.image_roots=[/disk]"], "teacher.server.media_root", ["teacher.server.media_root=/"]),
        (BUILD, BuildConfig, ["teacher.server=null"], "needs `server`", ["teacher.server={model: m}"]),
        (
            BUILD,
            BuildConfig,
            ["teacher.hosting=external"],
            "needs `endpoints`",
            ["teacher.endpoints=[{url: 'http://x/v1', model: m}]"],
        ),
        (BUILD, BuildConfig, ["teacher.imagse=path"], "did you mean images?", ["-teacher.imagse", "teacher.images=path"]),
        (BUILD, BuildConfig, ["input.datasets=[cir]"], "known: ", ["input.datasets=[cirr]"]),
        (
            TRAIN,
            TrainConfig,
            ["data.image_root=/disk"],
            "did you mean image_roots?",
            ["-data.image_root", "data.image_roots=[/disk]"],
        ),
        (
            TRAIN,
            TrainConfig,
            ["model.train_projector=true", "model.dtype=bfloat16"],
            "set model.autocast",
            ["model.autocast=true"],
        ),
        (
            TRAIN,
            TrainConfig,
            ["variants=[always-reason]"],
            "needs data.always_reason_dataset",
            ["data.always_reason_dataset=org/other"],
        ),
    ],
)
def test_settings_named_by_a_refusal_work(
    tmp_path: Path, text: str, model: type[BaseModel], provoked: list[str], named: str, followed: list[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, model, tuple(provoked))
    assert named in str(caught.value)
    dropped = tuple(f"{key[1:]}=" for key in followed if key.startswith("-"))
    kept = [one for one in provoked if not one.startswith(dropped)] if dropped else provoked
    load_config(path, model, (*kept, *(one for one in followed if not one.startswith("-"))))


def command_of(said: str) -> list[str]:
    """Returns the arguments of the command that a message names."""
    found = re.search(r"`mbeir-cot ([^`]+)`", " ".join(said.split()))
    assert found is not None, said
    return found[1].split()


def _without_union(root: Path) -> None:
    for path in (root / "cand_pool/global").iterdir():
        path.unlink()
    pool = root / "cand_pool/local/mbeir_mscoco_task3_val_cand_pool.jsonl"
    lines = pool.read_text(encoding="utf-8").splitlines()
    pool.write_text("\n".join(line for line in lines if '"9:10"' not in line) + "\n", encoding="utf-8")


def _without_infoseek(root: Path) -> None:
    for path in (root / "cand_pool/global").iterdir():
        path.unlink()


def _lost_image(root: Path) -> None:
    next((root / "mbeir_images/oven_images").rglob("*.jpg")).unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "code"),
    [(_without_union, "positive_in_absent_pool"), (_without_infoseek, "no_pool"), (_lost_image, "image_missing")],
)
def test_commands_named_by_check_work(
    mbeir: Path,  # noqa: F811
    tmp_path: Path,
    damage: Callable[[Path], None],
    code: str,
) -> None:
    """`mbeir check` finds a problem, its remedy is run unchanged, and the next check no longer finds it."""
    hub = tmp_path / "hub"
    shutil.copytree(mbeir, hub, ignore=shutil.ignore_patterns("mbeir_images"))
    contents = {str(p.relative_to(mbeir)): p.read_bytes() for p in sorted((mbeir / "mbeir_images").rglob("*.jpg"))}
    write_parts(hub, archive(contents))
    with serve(hub, "TIGER-Lab/M-BEIR") as server:
        network = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        dest = tmp_path / "dest"
        assert mbeir_cot("mbeir", "fetch", dest, **network).returncode == 0
        damage(dest)
        found = mbeir_cot("mbeir", "check", dest).stdout
        remedy = found[found.index(code) :]
        remedy = remedy[remedy.index("→") :]
        command = [str(dest) if word == "DIR" else word for word in command_of(remedy)]
        done = mbeir_cot(*command, **network)
        assert done.returncode == 0, done.stderr
        assert code not in mbeir_cot("mbeir", "check", dest).stdout


@pytest.mark.slow
def test_the_remedies_lead_to_a_complete_directory(tmp_path: Path) -> None:
    """Starts with nothing and follows each message until the directory is complete."""
    place = tmp_path / "M-BEIR"
    refused = mbeir_cot("mbeir", "check", place)
    assert refused.returncode == 2
    assert "mbeir-cot pocket world DIR" in refused.stderr
    assert mbeir_cot("pocket", "world", place, "--queries", "64").returncode == 0
    nested = mbeir_cot("mbeir", "check", place)
    guess = re.search(r"did you mean (\S+?)\?", " ".join(nested.stderr.split()))
    assert guess is not None, nested.stderr
    assert mbeir_cot("mbeir", "check", guess[1]).returncode == 0


@pytest.mark.slow
def test_remedies_of_export_work(pictured_build: Path, small_world: Path, tmp_path: Path) -> None:
    alone = tmp_path / "dataset"
    shutil.copytree(pictured_build / "dataset", alone)
    export = ["export", str(alone), "--format", "lamra", "--out", str(tmp_path / "out")]
    refused = mbeir_cot(*export)
    assert refused.returncode == 2
    option = re.search(r"name it with (--\w+)", refused.stderr)
    assert option is not None
    assert mbeir_cot(*export, option[1], small_world).returncode == 0
    again = mbeir_cot(*export, option[1], small_world)
    assert "name a new directory, or remove this one" in again.stderr
    shutil.rmtree(tmp_path / "out")
    assert mbeir_cot(*export, option[1], small_world).returncode == 0
