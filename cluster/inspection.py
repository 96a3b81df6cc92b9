"""What is wrong with a cluster before anybody sweeps on it: `convsweep doctor --address`.

On every node an actor that takes no CPU looks about, writes to the storage path, and talks to the others.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import verdicts
from cluster.connection import connect
from cluster.experiments import Experiments
from cluster.inspector import MEGABYTES, Inspector
from cluster.node_facts import NodeFacts
from cluster.ports import Answer
from cluster.verdicts import Clock, Reduction, Verdict

PATIENCE = 120.0
"""Seconds that a node has for anything: the first thing it does is to start a process and import torch."""


@dataclass(frozen=True)
class _Node:
    """A node that is alive. `name` is "host (address)", `id` Ray's own."""

    name: str
    id: str
    address: str
    cpus: float
    gpus: float

    @property
    def trains(self) -> bool:
        return self.cpus > 0 or self.gpus > 0


def inspect(address: str, experiments: Experiments) -> list[Verdict]:
    """Every check of the cluster at `address`. Raises ValueError when there is none."""
    experiments = _absolute(experiments)
    with connect(address):
        nodes = _nodes([found for found in ray.nodes() if found["Alive"]])  # type: ignore[no-untyped-call]
        inspectors = {node.name: _start(node) for node in nodes}
        try:
            return _inspect(nodes, inspectors, experiments)
        finally:
            for inspector in inspectors.values():
                ray.kill(inspector)


def _inspect(nodes: list[_Node], inspectors: dict[str, Any], experiments: Experiments) -> list[Verdict]:
    facts, silent = _from_all(inspectors, lambda i: i.look.remote())
    found = [verdicts.nodes(facts.keys(), silent)]
    inspectors = {name: inspector for name, inspector in inspectors.items() if name in facts}
    nodes = [node for node in nodes if node.name in facts]
    if not nodes:
        return found
    found.append(verdicts.versions(facts))
    found.append(verdicts.gpus(facts, {node.name: node.gpus for node in nodes}))
    train = [node for node in nodes if node.trains]
    found.append(_all_reduce("gloo", train, gpus=0.0))
    with_gpus = [node for node in train if node.gpus >= 1 and facts[node.name].devices]
    if with_gpus:
        found.append(_all_reduce("nccl", with_gpus, gpus=1.0))
    found.append(_check_storage(inspectors, experiments))
    found.append(verdicts.clocks(_clocks(inspectors)))
    found.append(verdicts.open_ports(facts, _ask_ports(nodes, inspectors, facts)))
    return found


def _absolute(experiments: Experiments) -> Experiments:
    """The same from whichever folder a node looks."""
    place = experiments.storage_path
    if place is not None and "://" not in place:
        place = str(Path(place).absolute())
    return replace(experiments, folder=experiments.folder.absolute(), storage_path=place)


def _nodes(found: Sequence[Mapping[str, Any]]) -> list[_Node]:
    """The nodes as Ray describes them; of those with the same host and address, the name has the beginning of the id too."""
    names = [f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in found]
    return [
        _Node(
            name if names.count(name) == 1 else f"{name} {node['NodeID'][:6]}",
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for name, node in zip(names, found, strict=True)
    ]


def _start(node: _Node, gpus: float = 0.0) -> Any:
    actor: Any = ray.remote(Inspector)
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return actor.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=strategy).remote()


def _from_all(
    inspectors: Mapping[str, Any], ask: Callable[[Any], Any], patience: float = PATIENCE
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every node's answer, and of those that gave none what went wrong."""
    calls = {name: ask(inspector) for name, inspector in inspectors.items()}
    answers, errors = dict[str, Any](), dict[str, str]()
    until = time.monotonic() + patience
    for name, call in calls.items():
        try:
            answers[name] = ray.get(call, timeout=max(0.1, until - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            errors[name] = f"no answer within {patience:.0f} s"
        except ray.exceptions.RayTaskError as error:
            errors[name] = f"{type(error.cause).__name__}: {_line(error.cause, 0)}"
        except ray.exceptions.RayError as error:
            errors[name] = _line(error, -1)  # what is told of an actor that could not be made ends with why
    return answers, errors


def _line(error: object, place: int) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[place] if lines else type(error).__name__


# ---- the checks that take several nodes ----


def _all_reduce(backend: str, nodes: list[_Node], gpus: float) -> Verdict:
    """By actors of its own: those that hang in it do nothing else any more."""
    if len(nodes) < 2:
        return verdicts.all_reduce(Reduction(backend, len(nodes)))
    inspectors = {node.name: _start(node, gpus) for node in nodes}
    ranks = {id(inspector): rank for rank, inspector in enumerate(inspectors.values())}
    try:
        _, busy = _from_all(inspectors, lambda i: i.now.remote(), patience=PATIENCE / 2)
        if busy:
            what = "no free GPU" if gpus else "no answer"
            return Verdict(f"all-reduce ({backend})", None, f"not tried: {what} from {' and '.join(sorted(busy))}")
        at = ray.get(inspectors[nodes[0].name].meeting_place.remote(nodes[0].address), timeout=PATIENCE)
        seconds, errors = _from_all(
            inspectors, lambda i: i.all_reduce.remote(backend, ranks[id(i)], len(nodes), at, PATIENCE / 2)
        )
    finally:
        for inspector in inspectors.values():
            ray.kill(inspector)
    if errors:
        told = "; ".join(f"{name}: {error}" for name, error in sorted(errors.items()))
        return verdicts.all_reduce(Reduction(backend, len(nodes), error=told))
    return verdicts.all_reduce(Reduction(backend, len(nodes), MEGABYTES * 10**6, max(seconds.values())))


def _check_storage(inspectors: Mapping[str, Any], experiments: Experiments) -> Verdict:
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    place = experiments.storage_path or str(experiments.folder)
    shown = place if "@" not in place else "the storage path"
    uri = experiments.checkpoints_uri(name)
    files = {node: f"node-{number}" for number, node in enumerate(inspectors)}
    by_actor = {id(inspector): files[node] for node, inspector in inspectors.items()}
    try:
        _, errors = _from_all(inspectors, lambda i: i.write.remote(uri, by_actor[id(i)]))
        if errors:
            return verdicts.storage(shown, errors, {})
        seen, errors = _from_all(inspectors, lambda i: i.seen.remote(uri))
        whose = {file: node for node, file in files.items()}
        return verdicts.storage(
            shown, errors, {n: {whose[file] for file in found if file in whose} for n, found in seen.items()}
        )
    finally:
        _from_all(inspectors, lambda i: i.clean.remote(experiments, name))


def _clocks(inspectors: Mapping[str, Any]) -> dict[str, Clock]:
    """By the fastest of several questions: half of what it took is what is not known."""
    found = {}
    for name, inspector in inspectors.items():
        tries = list[Clock]()
        for _ in range(5):
            asked = time.time()
            theirs, _ = _from_all({name: inspector}, lambda i: i.now.remote())
            answered = time.time()
            tries += [Clock(now - (asked + answered) / 2, (answered - asked) / 2) for now in theirs.values()]
        if tries:
            found[name] = min(tries, key=lambda clock: clock.uncertainty)
    return found


def _ask_ports(
    nodes: list[_Node], inspectors: Mapping[str, Any], facts: Mapping[str, NodeFacts]
) -> dict[str, dict[int, Answer]]:
    """Each node's ports, asked by the next node: by another machine, where there is one."""
    neighbours = dict(zip([node.name for node in nodes], [*nodes[1:], nodes[0]], strict=True))
    calls = {
        node.name: inspectors[neighbours[node.name].name].ask.remote(node.address, list(facts[node.name].ports))
        for node in nodes
    }
    answers, errors = _from_all(calls, lambda call: call)
    return answers | {name: dict.fromkeys(facts[name].ports, Answer.UNKNOWN) for name in errors}
