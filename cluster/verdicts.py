"""What is to be made of what a cluster's nodes say: one line for each check, with what mends it where it fails.

Nodes go by their names, such as "worker1 (10.0.0.3)".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any

from cluster.node_facts import NodeFacts
from cluster.ports import Answer

MOST_SKEW = 1.0
"""Seconds by which clocks may differ: trials are timed by their groups' clocks, and leases by their holder's."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check: `good` is None when there was nothing to check. `fix` says what mends it."""

    name: str
    good: bool | None
    text: str
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def nodes(answered: Set[str], errors: Mapping[str, str]) -> Verdict:
    """Whether every node could be looked at."""
    if not errors:
        return Verdict("nodes", True, f"{len(answered)} answer: {', '.join(sorted(answered))}")
    silent = "; ".join(f"{node}: {error}" for node, error in sorted(errors.items()))
    return Verdict(
        "nodes",
        False,
        f"{len(errors)} of {len(answered) + len(errors)} do not answer: {silent}",
        "Their set-up has failed, or they are busy: `tail /tmp/ray/session_latest/logs/monitor*` on the head says which.",
    )


def versions(facts: Mapping[str, NodeFacts]) -> Verdict:
    """Whether all nodes run the same programs."""
    differing = []
    for program in next(iter(facts.values())).versions:
        having: dict[str, list[str]] = defaultdict(list)
        for node, fact in sorted(facts.items()):
            having[fact.versions[program]].append(node)
        if len(having) > 1:
            told = ", ".join(f"{version} on {' and '.join(where)}" for version, where in sorted(having.items()))
            differing.append(f"{program}: {told}")
    if not differing:
        one = next(iter(facts.values())).versions
        same = ", ".join(f"{program} {version}" for program, version in one.items())
        return Verdict("versions", True, f"the same on all nodes: {same}")
    return Verdict(
        "versions",
        False,
        "; ".join(differing),
        "`ray up` again from one checkout installs it, with the versions of constraints.txt, on every node; give all nodes one Python.",
    )


def gpus(facts: Mapping[str, NodeFacts], declared: Mapping[str, float]) -> Verdict:
    """Whether torch sees the GPUs that Ray gives away."""
    wrong = []
    for node, fact in sorted(facts.items()):
        if declared[node] > len(fact.devices):
            why = f" ({fact.device_error})" if fact.device_error else ""
            wrong.append(f"{node} offers {declared[node]:g}, of which torch sees {len(fact.devices)}{why}")
    if wrong:
        fix = "Install a driver there that is new enough for torch (`nvidia-smi` tells its CUDA version), or start Ray with --num-gpus=0."
        return Verdict("GPUs", False, "; ".join(wrong), fix)
    unused = [node for node, fact in sorted(facts.items()) if len(fact.devices) > declared[node]]
    seen = sum(len(fact.devices) for fact in facts.values())
    if not seen:
        return Verdict("GPUs", None, "there are none")
    rest = f"; Ray offers not all of those on {' and '.join(unused)}" if unused else ""
    return Verdict("GPUs", True, f"torch sees {seen}: {', '.join(_kinds(facts))}{rest}")


def _kinds(facts: Mapping[str, NodeFacts]) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for fact in facts.values():
        for name in fact.devices:
            counts[name] += 1
    return [f"{count} x {name}" for name, count in sorted(counts.items())]


@dataclass(frozen=True)
class Reduction:
    """An all-reduce that was tried: `size` bytes over that many `nodes` took `seconds`, or failed with an `error`."""

    backend: str
    nodes: int
    size: int = 0
    seconds: float = 0.0
    error: str | None = None

    @property
    def gigabits_per_second(self) -> float:
        """What each node sends, and receives: a ring passes 2 (n - 1) / n of the data on."""
        return 8e-9 * self.size * 2 * (self.nodes - 1) / self.nodes / self.seconds


def all_reduce(done: Reduction) -> Verdict:
    """Whether the nodes that train reach each other, and how fast."""
    name = f"all-reduce ({done.backend})"
    if done.nodes < 2:
        return Verdict(name, None, "fewer than two nodes can train: nobody to talk to")
    if done.error is None:
        speed = f"{done.gigabits_per_second:.2f} Gbit/s ({done.size / 1e6:.0f} MB in {done.seconds:.3f} s)"
        return Verdict(name, True, f"{done.nodes} nodes, {speed}")
    variable = "NCCL_SOCKET_IFNAME" if done.backend == "nccl" else "GLOO_SOCKET_IFNAME"
    fix = (
        "Let the nodes reach each other on all ports. Where a host's name stands for 127.0.1.1 (`getent hosts $(hostname)`), mend "
        f"/etc/hosts, or set {variable} to the network interface between the nodes in ~/.convsweep/cluster.env."
    )
    return Verdict(name, False, f"{done.nodes} nodes: {done.error}", fix)


def storage(place: str, errors: Mapping[str, str], seen: Mapping[str, Set[str]]) -> Verdict:
    """Whether each node can write to the storage path, and sees what the others wrote: `seen` has whose files each one sees."""
    if errors:
        told = "; ".join(f"from {node}: {error}" for node, error in sorted(errors.items()))
        fix = "Give those machines the right to write there (instance profile, mount, credentials), or choose another --storage-path."
        return Verdict("storage", False, f"{place} cannot be written {told}", fix)
    blind = {node: sorted(set(seen) - others) for node, others in sorted(seen.items()) if set(seen) - others}
    if blind:
        told = "; ".join(f"{node} does not see what {' and '.join(others)} wrote" for node, others in blind.items())
        fix = "Set CONVSWEEP_STORAGE_PATH to a folder that all nodes share, or to s3://...: a trial goes on elsewhere from what is there."
        return Verdict("storage", False, f"{place} is not shared: {told}", fix)
    return Verdict("storage", True, f"{place} is written and seen by {len(seen)} node(s)")


@dataclass(frozen=True)
class Clock:
    """How many seconds a node's clock is ahead of this one's, give or take `uncertainty`."""

    ahead: float
    uncertainty: float


def clocks(found: Mapping[str, Clock]) -> Verdict:
    """Whether the clocks agree."""
    wrong = {node: clock for node, clock in found.items() if abs(clock.ahead) - clock.uncertainty > MOST_SKEW}
    if wrong:
        told = ", ".join(
            f"{node} is {abs(c.ahead):.1f} s {'ahead' if c.ahead > 0 else 'behind'}"
            for node, c in sorted(wrong.items())
        )
        return Verdict("clocks", False, told, "Run a time service on every node: `sudo apt-get install chrony`.")
    most = max((abs(clock.ahead) for clock in found.values()), default=0.0)
    sure = max((clock.uncertainty for clock in found.values()), default=0.0)
    return Verdict("clocks", True, f"they differ by at most {most * 1000:.0f} ms (give or take {sure * 1000:.0f} ms)")


def open_ports(facts: Mapping[str, NodeFacts], answers: Mapping[str, Mapping[int, Answer]]) -> Verdict:
    """Whether a port of a node serves somebody without a token."""
    found = [
        f"{node} port {port} ({facts[node].ports.get(port, 'unknown')})"
        for node, by_port in sorted(answers.items())
        for port, answer in sorted(by_port.items())
        if answer is Answer.OPEN
    ]
    if found:
        fix = (
            "Whoever reaches these runs programs on the cluster: export RAY_AUTH_MODE=token, with one ~/.ray/auth_token, on every node, "
            "start Ray again, and let nobody but the nodes reach their ports."
        )
        return Verdict("ports", False, f"these serve without a token: {', '.join(found)}", fix)
    kinds = [answer for by_port in answers.values() for answer in by_port.values()]
    told = ", ".join(f"{kinds.count(kind)} {kind.value}" for kind in Answer if kind in kinds)
    note = (
        "; the unknown ones are between ranks: keep them from strangers by a firewall"
        if Answer.UNKNOWN in kinds
        else ""
    )
    return Verdict("ports", True, f"none of {len(kinds)} serves without a token ({told or 'none listens'}){note}")
