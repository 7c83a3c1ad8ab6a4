"""Passes the driver's environment variables to servers and workers on any node.

Workers of a running cluster have the environment of `ray start`, not the driver's, so a token, mirror or proxy set in the
user's shell would be missing. They get it as an argument of their actor. Ray's `runtime_env` would also do, but it keeps
variables in plain text in its state and logs, and some are secrets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from pipeline.files.run_log import DEBUG_VARIABLE

_PREFIXES: Final = ("HF_", "HUGGING_FACE_", "NCCL_", "VLLM_")
_NAMES: Final = frozenset(
    {"http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"}
    | {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", DEBUG_VARIABLE}
)
_OF_A_NODE: Final = frozenset({"VLLM_HOST_IP", "VLLM_PORT"})
"""Valid only on the driver's machine."""


class Carried(dict[str, str]):
    """Variables for another process. Values are never shown: some are secrets."""

    def __repr__(self) -> str:
        return f"Carried({', '.join(sorted(self))})"

    __str__ = __repr__

    def set(self) -> None:
        """Sets them in this process and its children. The driver's values override the node's own."""
        os.environ.update(self)


def carried(keys: Iterable[str | None] = (), environment: Mapping[str, str] = os.environ) -> Carried:
    """The variables of `environment` that are passed on, including those named in `keys` (from `api_key_env`)."""
    names = {key for key in keys if key}
    return Carried(
        (name, value)
        for name, value in environment.items()
        if name not in _OF_A_NODE and (name.startswith(_PREFIXES) or name in _NAMES or name in names)
    )
