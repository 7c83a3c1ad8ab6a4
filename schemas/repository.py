"""Names of repositories on the Hub."""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+").fullmatch


def is_repository_name(name: str) -> bool:
    """Whether it has the form ORG/NAME. A relative path may have it too: look for a directory first."""
    return _NAME(name) is not None
