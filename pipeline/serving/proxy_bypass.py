"""Requests to our own servers, which bypass any proxy."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def opened(request: str | urllib.request.Request, *, timeout: float) -> HTTPResponse:
    """Like urllib.request.urlopen, but without proxies."""
    answer: HTTPResponse = _OPENER.open(request, timeout=timeout)
    return answer


def health(url: str, *, timeout: float = 5.0) -> str | None:
    """None for a healthy server; otherwise why not: `HTTP …` if it answers, else the connection error."""
    try:
        with opened(url, timeout=timeout) as answer:
            return None if answer.status == 200 else f"HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except OSError as error:
        return str(getattr(error, "reason", error))
    except HTTPException as error:
        return f"no HTTP answer ({error!r})"
