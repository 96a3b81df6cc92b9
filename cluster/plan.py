"""How many worker groups fit on a cluster, and the refusal, with its arithmetic, of what cannot fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_DEFAULT_GROUPS_PER_NODE = 8
"""On a large CPU machine the default gives each rank several cores instead of starting dozens of groups."""


@dataclass(frozen=True, kw_only=True)
class GroupShape:
    """What is asked of one worker group; None leaves the choice to `plan`."""

    workers: int = 1
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    groups: int | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "groups"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but got {value}.")
        if self.cpus_per_worker is not None and not 0 < self.cpus_per_worker < math.inf:
            raise ValueError(f"cpus_per_worker must be greater than 0, but got {self.cpus_per_worker}.")
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker < math.inf:
            raise ValueError(f"gpus_per_worker must be 0 or more, but got {self.gpus_per_worker}.")


@dataclass(frozen=True)
class Plan:
    """`groups` worker groups of `workers` ranks, each rank with its CPUs and (a share of) GPUs.

    The nodes that are there have room for `at_once` of them; the others wait for nodes that the cluster's autoscaler starts. Should
    more nodes join than anybody knew of, there may be as many as `most`.
    """

    groups: int
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    at_once: int
    most: int

    @property
    def threads(self) -> int:
        """CPU threads of one rank."""
        return max(1, int(self.cpus_per_worker))

    def __str__(self) -> str:
        later = f", {self.at_once} at first and the others as the cluster grows" if self.at_once < self.groups else ""
        return f"{self.groups} worker group(s) of {self.workers} rank(s) with {self.device} each{later}"

    @property
    def gpus_per_group(self) -> float:
        """How many GPUs a group has, with the shares of its ranks added up."""
        return self.workers * self.gpus_per_worker

    @property
    def device(self) -> str:
        """What one rank asks of a node, in words."""
        return f"{self.gpus_per_worker:g} GPU" if self.gpus_per_worker else f"{self.cpus_per_worker:g} CPU"

    def groups_that_fit(self, nodes: Sequence[Nodes]) -> int:
        """How many such groups these nodes have room for."""
        return _ranks_that_fit(nodes, self.cpus_per_worker, self.gpus_per_worker) // self.workers


@dataclass(frozen=True)
class Nodes:
    """`count` nodes with these `resources` each, such as `{"CPU": 8, "GPU": 1}`."""

    resources: Mapping[str, float]
    count: int = 1

    def __str__(self) -> str:
        each = f"{self.resources.get('CPU', 0):g} CPU and {self.resources.get('GPU', 0):g} GPU"
        return each if self.count == 1 else f"{self.count} x {each}"


def make_plan(shape: GroupShape, nodes: Sequence[Nodes], trials: int, possible: Sequence[Nodes] = ()) -> Plan:
    """The plan for a cluster of these `nodes`, which its autoscaler may make into the `possible` ones.

    A rank must fit on one node; a group may span several. By default a rank gets a GPU where the cluster has any, or may have, and
    all groups that fit run, but no more than there are trials. Raises ValueError with the arithmetic when fewer can ever fit.
    """
    nodes, possible = _with_cpus(nodes), _with_cpus(possible)
    everything = [*nodes, *possible]
    has_gpus = any(node.resources.get("GPU", 0) for node in everything)
    gpus_per_worker = shape.gpus_per_worker if shape.gpus_per_worker is not None else (1.0 if has_gpus else 0.0)
    cpus_per_worker = shape.cpus_per_worker or _default_cpus(everything, shape, gpus_per_worker)
    ranks_now = _ranks_that_fit(nodes, cpus_per_worker, gpus_per_worker)
    ranks = max(ranks_now, _ranks_that_fit(possible, cpus_per_worker, gpus_per_worker))
    fit, wanted = ranks // shape.workers, shape.groups or 1
    if fit < wanted:
        rank = f"{cpus_per_worker:g} CPU" + (f" and {gpus_per_worker:g} GPU" if gpus_per_worker else "")
        grown = f", nor more than {ranks} on {_list(possible)}, which its autoscaler may make of it" if possible else ""
        raise ValueError(
            f"{wanted} group(s) x {shape.workers} worker(s) = {wanted * shape.workers} worker(s) of {rank} each are wanted, but only "
            f"{ranks_now} fit on the cluster's {sum(n.count for n in nodes)} node(s) with {_list(nodes)}{grown}. "
            "Ask for fewer --workers, --groups, --cpus-per-worker or --gpus-per-worker."
        )
    groups = shape.groups or max(1, min(fit, trials))
    at_once = min(groups, ranks_now // shape.workers)
    return Plan(groups, shape.workers, cpus_per_worker, gpus_per_worker, at_once, most=shape.groups or max(1, trials))


def _with_cpus(nodes: Sequence[Nodes]) -> list[Nodes]:
    return [node for node in nodes if node.count and node.resources.get("CPU", 0) > 0]


def _list(nodes: Sequence[Nodes]) -> str:
    more = f" and {sum(node.count for node in nodes[4:])} more" if len(nodes) > 4 else ""
    return (", ".join(map(str, nodes[:4])) or "none") + more


def _ranks_that_fit(nodes: Sequence[Nodes], cpus: float, gpus: float) -> int:
    return sum(node.count * _ranks_on(node.resources, cpus, gpus) for node in nodes)


def _ranks_on(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpu = math.floor(node.get("CPU", 0) / cpus + 1e-9)
    return min(by_cpu, math.floor(node.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu


def _default_cpus(nodes: Sequence[Nodes], shape: GroupShape, gpus_per_worker: float) -> float:
    """A share of the node's CPUs: per GPU where there are any, else so that at most eight ranks share a node."""
    each = [node.resources for node in nodes]
    if gpus_per_worker:
        shares = [node["CPU"] * gpus_per_worker / node["GPU"] for node in each if node.get("GPU", 0)]
        return float(max(1, min(4, int(min(shares, default=1)))))
    largest = max((node["CPU"] for node in each), default=1)
    ranks = shape.workers * (shape.groups or 1) if shape.groups else MAX_DEFAULT_GROUPS_PER_NODE
    return float(max(1, int(largest // ranks)))
