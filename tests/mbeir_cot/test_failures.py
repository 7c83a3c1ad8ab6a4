"""What the user sees of an exception that no command handled."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mbeir_cot.failures import explained, summary
from schemas import os_errors
from schemas.errors import InputError
from schemas.manifest import Manifest
from tests.support.cli import mbeir_cot


def raised(action: Callable[[], Any]) -> Exception:
    try:
        action()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")


def _carried() -> None:
    try:
        raise InputError("line 3 of a file", "mend it")
    except InputError as error:
        raise RuntimeError("a worker failed") from error


def _ray_task() -> None:
    from ray.exceptions import RayTaskError

    raise RayTaskError("f", "traceback", InputError("line 3 of a file", "mend it"))


def in_task(error: BaseException, text: str = "") -> Exception:
    """As `ray.get` raises it: Ray keeps of the traceback only the text."""
    from ray.exceptions import RayTaskError

    again = RayTaskError("f", f"ray::f()\n{text}", pickle.loads(pickle.dumps(error))).as_instanceof_cause()
    assert isinstance(again, type(error))
    return again  # type: ignore[return-value]


def _ray() -> None:
    from ray.exceptions import RaySystemError

    raise RaySystemError("the cluster went away")


def _hub() -> None:
    from huggingface_hub.errors import HFValidationError

    raise HFValidationError("Repo id must be in the form")


def _transformers() -> None:
    from transformers import AutoConfig

    AutoConfig.from_pretrained("/nonexistent/model")


def _weights_on_a_full_disk() -> None:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def _damaged_weights() -> None:
    from safetensors import safe_open

    safe_open(__file__, "np")


@pytest.mark.parametrize(
    ("action", "words", "remedy"),
    [
        (lambda: Image.open(__file__), "UnidentifiedImageError", "mbeir check DIR --decode"),
        (lambda: yaml.safe_load("a: [1"), "YAML", "correct the file"),
        (lambda: pq.read_table(__file__), "ArrowInvalid", "build or convert it again"),
        (lambda: Manifest.model_validate_json("{"), "ValidationError", "from another version"),
        (lambda: b"\xff".decode("utf-8"), "not UTF-8", "write the file as UTF-8"),
        (_full, "the disk is full: /data/x", "free space"),
        (_weights_on_a_full_disk, "the disk is full", "free space"),
        (_damaged_weights, "a file of weights cannot be read", "download or write it again"),
        (_carried, "line 3 of a file", "mend it"),
        (_ray_task, "line 3 of a file", "mend it"),
        (_ray, "Ray: RaySystemError", "RAY_ADDRESS"),
        (_hub, "HFValidationError", "HF_ENDPOINT"),
        (_transformers, "transformers cannot use a model", "name, revision"),
        (lambda: [].pop() if not bytearray(1 << 62) else None, "no memory is left", "smaller batches"),
    ],
)
def test_known_failures_become_one_line_with_a_remedy(action: Callable[[], Any], words: str, remedy: str) -> None:
    found = explained(raised(action))
    assert found is not None
    assert words in found.problem
    assert "\n" not in found.problem
    assert remedy in found.remedy


OF_FILES = (
    "EISDIR ENOTDIR EEXIST ELOOP ETIMEDOUT ENOTEMPTY EFBIG EBUSY EXDEV EINVAL ENOLCK ENOTCONN ESHUTDOWN EREMOTEIO ESTALE "
    "ENOSPC EDQUOT EROFS EACCES EPERM EMFILE ENFILE ENOMEM EIO ENAMETOOLONG ENOENT"
)


def test_what_a_ray_task_raised_is_explained_as_it_would_be_here() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")
    for error in (full, RuntimeError("x"), MemoryError("x")):
        here, there = explained(error), explained(in_task(error))
        assert str(here) == str(there)
    bug = in_task(KeyError("x"), '  File "/work/trainer/a.py", line 3, in f')
    assert explained(bug) is None
    assert summary(bug) == "KeyError: 'x'"


@pytest.mark.parametrize(
    ("paths", "library"),
    [
        (["/a/trainer/x.py", "/v/lib/python3.11/site-packages/transformers/utils/hub.py"], "transformers cannot use a model"),
        (["/v/site-packages/vllm/v1/engine.py", "/v/site-packages/torch/x.py"], "vLLM"),
        (["/v/site-packages/transformers/trainer/x.py", "/a/schemas/b.py"], None),
        (["/a/bin/x.py"], None),
    ],
)
def test_the_library_that_failed_in_a_ray_task(paths: list[str], library: str | None) -> None:
    text = "\n".join(f'  File "{path}", line 3, in f\n    f()' for path in paths)
    found = explained(in_task(RuntimeError("it says\nso"), text))
    assert (found.problem if found else None) == (f"{library}: RuntimeError: it says" if library else None)


@pytest.mark.parametrize("name", [*OF_FILES.split(), "ENXIO"])
def test_a_refusal_that_names_a_file_is_never_a_bug(name: str) -> None:
    number = getattr(errno, name)
    known = explained(OSError(number, os.strerror(number), "/data/x"))
    assert known is not None
    assert known.problem == f"{os_errors.explained(OSError(number, '')).cause}: /data/x"
    assert "run the same command again" in known.remedy


def test_a_refusal_without_a_file_may_be_of_the_network_or_a_bug() -> None:
    assert explained(OSError(errno.EIO, "Input/output error")) is not None
    for number in (errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EINVAL, errno.EBADF):
        assert explained(OSError(number, os.strerror(number))) is None


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN])
def test_a_connection_of_aiohttp_is_no_file_system(number: int) -> None:
    known = explained(aiohttp.ClientOSError(number, os.strerror(number)))
    assert known is not None
    assert known.problem.startswith("the network:")


@pytest.mark.parametrize(
    "action",
    [
        lambda: {}["x"],
        lambda: int("x"),
        lambda: pa.array([1]).cast(pa.string(), nonsense=True),
    ],
)
def test_bugs_are_not_taken_for_known_failures(action: Callable[[], Any]) -> None:
    assert explained(raised(action)) is None


FAULTY = """
import sys, mbeir_cot.app as main
@main.app.command()
def broken() -> None:
    raise KeyError("[/red] of a fault")
sys.argv = ["mbeir-cot", *sys.argv[1:]]
main.main()
"""


def broken(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FAULTY, "broken", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"TMPDIR": str(tmp_path)} | environment,
        timeout=100,
        check=False,
    )


@pytest.mark.slow
def test_a_bug_is_reported_with_the_path_of_its_traceback(tmp_path: Path) -> None:
    done = broken(tmp_path)
    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    assert "a fault of the program: KeyError: '[/red] of a fault'" in done.stderr
    (report,) = tmp_path.glob("mbeir-cot-fault-*.txt")
    assert str(report) in done.stderr
    assert "Traceback" in report.read_text(encoding="utf-8")
    for shown in (broken(tmp_path, "--debug"), broken(tmp_path, MBEIR_COT_DEBUG="1")):
        assert shown.returncode == 70
        assert "Traceback" in shown.stderr


@pytest.mark.slow
def test_markup_in_a_query_is_text(pictured_build: Path, small_world: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "copy"
    shutil.copytree(pictured_build / "dataset", copied)
    path = next((copied / "data").glob("*.parquet"))
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= {"query_text": "[/red] and [bold] :tiger:", "instruction": "[/]"}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    done = mbeir_cot("show", copied, rows[0]["id"])
    assert done.returncode == 0, done.stderr
    assert "[/red] and [bold] :tiger:" in done.stdout


def test_a_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "allowed.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UnicodeDecodeError) as caught:
        (tmp_path / "allowed.txt").read_text(encoding="utf-8")
    known = explained(caught.value)
    assert known is not None
    assert known.problem.startswith(f"{tmp_path / 'allowed.txt'} is not UTF-8 text")
