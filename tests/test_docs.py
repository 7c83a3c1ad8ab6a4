"""Everything in README, CONTRIBUTING and docs/ exists and runs: commands with their options, settings, files, links, snippets."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import EnumType
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from mbeir_cot.app import app
from pocket.world.write import write_world
from schemas.config import BuildConfig
from schemas.training import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def shown(page: Path) -> Iterator[str]:
    """Yields each line of the page's code blocks and each piece of inline code; joins continued lines and drops comments."""
    blocks = re.findall(r"```(?!py|mermaid|yaml)\w*\n(.*?)```", page.read_text(), re.DOTALL)
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    yield from (re.split(r"\s#\s", code)[0] for code in (*lines, *inline))


def commands(page: Path) -> Iterator[str]:
    """Yields the text after `mbeir-cot` of each command on the page."""
    for code in shown(page):
        for part in re.split(r"&&|;", code):
            if match := re.search(r"(?:^|[\s/])mbeir-cot (?!:)(.+)", part.replace("-m mbeir_cot", "mbeir-cot")):
                yield match[1]


@functools.cache
def program() -> Any:
    return typer.main.get_command(app)


def unknown(command: str) -> str | None:
    """Returns what is unknown in a command: a sub-command, an option, or its listed values. `a|b` are alternatives."""
    words = re.sub(r"\s*\|\s*", "|", re.sub(r"\[(--[^]]+)\]", r"\1", command)).split()
    found = [program()]
    while words and all(hasattr(one, "commands") for one in found):
        names = words.pop(0).split("|")
        if absent := [name for name in names if any(name not in one.commands for one in found)]:  # type: ignore[attr-defined]
            return f"no command {absent[0]!r}" if not absent[0].startswith("--") else None
        found = [one.commands[name] for one in found for name in names]  # type: ignore[attr-defined]
    options = {
        name: parameter for one in found for parameter in one.params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    for word, value in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--") and word not in options and word != "--help":
            return f"no option {word}"
        kind = options[word].type_descriptor.annotation if word in options else None
        choices = {str(one) for one in kind} if isinstance(kind, EnumType) else set()
        if choices and not value.isupper() and not ({value} < choices or set(value.split("|")) == choices):
            return f"{word} takes {'|'.join(sorted(choices))}"
    return None


def is_setting(model: type[BaseModel], key: str) -> bool:
    name, _, rest = key.partition(".")
    field = model.model_fields.get(name)
    if field is None or not rest:
        return field is not None
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) and is_setting(kind, rest) for kind in kinds)


def anchors(page: Path) -> set[str]:
    """Returns the anchors of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_checks_find_errors() -> None:
    assert unknown("build CONFIG [--limit N]") is None
    assert unknown("ledger stats|verify|compact DIR") is None
    assert unknown("ledger stats|mislay DIR") == "no command 'mislay'"
    assert unknown("builds CONFIG") == "no command 'builds'"
    assert unknown("build CONFIG [--limits N]") == "no option --limits"
    assert unknown("export DIR --format lamra --out O") is None
    assert str(unknown("export DIR --format lamra | vlm2vec --out O")).startswith("--format takes lamra|")
    assert is_setting(TrainConfig, "batch.micro_batch_size")
    assert not is_setting(TrainConfig, "batch.chunks")
    assert is_setting(BuildConfig, "verifier.server.count")
    assert not is_setting(BuildConfig, "verifier.count")


@pages
def test_every_command_exists_with_its_options(page: Path) -> None:
    assert {command: wrong for command in commands(page) if (wrong := unknown(command))} == {}


@pages
def test_every_setting_that_a_command_sets_exists(page: Path) -> None:
    keys = [key for command in shown(page) for key in re.findall(r"--set '?([a-z_.]+)=", command)]
    assert [key for key in keys if not is_setting(BuildConfig, key) and not is_setting(TrainConfig, key)] == []


@pages
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for code in shown(page) for name in re.findall(r"(?:^|&& )make ([a-z-]+)", code)}
    assert named <= targets


@pages
def test_every_module_that_is_run_exists_with_its_options(page: Path) -> None:
    for code in shown(page):
        if match := re.match(r"(?:\S*/)?python (?:-m ([\w.]+)|([\w/]+\.py))(.*)", code):
            module, script, arguments = match.groups()
            spec = importlib.util.find_spec(module) if module else None
            path = ROOT / script if script else Path(spec.origin if spec and spec.origin else "")
            assert path.is_file(), code
            package = path.parent.glob("*.py") if path.name == "__init__.py" else [path]
            source = "\n".join(one.read_text() for one in package)
            names = {option[2:].replace("-", "_") for option in re.findall(r"--[a-z-]+", arguments)}
            assert {name for name in names if not re.search(rf"\b{name}\b", source.replace("-", "_"))} == set(), code


@pages
def test_every_file_of_the_project_that_is_named_exists(page: Path) -> None:
    tops = "bench|configs|data_cards|deploy|docs|mbeir_cot|pipeline|pocket|prompts|schemas|scripts|tests|trainer"
    named = {name for code in shown(page) for name in re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./-]*\w", code)}
    named = {name for name in named if "NAME" not in name}
    assert {name for name in named if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()} == set()


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    wrong = []
    for target in targets:
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not target.startswith("https://") and not (there.exists() and (not anchor or anchor in anchors(there))):
            wrong.append(target)
    assert wrong == []


def test_readme_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md|CONTRIBUTING\.md)", (ROOT / "README.md").read_text()))
    assert linked == {str(page.relative_to(ROOT)) for page in PAGES[1:]}


def run(code: str, tmp_path: Path, cwd: Path = ROOT) -> str:
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "MBEIR_COT_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_way_to_load_is_shown() -> None:
    text = "\n".join(snippets(ROOT / "docs" / "loading.md"))
    for wanted in ("load_dataset", "streaming=True", "DataLoader", "duckdb", "polars", "CandidatePool"):
        assert wanted in text


@pytest.mark.slow
def test_the_snippets_run(pictured_build: Path, small_world: Path, tmp_path: Path) -> None:
    # in one process, because importing torch and datasets takes seconds
    (tmp_path / "build" / "pocket").mkdir(parents=True)
    (tmp_path / "build" / "pocket" / "dataset").symlink_to(pictured_build / "dataset")
    codes = [code for code in snippets(ROOT / "README.md") if "TraceEmbedder" not in code]  # see test_python_pages.py
    codes += snippets(ROOT / "docs" / "loading.md")
    body = "\n".join(
        f"def snippet_{i}():\n" + "".join(f"    {line}\n" for line in code.splitlines()) + f"snippet_{i}()"
        for i, code in enumerate(codes)
    )
    given = f"DATASET, MBEIR = {str(pictured_build / 'dataset')!r}, {str(small_world)!r}"
    said = run(f"{given}\n{body}", tmp_path, cwd=tmp_path)
    assert re.match(r"\d+ \d+\n\w[^<]+<\|emb\|>", said)  # the output of README's snippet
    assert "think_rate" in said


@pytest.mark.slow
def test_the_readers_snippet_runs(tmp_path: Path) -> None:
    write_world(tmp_path / "build" / "pocket" / "world", train_queries=64)
    (code,) = snippets(ROOT / "docs" / "mbeir.md")
    run(f"{code}\nassert isinstance(text, str) and positives and line == 60", tmp_path, cwd=tmp_path)


def test_the_zero_shot_snippet_runs(tmp_path: Path) -> None:
    data = tmp_path / "zero-shot" / "sugar-crepe" / "data"
    data.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "trainer" / "zero_shot" / "sugar_crepe" / "swap_obj.json", data)
    (code,) = snippets(ROOT / "docs" / "zero-shot.md")
    run(f"{code}\nassert list(parts) == ['sugar-crepe/swap_obj'] and len(queries) == 245", tmp_path, cwd=tmp_path)


def test_all_python_snippets_are_run() -> None:
    shown = {"README.md", "loading.md", "mbeir.md", "python.md", "serving.md", "zero-shot.md"}
    assert {page.name for page in PAGES if snippets(page)} == shown


@pytest.mark.slow
def test_the_cards_snippet_runs(pictured_build: Path, tmp_path: Path) -> None:
    (code,) = snippets(pictured_build / "dataset" / "README.md")
    code = code.replace("PATH_OR_REPO", str(pictured_build / "dataset"))
    run(f"{code}\nassert len(reasoning) and len(rejected)", tmp_path)
