from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.made_once import made_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from bench.oracle import Oracle

gc.disable()  # until all is imported (see pytest_collection_finish)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") != "no" and "PYTEST_XDIST_WORKER" not in os.environ:
        return  # this process runs no tests: the others start once it has
    import hypothesis

    # No deadline, because it would measure the machine: an example takes longer if other tests run in parallel.
    hypothesis.settings.register_profile("tests", deadline=None)
    hypothesis.settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Garbage collection passes over what is imported, which is most of the memory and stays."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Libraries of C++ would report all that is frozen as leaked."""
    gc.unfreeze()


DEAR = {"pictured_build", "finished", "real_qwen", "world"}
"""Fixtures that build, train, fetch or write a whole pocket world: a test that uses one is slow."""


LONGEST = (
    "e2e/test_interruptions.py",
    "e2e/test_pocket_build.py",
    "trainer/training/test_distributed.py",
    "pipeline/teacher/test_real_server.py",
    "bench/test_rehearse.py",
    "faults/test_disks.py",
    "trainer/release/test_merge.py",
    "trainer/embedding/test_vllm_engine.py",
    "trainer/evaluation/test_evaluate.py",
    "trainer/evaluation/test_report.py",
    "trainer/service/test_service.py",
    "trainer/training/test_train.py",
    "e2e/test_build.py",
)
"""Files that take more than about 30 s. They come first, because two workers take whole files: the last should be short."""
PLACES = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out a file whose tests are all slow if no slow test is wanted: importing what such files need takes seconds."""
    if "not slow" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    return (
        re.search(r"^pytestmark = .*mark\.slow\b", collection_path.read_text(encoding="utf-8"), re.MULTILINE) is not None
        or None
    )


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: PLACES.get(item.path, len(PLACES)))
    for item in items:
        if isinstance(item, pytest.Function) and DEAR.intersection(item.fixturenames):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The M-BEIR root of a small pocket world. Shared: copy it before you change it."""
    from pocket.world.write import write_world

    def write(directory: Path) -> None:
        assert write_world(directory / "w", seed=23, train_queries=480)

    return made_once(tmp_path_factory, "small-world", write) / "w" / "mbeir"


@pytest.fixture(scope="session")
def one_oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    from bench.oracle import Oracle

    with Oracle(tmp_path_factory.mktemp("oracle") / "oracle.log") as server:
        yield server


@pytest.fixture
def oracle(one_oracle: Oracle) -> Oracle:
    """One server for all tests, with an empty log. Start your own if requests may still be on their way when the test ends."""
    one_oracle.log.write_text("")
    return one_oracle


@pytest.fixture(scope="session")
def pictured_build(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished build's directory, with records of both routes, rejections and the config with_images. Shared: copy it first."""
    from bench.oracle import Oracle
    from tests.support.cli import mbeir_cot

    def build(directory: Path) -> None:
        settings = {"verify__threshold": 0.9, "output__with_images": True, "output__synthetic": True}
        with Oracle(directory / "oracle.log") as server:
            done = mbeir_cot("build", server.config(directory, small_world, **settings), "--quiet")
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once(tmp_path_factory, "pictured", build) / "out"


@pytest.fixture(scope="session")
def real_qwen(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Qwen2.5's real tokenizer (151,665 entries)."""
    from bench.real_vocabulary import real_tokenizer

    directory = tmp_path_factory.getbasetemp()
    shared = directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory
    return real_tokenizer(shared / "real-vocabulary")
