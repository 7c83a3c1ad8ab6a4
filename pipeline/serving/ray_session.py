"""Starts Ray: the cluster of ``RAY_ADDRESS``, or one of this process's own.

A wrong address is reported here within seconds. Ray itself waits more than a minute for a missing cluster, and then ends the
process.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import ray

from schemas.errors import ConfigError, CotError

_PROBE_S: Final = 5.0
_UNSET: Final = "unset RAY_ADDRESS to run on this machine alone"
_OF_HEAD: Final = f"set RAY_ADDRESS=HEAD:6379, the address that `ray status` of a node of the cluster shows, or {_UNSET}"


def start_ray(*, show_workers: bool = False) -> None:
    """Joins the cluster of ``RAY_ADDRESS``, or starts Ray in this process; does nothing if it already runs.

    Does not join a cluster of someone else on this machine, as Ray would by default.
    show_workers: print the workers' output here.

    Raises ConfigError if there is no such cluster, or Ray cannot start here.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    _check(address)
    try:
        ray.init(address, include_dashboard=False, log_to_driver=show_workers, logging_level="WARNING")
    except Exception as error:
        raise explained(address, error) from error


def _check(address: str) -> None:
    if address in ("local", "auto"):
        return
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS={address} is the address of Ray's job server, not of the cluster",
            f"submit the command with `ray job submit --address {address} -- mbeir-cot …`; otherwise {_OF_HEAD}",
        )
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS={address} goes through Ray Client, which cannot hold a build's servers and actors",
            f"run the command on a node of the cluster (`ray job submit` does); there {_OF_HEAD}",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"RAY_ADDRESS={address} is not an address", f"write HOST:PORT or auto: {_OF_HEAD}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error})",
            f"start one (`ray start --head` there), or {_OF_HEAD}",
        ) from error


def explained(address: str, error: Exception) -> CotError:
    """Ray's exception as an error with a remedy."""
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    if "AF_UNIX path length" in first:
        where = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "the temporary directory"
        return ConfigError(f"Ray cannot keep its sockets below {where}: the path is too long", "set RAY_TMPDIR=/tmp")
    if address == "auto":
        return ConfigError(f"RAY_ADDRESS=auto: no Ray cluster runs on this machine ({first})", _OF_HEAD)
    if address == "local":
        return ConfigError(
            f"Ray cannot start here: {first}",
            "check free memory, free space in RAY_TMPDIR (or TMPDIR, or /tmp), and /dev/shm, then run again",
        )
    return ConfigError(f"RAY_ADDRESS={address}: {first}", _OF_HEAD)
