"""Plans which servers run on which nodes, from their free GPUs. Pure functions, without Ray.

A server's GPUs are all on one node. Teacher and verifier are planned together, since they compete for GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.hosting import ServerConfig


@dataclass(frozen=True)
class Demand:
    """Wanted servers with `gpus` each; `count` None: as many as fit."""

    name: str
    gpus: int
    count: int | None = None

    @classmethod
    def of(cls, name: str, config: ServerConfig) -> Demand:
        """The demand of a config. A server on CPU takes no GPU, and one is the default."""
        if config.device == "cpu":
            return cls(name, 0, config.count or 1)
        return cls(name, config.tensor_parallel_size, config.count)

    def __str__(self) -> str:
        many = "as many servers as fit" if self.count is None else f"{self.count} server{'s' if self.count > 1 else ''}"
        return f"{self.name}: {many} of {self.gpus} GPU{'s' if self.gpus > 1 else ''} (tensor_parallel_size)"


Plan = tuple[tuple[str, ...], ...]
"""For each demand, the node of each of its servers."""


def plan(free: Mapping[str, int], demands: Sequence[Demand]) -> Plan | None:
    """Places the servers of one or two demands on nodes with these free GPUs; None if they do not fit.

    If neither demand has a count, the second gets one server, the first as many as fit beside it, and the second the rest.
    """
    wanted = [demand for demand in demands if demand.gpus]
    if len(wanted) > 2:
        raise ValueError("a plan is for a teacher and a verifier")
    first, second = [*wanted, *([Demand("", 0)] * 2)][:2]
    table = _tables(list(free.values()), first.gpus, second.gpus)
    counts = _counts(table[-1], first, second)
    if counts is None:
        return None
    places = _places(list(free.items()), table, first.gpus, second.gpus, counts)
    nodes = iter(places)
    return tuple(next(nodes) if demand.gpus else ("",) * (demand.count or 1) for demand in demands)


def _tables(free: list[int], first: int, second: int) -> list[list[int]]:
    """tables[n][i]: the most servers of the second demand that fit on the first n nodes beside i servers of the first."""
    tables = [[0]]
    for gpus in free:
        before = tables[-1]
        most = gpus // first if first else 0
        now = [-1] * (len(before) + most)
        for here in range(most + 1):
            beside = (gpus - here * first) // second if second else 0
            for others, count in enumerate(before):
                now[others + here] = max(now[others + here], count + beside)
        tables.append(now)
    return tables


def _counts(beside: list[int], first: Demand, second: Demand) -> tuple[int, int] | None:
    least = (second.count or 1) if second.gpus else 0
    if not first.gpus:
        return (0, 0)
    possible = [i for i, count in enumerate(beside) if count >= least and i >= 1]
    if first.count is not None:
        possible = [i for i in possible if i == first.count]
    if not possible:
        return None
    chosen = max(possible)
    return chosen, (beside[chosen] if second.count is None else second.count) if second.gpus else 0


def _places(
    nodes: list[tuple[str, int]], tables: list[list[int]], first: int, second: int, counts: tuple[int, int]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Traces the tables back: the nodes of the servers of each demand."""
    left, other = counts
    ones: list[str] = []
    twos: list[str] = []
    for number in range(len(nodes), 0, -1):
        name, gpus = nodes[number - 1]
        before, now = tables[number - 1], tables[number]
        for here in range(gpus // first + 1 if first else 1):
            beside = (gpus - here * first) // second if second else 0
            if 0 <= left - here < len(before) and before[left - here] + beside == now[left]:
                take = min(beside, other)
                ones += [name] * here
                twos += [name] * take
                left, other = left - here, other - take
                break
    return tuple(ones), tuple(twos)


def explain_misfit(nodes: Mapping[str, int], demands: Sequence[Demand]) -> tuple[str, str]:
    """(problem, remedy) for servers that do not fit on the empty cluster."""
    gpus = {name: count for name, count in nodes.items() if count}
    have = describe(gpus)
    wanted = "; ".join(str(demand) for demand in demands if demand.gpus)
    if not gpus:
        return (
            f"no node of the Ray cluster has a GPU; {wanted}",
            "set device: cpu, or join nodes with GPUs",
        )
    largest = max(gpus.values())
    for demand in demands:
        if demand.gpus > largest:
            smaller = 1 << (largest.bit_length() - 1)  # the number of a model's heads must be divisible
            size = f"{demand.name}: tensor_parallel_size {demand.gpus}"
            return (
                f"{size} is more than any node has ({have}); a server's GPUs are on one node",
                f"set {demand.name}.server.tensor_parallel_size to {smaller} or less, or use a smaller or quantised model",
            )
    many = sum(1 for demand in demands if demand.gpus) > 1
    counted = [f"{demand.name}.server.count" for demand in demands if demand.gpus and (demand.count or 1) > 1]
    remedy = f"lower {' or '.join([*counted, 'tensor_parallel_size'])}, or join more nodes"
    remedy += "; a verifier may also run elsewhere (hosting: external)" if many else ""
    return f"{wanted}: {'together ' if many else ''}more than the cluster has ({have})", remedy


def describe(nodes: Mapping[str, int]) -> str:
    """For example "2 nodes of 8 GPUs, 1 node of 4"."""
    sizes: dict[int, int] = {}
    for count in nodes.values():
        sizes[count] = sizes.get(count, 0) + 1
    parts = [f"{many} node{'s' if many > 1 else ''} of {size}" for size, many in sorted(sizes.items(), reverse=True)]
    return ", ".join([f"{parts[0]} GPUs", *parts[1:]]) if parts else "no GPUs"
