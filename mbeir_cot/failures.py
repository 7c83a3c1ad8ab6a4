"""Turns uncaught exceptions into one line for known causes, and into a file with the traceback for bugs of the program.

A library's exception is recognised by the module of its class, or by the library whose code raised it.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final

from schemas import os_errors
from schemas.errors import CotError
from schemas.os_errors import number_of

FAULT: Final = 70
"""Exit code of a fault of the program (EX_SOFTWARE)."""

_AGAIN: Final = "finished work is kept: run the same command again"
_LIBRARIES: Final = {
    "transformers": (
        "transformers cannot use a model",
        "check the model's name, revision and files (for a Hub repository also the network and HF_TOKEN)",
    ),
    "safetensors": ("a file of weights cannot be read", "download or write it again: it is cut off or not a safetensors file"),
    "tokenizers": ("a tokenizer's file cannot be read", "download the model again"),
    "peft": ("PEFT cannot use an adapter", "check that the adapter and the base model belong together"),
    "huggingface_hub": ("the Hugging Face Hub", "check the network, HF_ENDPOINT, HF_TOKEN and the repository's name"),
    "httpx": ("the network", "check the network, its proxy (https_proxy) and HF_ENDPOINT"),
    "httpx2": ("the network", "check the network, its proxy (https_proxy) and HF_ENDPOINT"),
    "aiohttp": ("the network", "check the network and the endpoint's address"),
    "ray": ("Ray", "check the cluster (`ray status`) and RAY_ADDRESS; without RAY_ADDRESS this machine is used"),
    "pyarrow": ("a Parquet or Arrow file cannot be read or written", "build or convert it again: it is cut off or damaged"),
    "datasets": ("datasets cannot read a dataset", "build it again, or clear its cache (HF_DATASETS_CACHE)"),
    "PIL": ("an image cannot be read", "`mbeir-cot mbeir check DIR --decode` names the file"),
    "yaml": ("a YAML file cannot be read", "correct the file"),
    "pydantic_core": ("a file of settings or state cannot be read", "it is damaged or from another version: create it again"),
    "json": ("a JSON file cannot be read", "it is cut off or damaged: create or download it again"),
    "orjson": ("a JSON file cannot be read", "it is cut off or damaged: create or download it again"),
    "jinja2": ("a prompt template cannot be read", "correct the template"),
    "vllm": ("vLLM", "see the server's log; `mbeir-cot teacher check CONFIG` tests the teacher alone"),
    "faiss": ("faiss", "check the description of the approximate index (--approximate)"),
}
"""Package -> (what failed, what to do)."""
_OURS: Final = frozenset({"pipeline", "trainer", "schemas", "prompts", "pocket", "data_cards"})
_FRAME: Final = re.compile(r'^ *File "(.+)", line', re.MULTILINE)
"""A frame in the text of a traceback."""
_OF_FILES: Final = frozenset({"ArrowInvalid", "ArrowIOError", "ArrowCapacityError", "ArrowMemoryError"})
_OUT_OF_MEMORY: Final = (
    "use smaller batches (training: batch.micro_batch_size; evaluation: evaluation.candidate_batch_size), or a larger machine"
)


def explained(error: BaseException) -> CotError | None:
    """The error with a remedy; None for a bug of the program."""
    cause: BaseException | None = error
    while cause is not None:  # our error may have passed through Ray or a process pool
        if isinstance(cause, CotError):
            return cause
        inner = getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    error, packages = _raised_in_task(error)
    message = _first_line(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return CotError(f"no memory is left: {message}", f"{_OUT_OF_MEMORY}; {_AGAIN}")
    if isinstance(error, UnicodeDecodeError):
        text_file = _text_file(error.__traceback__)
        which = f"{text_file} is not UTF-8 text" if text_file is not None else "a text is not UTF-8"
        return CotError(f"{which}: {message}", "write the file as UTF-8, or download it again")
    if isinstance(error, OSError) and _is_of_a_file(error):
        what, remedy = os_errors.explained(error)
        place = f": {error.filename}" if error.filename is not None else ""
        return CotError(f"{what}{place}", f"{remedy}; {_AGAIN}")
    if type(error).__name__ == "SafetensorError" and (number := number_of(error)) is not None:  # given in words
        refused = OSError(number, message)
        if _is_of_a_file(refused):
            return explained(refused)
    library = _library(error, packages)
    if library is None:
        return None
    what, remedy = _LIBRARIES[library]
    return CotError(f"{what}: {type(error).__name__}: {message}", f"{remedy}; {_AGAIN}. With --debug the traceback is shown")


def summary(error: BaseException) -> str:
    """The exception in a line."""
    raised, _ = _raised_in_task(error)
    return f"{type(raised).__name__}: {_first_line(raised)}"


def _is_of_a_file(error: OSError) -> bool:
    """Whether the system refused a file. If none is named, the number may also be of a connection, or of a bug (EINVAL)."""
    if error.filename is not None:
        return error.errno is not None
    known = error.errno not in (None, errno.EINVAL) and os_errors.refused_by_system(error) is not None
    return known or error.errno in os_errors.ABSENT


def _raised_in_task(error: BaseException) -> tuple[BaseException, Iterable[str]]:
    """The exception as it was raised, also in a Ray task, and the packages of its traceback. Ray keeps the latter as text."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and any(kind.__name__ == "RayTaskError" for kind in type(error).__mro__):
        return cause, [_package(Path(path).parts) for path in _FRAME.findall(str(error))]
    return error, _packages(error.__traceback__)


def _library(error: BaseException, packages: Iterable[str]) -> str | None:
    """The library that defines the exception, or whose code raised it."""
    package = type(error).__module__.split(".")[0]
    if package == "pyarrow" and type(error).__name__ not in _OF_FILES:
        return None  # a wrong type or name is our bug
    if package in _LIBRARIES:
        return package
    raised = _last_library(packages)
    # a TypeError or IndexError in a library comes from our misuse of it
    return raised if isinstance(error, OSError | ValueError | RuntimeError | ImportError) else None


def _last_library(packages: Iterable[str]) -> str | None:
    """The last known library in the traceback, unless it called back into our code."""
    library = None
    for package in packages:
        if package in _LIBRARIES:
            library = package
        elif package in _OURS:
            library = None
    return library


def _packages(trace: TracebackType | None) -> list[str]:
    packages = []
    while trace is not None:
        packages.append(str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0])
        trace = trace.tb_next
    return packages


def _package(path: tuple[str, ...]) -> str:
    """The package of a source file's path, given by its parts."""
    if "site-packages" in path:
        return path[path.index("site-packages") + 1]
    return next((part for part in reversed(path) if part in _OURS), "")


def _text_file(trace: TracebackType | None) -> Path | None:
    """The file whose text was being read."""
    found: Path | None = None
    while trace is not None:
        reader = trace.tb_frame.f_locals.get("self")
        found = reader if isinstance(reader, Path) else found
        trace = trace.tb_next
    return found


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__


def write_fault(error: BaseException) -> Path | None:
    """Writes the traceback of a bug to a file. Returns its path, or None if it cannot be written."""
    from schemas import __version__  # noqa: PLC0415

    lines = [
        f"mbeir-cot {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"command: {' '.join(sys.argv)}",
        f"directory: {Path.cwd()}",
        "",
        *traceback.format_exception(error),
    ]
    name = f"mbeir-cot-fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path(tempfile.gettempdir()), Path.cwd()):
        try:
            (folder / name).write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return folder / name
    return None
