"""Break sweeps on purpose, on real processes, and see that nothing is lost: one line per case.

    make faults                                        all of it; FAULTS="--kills 2 --trials 12" for the short form
    python -m bench.faults [--kills 20] [--trials 40] [--cases driver rank ...] [--seed 0]

A sweep of digits trials is killed again and again at random moments: its driver, which takes the machine's Ray with it and is
followed by `resume`; a random rank; a whole node of a local cluster, without and with notice; Ray's head. Then each way in which
a trial can fail by itself is provoked. What every rank trains is written to a journal, from which the lost epochs are counted.
Exit status 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.faulty_run import NARROW, Run

LONG = 300.0
"""Seconds after which a run that has not ended counts as hanging."""


def main() -> None:
    """Run the cases, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of the driver and of ranks; a quarter of all else")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    broken = 0
    for name in given.cases:
        before, segments = ours(), shared_memory()
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            began = time.time()
            wrong, said = CASES[name](Plan(Path(folder), given.kills, given.trials, random.Random(given.seed)))
        left = [*wait_for_none_left(before), *sorted(shared_memory() - segments)]
        wrong += [f"left behind: {left}"] if left else []
        broken += bool(wrong)
        verdict = "; ".join(wrong) if wrong else said
        print(f"{'BROKEN' if wrong else 'holds '}  {name}: {verdict}  ({time.time() - began:.0f} s)", flush=True)
    sys.exit(broken > 0)


@dataclass(frozen=True)
class Plan:
    """What a case is to do, and where."""

    folder: Path
    kills: int
    trials: int
    chance: random.Random

    @property
    def few(self) -> int:
        """Of what takes a minute each time."""
        return max(1, self.kills // 4)


def wait(process: subprocess.Popen[str], seconds: float) -> int | None:
    """The exit status, or None when it has not ended by then."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def ours() -> set[int]:
    """The processes of Ray and of sweeps on this machine."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if "/ray/" in words or words.startswith("ray::") or "bench.faulty_run" in words:
            found.add(process.pid)
    return found


def shared_memory() -> set[str]:
    """The segments of shared memory on this machine."""
    return {str(file) for file in Path("/dev/shm").glob("**/*")}


def wait_for_none_left(before: set[int]) -> list[str]:
    """The command lines of processes that were not there before and do not end by themselves within a while."""
    until = time.time() + 60
    while (left := ours() - before) and time.time() < until:
        time.sleep(0.5)
    names = []
    for pid in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(" ".join(psutil.Process(pid).cmdline())[:80])
    return names


def wait_for_moment(
    process: subprocess.Popen[str], run: Run, seconds: float, share: float, ready: Callable[[], object] = lambda: True
) -> int | None:
    """Until something can be broken that is `ready`, and then so many seconds, though no longer than this share of the trials takes.

    None, or the exit status of a process that has ended before.
    """
    until = time.time() + LONG
    while process.poll() is None and not ready() and time.time() < until:
        time.sleep(0.1)
    until = time.time() + seconds
    while process.poll() is None and time.time() < until and len(run.finished()) < share * run.settings["trials"]:
        time.sleep(0.1)
    return process.poll()


# ---- the cases ----


def kill_and_resume(
    run: Run, kills: int, chance: random.Random, kill: Callable[[subprocess.Popen[str]], None]
) -> list[str]:
    """Kill it at random moments and resume it until it ends; what is wrong with the trials that had finished."""
    wrong, known, seen, killed = list[str](), dict[int, str](), 0, 0
    process = run.start()
    while True:
        share = (killed + 1) / (kills + 1)
        strikes = killed < kills
        status = wait_for_moment(process, run, chance.uniform(1, 20), share) if strikes else wait(process, LONG)
        if status is None and killed == kills:
            process.kill()
            return [*wrong, f"it hangs: {run.said()}"]
        if status is None:
            kill(process)
            process.wait(LONG)
            killed += 1
        elif status:
            return [*wrong, f"exit status {status}: {run.said()}"]
        finished, trained = run.finished(), run.trained()
        wrong += [f"the record of trial {n} has changed" for n, text in known.items() if finished.get(n) != text]
        again = sorted({trial for trial, _ in trained[seen:] if trial in known})
        wrong += [f"trials {again} had finished and were trained again"] if again else []
        known, seen = finished, len(trained)
        if status == 0:
            return wrong if killed == kills else [*wrong, f"it ended after {killed} kills"]
        process = run.start(resume=run.exists())


def driver(plan: Plan) -> tuple[list[str], str]:
    """Kill the driver at random moments, also while it starts."""
    run = Run(plan.folder, trials=plan.trials)
    wrong = kill_and_resume(run, plan.kills, plan.chance, lambda process: process.kill())
    more, said = run.judge(plan.kills)
    return wrong + more, said


def head(plan: Plan) -> tuple[list[str], str]:
    """Kill Ray's head, the processes that hold a cluster together, under the sweep."""
    run = Run(plan.folder, trials=plan.trials)

    def kill(process: subprocess.Popen[str]) -> None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(word in " ".join(child.cmdline()[:1]) for word in ("gcs_server", "raylet")):
                    child.kill()

    wrong = kill_and_resume(run, plan.few, plan.chance, kill)
    more, said = run.judge(plan.few)
    return wrong + more, said


def rank(plan: Plan) -> tuple[list[str], str]:
    """Kill a random rank every few seconds while the sweep runs; nobody resumes it."""
    return kill_some(plan, plan.kills, "RayTrainWorker")


def pair(plan: Plan) -> tuple[list[str], str]:
    """The same where two ranks train each trial together: the one that is left cannot go on alone."""
    return kill_some(plan, plan.few, "RayTrainWorker", workers=2)


def reader(plan: Plan) -> tuple[list[str], str]:
    """Kill the actors that read the trials' reports for Tune."""
    return kill_some(plan, plan.few, "TrialReader", "ResourceTrainable")


def kill_some(plan: Plan, kills: int, *names: str, **own: Any) -> tuple[list[str], str]:
    """Kill so many processes of one of these names while the sweep runs, one after the other."""
    run = Run(plan.folder, trials=plan.trials, max_retries=kills, **own)
    process, killed = run.start(), 0

    def targets() -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
            return [child for child in children if any(name in " ".join(_cmdline(child)) for name in names)]
        return []

    until = time.time() + 2 * LONG
    while killed < kills and time.time() < until:
        share = (killed + 1) / (kills + 1)
        if wait_for_moment(process, run, plan.chance.uniform(0, 8), share, targets) is not None:
            break
        if found := targets():  # they come and go
            plan.chance.choice(found).kill()
            killed += 1
    status = wait(process, LONG)
    wrong = [f"exit status {status}: {run.said()}"] if status != 0 else []
    wrong += [f"it ended after {killed} kills"] if killed < kills else []
    more, said = run.judge(killed)
    return wrong + more, said


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


class Nodes:
    """A cluster of several nodes on this machine, of which the head trains nothing."""

    def __init__(self) -> None:
        os.environ["RAY_AUTH_MODE"] = "disabled"  # such a cluster asks for no token; the sweep inherits it
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address: str = self._cluster.address
        self._nodes = [self.add(), self.add()]

    def warn(self, chance: random.Random) -> Any:
        """Bring another node up, and tell a node that it will be taken away in a minute, as a spot market does; gives that node."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

        warned = self._nodes.pop(chance.randrange(len(self._nodes)))
        self._nodes.append(self.add())
        deadline = int(1000 * (time.time() + 60))
        client = GcsClient(address=self.address)
        accepted, reason = client.drain_node(warned.node_id, DRAIN_NODE_REASON_PREEMPTION, "a spot reclaim", deadline)
        assert accepted, reason
        return warned

    def is_up(self, node: Any) -> bool:
        """Whether the node is still alive."""
        return all(process.process.poll() is None for process in node.all_processes["raylet"])

    def take_away(self, node: Any) -> None:
        """Kill a node, as a machine dies that is switched off."""
        self._cluster.remove_node(node, allow_graceful=False)

    def placement_groups(self) -> list[str]:
        """Those that a sweep has left on the cluster."""
        import ray

        ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            table = ray.util.placement_group_table().values()
            return [
                f"placement group {group['name'] or group['placement_group_id']}"
                for group in table
                if group["state"] != "REMOVED"
            ]
        finally:
            ray.shutdown()

    def add(self) -> Any:
        """Another node, with one CPU."""
        return self._cluster.add_node(num_cpus=1)

    def replace(self, chance: random.Random) -> None:
        """Kill a node, as a machine dies that is switched off, and bring another up."""
        self.take_away(self._nodes.pop(chance.randrange(len(self._nodes))))
        self._nodes.append(self.add())

    def end(self) -> None:
        """End all."""
        self._cluster.shutdown()


def node(plan: Plan) -> tuple[list[str], str]:
    """Kill a node of a cluster with its group and its trial's reader; another comes up."""
    return on_nodes(plan, lambda nodes, run: nodes.replace(plan.chance))


def notice(plan: Plan) -> tuple[list[str], str]:
    """The same after a notice: the group saves what it is at in the middle of an epoch, and no step is lost."""
    unanswered = list[str]()

    def take_with_notice(nodes: Nodes, run: Run) -> None:
        warned, until = nodes.warn(plan.chance), time.time() + 30
        while (
            nodes.is_up(warned) and time.time() < until
        ):  # Ray ends a node that will be taken away when nobody is there any more
            time.sleep(0.1)
        if nodes.is_up(warned):
            unanswered.append("a group was still at work 30 s after a notice")
        nodes.take_away(warned)

    # What is handed over is not a retry: there are none here. Small batches: most of the time should go into an epoch's steps.
    own = {"max_retries": 0, "space": NARROW | {"training.batch_size": 8}}
    wrong, said = on_nodes(plan, take_with_notice, **own)
    if "in the middle of an epoch" not in said:
        unanswered.append("no trial went on in the middle of an epoch")
    return wrong + unanswered, said


def on_nodes(plan: Plan, strike: Callable[[Nodes, Run], None], **own: Any) -> tuple[list[str], str]:
    """Run the sweep on a cluster of several nodes, and strike every few seconds."""
    nodes = Nodes()
    try:
        run = Run(plan.folder, nodes.address, **{"trials": plan.trials, "max_retries": plan.few} | own)
        process, struck = run.start(), 0
        while struck < plan.few:
            share = (struck + 1) / (plan.few + 1)
            if wait_for_moment(process, run, plan.chance.uniform(0, 8), share, run.trained) is not None:
                break
            strike(nodes, run)
            struck += 1
        status = wait(process, LONG)
        left = nodes.placement_groups()
    finally:
        nodes.end()
    wrong = [f"exit status {status}: {run.said()}"] if status != 0 else []
    wrong += [f"it ended after {struck} kills"] if struck < plan.few else []
    wrong += [f"left behind: {left}"] if left else []
    more, said = run.judge(struck)
    within = sum(step > 0 for step in run.went_on())
    return wrong + more, f"{said}, {within} times on in the middle of an epoch" if within else said


FAILURES = {
    "nan": "not finite",
    "exception": "a layer that is not there",
    "memory": "allocate memory",
    "segfault": "died 2 times",
    "exit": "died 2 times",
    "sleep": "No epoch ended within",
    "hang": "No epoch ended within",
}
"""Each way in which a trial fails by itself, and what its record is to say."""


def failures(plan: Plan) -> tuple[list[str], str]:
    """Provoke each failure in some trial: it fails with its cause, and all the others are COMPLETE."""
    numbers = plan.chance.sample(range(16), len(FAILURES))
    sabotage = dict(zip(numbers, FAILURES, strict=True))
    own: dict[str, Any] = {"trials": 16, "epochs": 3, "pruner": "none", "max_retries": 1, "epoch_timeout": 10}
    run = Run(plan.folder, sabotage=sabotage, **own)
    status = wait(run.start(), LONG)
    wrong = [f"exit status {status}: {run.said()}"] if status != 0 else []
    trials = run.trials()
    for number, what in sabotage.items():
        state, record = trials.get(number, ("missing", ""))
        if state != "FAIL" or FAILURES[what] not in record:
            wrong.append(f"{what}: trial {number} is {state}: {record}")
    others = Counter(state for number, (state, _) in trials.items() if number not in sabotage)
    if others != {"COMPLETE": 16 - len(sabotage)}:
        wrong.append(f"the others are {dict(others)}")
    return wrong, f"{', '.join(FAILURES)}: each FAIL with its cause, the other {16 - len(sabotage)} COMPLETE"


Case = Callable[[Plan], tuple[list[str], str]]
CASES: dict[str, Case] = {
    "driver": driver,
    "rank": rank,
    "pair": pair,
    "reader": reader,
    "node": node,
    "notice": notice,
    "head": head,
    "failures": failures,
}


if __name__ == "__main__":
    main()
