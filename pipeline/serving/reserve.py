"""Reserves GPUs before any server is started, so that impossible demands are refused instead of waited for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from pipeline.serving.placement import Demand, Plan, describe, explain_misfit, plan
from pipeline.serving.server import HostingError

_SETTLE_S: Final = 10.0
"""GPUs of a job that has just ended become free within seconds. Until then, wait for as many servers as the cluster can
hold."""

_POLL_S: Final = 0.5


def reserve(demands: Sequence[Demand], timeout_s: float) -> list[list[PlacementGroup | None]]:
    """A placement group for each server of each demand; None for a server on CPU.

    Raises HostingError at once if they would not fit on the empty cluster, and after `timeout_s` if GPUs in use do not become
    free.
    """
    if not any(demand.gpus for demand in demands):
        return [[None] * (demand.count or 1) for demand in demands]
    whole = plan(_gpus(), demands)
    if whole is None:
        raise HostingError(*explain_misfit(_gpus(), demands))
    began = time.monotonic()
    while True:
        chosen = _choose(demands, whole, began, timeout_s)
        held = _hold(demands, chosen, max(_POLL_S, min(timeout_s, began + timeout_s - time.monotonic())))
        if held is not None:
            return held
        if time.monotonic() - began >= timeout_s:
            raise _taken(demands, timeout_s)


def release(groups: Sequence[PlacementGroup | None]) -> None:
    for group in groups:
        if group is not None and ray.is_initialized():
            remove_placement_group(group)


def _choose(demands: Sequence[Demand], whole: Plan, began: float, timeout_s: float) -> Plan:
    """Waits for a plan that fits on the free GPUs."""
    while True:
        waited = time.monotonic() - began
        chosen = plan(_free(), demands)
        if chosen is not None and (sum(map(len, chosen)) >= sum(map(len, whole)) or waited >= min(_SETTLE_S, timeout_s)):
            return chosen
        if chosen is None and waited >= timeout_s:
            raise _taken(demands, timeout_s)
        time.sleep(_POLL_S)


def _hold(demands: Sequence[Demand], chosen: Plan, timeout_s: float) -> list[list[PlacementGroup | None]] | None:
    """Reserves a plan's GPUs; None if another job took them first. The plan's node is a hint to Ray; a server is always on one
    node."""
    held: list[list[PlacementGroup | None]] = [
        [
            placement_group([{"GPU": demand.gpus}], strategy="STRICT_PACK", _soft_target_node_id=node) if demand.gpus else None
            for node in nodes
        ]
        for demand, nodes in zip(demands, chosen, strict=True)
    ]
    groups = [group for each in held for group in each if group is not None]
    deadline = time.monotonic() + timeout_s
    if all(group.wait(max(0.01, deadline - time.monotonic())) for group in groups):
        return held
    release(groups)
    return None


def _taken(demands: Sequence[Demand], timeout_s: float) -> HostingError:
    return HostingError(
        f"{'; '.join(str(demand) for demand in demands if demand.gpus)}: not enough free GPUs after {timeout_s:g} s; "
        f"the cluster has {describe(_held(_gpus()))}, free are {_list(_free(), _gpus())}",
        "end the jobs that use them (see `ray status`), lower `server.count`, or raise `server.placement_timeout_s`",
    )


def _list(free: Mapping[str, int], whole: Mapping[str, int]) -> str:
    return ", ".join(f"{free.get(node, 0)} of {count}" for node, count in whole.items() if count)


def _held(nodes: Mapping[str, int]) -> dict[str, int]:
    return {node: count for node, count in nodes.items() if count}


def _gpus() -> dict[str, int]:
    nodes: list[dict[str, Any]] = ray.nodes()
    return {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]}


def _free() -> dict[str, int]:
    return {node: int(resources.get("GPU", 0)) for node, resources in available_resources_per_node().items()}
