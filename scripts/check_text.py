#!/usr/bin/env python3
"""Fixes white space in text files, and exits with 1 if a file was changed: pre-commit's hooks of the same names, offline.

scripts/check_text.py end-of-file|trailing-whitespace FILE...
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def with_one_end(text: bytes) -> bytes:
    return text.rstrip(b"\r\n") + b"\n" if text.strip(b"\r\n") else b""


def without_trailing_space(text: bytes) -> bytes:
    return re.sub(rb"[ \t]+(?=\r?$)", b"", text, flags=re.MULTILINE)


CHECKS = {"end-of-file": with_one_end, "trailing-whitespace": without_trailing_space}


def main(check: str, *names: str) -> int:
    wrong = 0
    for path in map(Path, names):
        before = path.read_bytes()
        after = CHECKS[check](before)
        if after != before:
            path.write_bytes(after)
            print(f"fixed {path}")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
