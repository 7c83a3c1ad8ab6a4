"""Turns uncaught exceptions into one line for known causes, and into a file with the traceback for bugs of the program.

A library's exception is recognised by the module of its class, or by the library whose code raised it.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

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
_OF_FILES: Final = frozenset({"ArrowInvalid", "ArrowIOError", "ArrowCapacityError", "ArrowMemoryError"})
_OUT_OF_MEMORY: Final = (
    "use smaller batches (training: batch.micro_batch_size; evaluation: evaluation.candidate_batch_size), or a larger machine"
)
_BY_ERRNO: Final = {
    errno.ENOSPC: ("the disk is full", "free space"),
    errno.EDQUOT: ("the disk quota is used up", "free space or raise the quota"),
    errno.EROFS: ("the file system is read-only", "name another directory"),
    errno.EACCES: ("no permission", "check the permissions, or name another directory"),
    errno.EPERM: ("not permitted", "check the permissions, or name another directory"),
    errno.EMFILE: ("too many files are open", "raise the limit: ulimit -n 65536"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs, or raise fs.file-max"),
    errno.ENOMEM: ("no memory is left", "close other programs, or use a larger machine"),
    errno.EIO: ("the disk reports an input/output error", "check the disk and the system's log"),
    errno.ESTALE: ("the network file system has lost a file", "mount it again"),
    errno.ENAMETOOLONG: ("a path is too long", "name a shorter directory"),
    errno.ENOENT: ("a file is missing", "it was removed in the meantime, or a directory is not mounted"),
}


def explained(error: BaseException) -> CotError | None:
    """The error with a remedy; None for a bug of the program."""
    cause: BaseException | None = error
    while cause is not None:  # our error may have passed through Ray or a process pool
        if isinstance(cause, CotError):
            return cause
        inner = getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    message = _first_line(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return CotError(f"no memory is left: {message}", f"{_OUT_OF_MEMORY}; {_AGAIN}")
    if isinstance(error, UnicodeDecodeError):
        text_file = _text_file(error.__traceback__)
        which = f"{text_file} is not UTF-8 text" if text_file is not None else "a text is not UTF-8"
        return CotError(f"{which}: {message}", "write the file as UTF-8, or download it again")
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        what, remedy = _BY_ERRNO[error.errno]
        place = f": {error.filename}" if error.filename else ""
        return CotError(f"{what}{place}", f"{remedy}; {_AGAIN}")
    if type(error).__name__ == "SafetensorError" and (number := number_of(error)) in _BY_ERRNO:  # given in words
        return explained(OSError(number, message))
    library = _library(error)
    if library is None:
        return None
    what, remedy = _LIBRARIES[library]
    return CotError(f"{what}: {type(error).__name__}: {message}", f"{remedy}; {_AGAIN}. With --debug the traceback is shown")


def _library(error: BaseException) -> str | None:
    """The library that defines the exception, or whose code raised it."""
    package = type(error).__module__.split(".")[0]
    if package == "pyarrow" and type(error).__name__ not in _OF_FILES:
        return None  # a wrong type or name is our bug
    if package in _LIBRARIES:
        return package
    raised = _raised_in(error.__traceback__)
    # a TypeError or IndexError in a library comes from our misuse of it
    return raised if isinstance(error, OSError | ValueError | RuntimeError | ImportError) else None


def _raised_in(trace: TracebackType | None) -> str | None:
    """The last known library in the traceback, unless it called back into our code."""
    library = None
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]
        if package in _LIBRARIES:
            library = package
        elif package in ("pipeline", "trainer", "schemas", "prompts", "pocket", "data_cards"):
            library = None
        trace = trace.tb_next
    return library


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
