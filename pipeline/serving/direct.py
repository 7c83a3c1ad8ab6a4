"""Requests to servers of our own: straight to them, whatever proxy the shell names for the world outside."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPResponse

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def opened(request: str | urllib.request.Request, *, timeout: float) -> HTTPResponse:
    """As urllib.request.urlopen, past all proxies."""
    answer: HTTPResponse = _OPENER.open(request, timeout=timeout)
    return answer


def health(url: str, *, timeout: float = 5.0) -> str | None:
    """None for a server that is well; else why not: `HTTP …` where it answers, else the connection's error."""
    try:
        with opened(url, timeout=timeout) as answer:
            return None if answer.status == 200 else f"HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except OSError as error:
        return str(getattr(error, "reason", error))
