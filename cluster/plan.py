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
    """`groups` worker groups of `workers` ranks, each rank with its CPUs and (a share of) GPUs."""

    groups: int
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float

    @property
    def threads(self) -> int:
        """CPU threads of one rank."""
        return max(1, int(self.cpus_per_worker))

    def __str__(self) -> str:
        device = f"{self.gpus_per_worker:g} GPU" if self.gpus_per_worker else f"{self.cpus_per_worker:g} CPU"
        return f"{self.groups} worker group(s) of {self.workers} rank(s) with {device} each"


def make_plan(shape: GroupShape, nodes: Sequence[Mapping[str, float]], trials: int) -> Plan:
    """The plan for a cluster whose `nodes` have these resources, such as `{"CPU": 8, "GPU": 1}`.

    A rank must fit on one node; a group may span several. By default a rank gets a GPU where the cluster has any, and
    all groups that fit run, but no more than there are trials. Raises ValueError with the arithmetic when fewer fit.
    """
    nodes = [node for node in nodes if node.get("CPU", 0) > 0]
    gpus = sum(node.get("GPU", 0) for node in nodes)
    gpus_per_worker = shape.gpus_per_worker if shape.gpus_per_worker is not None else (1.0 if gpus else 0.0)
    cpus_per_worker = shape.cpus_per_worker or _default_cpus(nodes, shape, gpus_per_worker)
    ranks = sum(_ranks_on(node, cpus_per_worker, gpus_per_worker) for node in nodes)
    fit = ranks // shape.workers
    wanted = shape.groups or 1
    if fit < wanted:
        rank = f"{cpus_per_worker:g} CPU" + (f" and {gpus_per_worker:g} GPU" if gpus_per_worker else "")
        has = ", ".join(f"{n.get('CPU', 0):g} CPU and {n.get('GPU', 0):g} GPU" for n in nodes[:4]) or "none"
        more = f" and {len(nodes) - 4} more" if len(nodes) > 4 else ""
        raise ValueError(
            f"{wanted} group(s) x {shape.workers} worker(s) = {wanted * shape.workers} worker(s) of {rank} each are wanted, but only "
            f"{ranks} fit on the cluster's {len(nodes)} node(s) with {has}{more}. "
            "Ask for fewer --workers, --groups, --cpus-per-worker or --gpus-per-worker."
        )
    return Plan(shape.groups or max(1, min(fit, trials)), shape.workers, cpus_per_worker, gpus_per_worker)


def _ranks_on(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpu = math.floor(node.get("CPU", 0) / cpus + 1e-9)
    return min(by_cpu, math.floor(node.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu


def _default_cpus(nodes: Sequence[Mapping[str, float]], shape: GroupShape, gpus_per_worker: float) -> float:
    """A share of the node's CPUs: per GPU where there are any, else so that at most eight ranks share a node."""
    if gpus_per_worker:
        shares = [node["CPU"] * gpus_per_worker / node["GPU"] for node in nodes if node.get("GPU", 0)]
        return float(max(1, min(4, int(min(shares, default=1)))))
    largest = max((node["CPU"] for node in nodes), default=1)
    ranks = shape.workers * (shape.groups or 1) if shape.groups else MAX_DEFAULT_GROUPS_PER_NODE
    return float(max(1, int(largest // ranks)))
