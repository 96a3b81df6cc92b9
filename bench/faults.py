"""Break sweeps on purpose, on real processes, and see that nothing is lost: one line per case.

    make faults                                        all of it; FAULTS="--kills 2 --trials 12" for the short form
    python -m bench.faults [--kills 20] [--trials 40] [--cases driver rank ...] [--seed 0]

A sweep of digits trials is killed again and again at random moments: its driver, which takes the machine's Ray with it and is
followed by `resume`; a random rank; a whole node of a local cluster; Ray's head. Then each way in which a trial can fail by itself
is provoked. What every rank trains is written to a journal, from which the lost epochs are counted. Exit status 1 if a promise is
broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

EPOCHS = 8
NARROW = {"model.filters": [8, 16], "model.kernel_size": [3, 5], "model.blocks": 2}
LONG = 300.0
"""Seconds after which a run that has not ended counts as hanging."""


def main() -> None:
    """Run the cases, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of the driver and of ranks; a quarter of all else")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run_here(json.loads(given.run))
        return
    broken = 0
    for name in given.cases:
        before = ours()
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            began = time.time()
            wrong, said = CASES[name](Plan(Path(folder), given.kills, given.trials, random.Random(given.seed)))
        left = wait_for_none_left(before)
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


# ---- a sweep in a process of its own ----


def run_here(how: dict[str, Any]) -> None:
    """Start or resume the sweep in this process, with ranks that keep a journal and do what `sabotage` says."""
    import cloudpickle

    from cluster import sweep, worker_group
    from cluster.config import make_config
    from cluster.experiments import Experiments

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the ranks need not find this file
    worker_group.work = journaling(how["journal"], how.get("sabotage", {}))
    where, address = Experiments(Path(how["folder"])), how.get("address")
    settings = make_config(how["settings"])
    resumed = how["resume"]
    outcome = sweep.resume("s", where, address, None) if resumed else sweep.start(settings, where, address, None)
    print(outcome.state, outcome.reason or "", file=sys.stderr)
    sys.exit(outcome.state != "FINISHED")


def journaling(journal: str, sabotage: dict[str, str]) -> Callable[[dict[str, Any]], None]:
    """The train function of a worker group that writes each epoch of each trial down, and sabotages some trials."""

    def work(config: dict[str, Any]) -> None:
        from trainer import worker

        whole, loop = worker._Trial._train, worker.train

        def train_trial(self: Any, *args: Any, **options: Any) -> None:
            number = self._assignment.trial

            def train(model: Any, *args: Any, **options: Any) -> Iterator[Any]:
                for metrics in loop(model, *args, **options):
                    if self._rank == 0:
                        with Path(journal).open("a") as file:
                            file.write(f"{number} {metrics.epoch}\n")
                    yield metrics
                    provoke(sabotage.get(str(number)), model)

            worker.train = train
            whole(self, *args, **options)

        worker._Trial._train = train_trial  # type: ignore[method-assign]
        worker.take_assignments(config["mailbox"], config["group"], config["threads"])

    return work


def provoke(what: str | None, model: Any) -> None:
    """One of the ways in which a trial fails by itself."""
    import ctypes

    import torch

    if what == "nan":
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
    elif what == "exception":
        raise KeyError("a layer that is not there")
    elif what == "memory":
        torch.empty(2**60)
    elif what == "segfault":
        ctypes.string_at(0)
    elif what == "exit":
        os._exit(7)
    elif what == "sleep":
        time.sleep(10_000)
    elif what == "hang":  # nothing else runs in the process: the interpreter's lock is held
        ctypes.PyDLL(None).sleep(10_000)


class Run:
    """One sweep `s` of the folder, over as many processes as it takes."""

    def __init__(self, folder: Path, address: str | None = None, sabotage: dict[int, str] | None = None, **own: Any):
        self.folder, self.journal, self.address = folder, folder / "journal", address
        self.sabotage = {str(number): what for number, what in (sabotage or {}).items()}
        self.settings = {"name": "s", "data": "digits", "epochs": EPOCHS, "space": NARROW} | own
        self.settings.setdefault("cache", str(folder / "cache"))
        self.journal.touch()

    def start(self, resume: bool = False) -> subprocess.Popen[str]:
        """Start or resume it."""
        how = {
            "folder": str(self.folder / "experiments"),
            "journal": str(self.journal),
            "sabotage": self.sabotage,
            "address": self.address,
            "settings": self.settings,
            "resume": resume,
        }
        command = [sys.executable, "-m", "bench.faults", "--run", json.dumps(how)]
        log = (self.folder / "log").open("a")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment, start_new_session=True)

    def said(self) -> str:
        """The end of what it printed."""
        return " | ".join((self.folder / "log").read_text().strip().splitlines()[-3:])

    def exists(self) -> bool:
        """Whether there is a sweep to resume."""
        file = self.folder / "experiments" / "studies.db"
        if not file.exists():
            return False
        with contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
            try:
                rows = database.execute("SELECT 1 FROM study_user_attributes WHERE key = 'convsweep'").fetchall()
            except sqlite3.OperationalError:  # its tables are not made yet
                return False
        return bool(rows)

    def trials(self) -> dict[int, tuple[str, str]]:
        """Each trial's state and all that the database says of it, as text."""
        file = self.folder / "experiments" / "studies.db"
        if not file.exists():
            return {}
        with contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
            found = {}
            try:
                rows = database.execute("SELECT trial_id, number, state FROM trials").fetchall()
            except sqlite3.OperationalError:  # its tables are not made yet
                return {}
            for trial_id, number, state in rows:
                about = [
                    sorted(database.execute(f"SELECT * FROM {table} WHERE trial_id = ?", (trial_id,)).fetchall())
                    for table in (
                        "trials",
                        "trial_params",
                        "trial_values",
                        "trial_user_attributes",
                        "trial_system_attributes",
                        "trial_intermediate_values",
                    )
                ]
                found[number] = state, repr(about)
        return found

    def finished(self) -> dict[int, str]:
        """The finished trials, with their records."""
        return {n: text for n, (state, text) in self.trials().items() if state in ("COMPLETE", "PRUNED", "FAIL")}

    def trained(self) -> list[tuple[int, int]]:
        """Every (trial, epoch) that a rank trained, in order."""
        lines = self.journal.read_text().splitlines()
        return [(int(trial), int(epoch)) for trial, epoch in map(str.split, lines)]

    def judge(self, kills: int, groups: int = 2) -> tuple[list[str], str]:
        """What is wrong after the last run, and what is to be said if nothing is."""
        states = Counter(state for state, _ in self.trials().values())
        again = sum(count - 1 for count in Counter(self.trained()).values())
        wrong = []
        if states["COMPLETE"] + states["PRUNED"] != self.settings["trials"]:
            wrong.append(f"trials {dict(states)}")
        if again > groups * kills:
            wrong.append(f"{again} epochs were trained again, more than one per group and kill")
        for number, epochs in self.histories().items():
            if epochs != list(range(1, len(epochs) + 1)):
                wrong.append(f"trial {number} has epochs {epochs}")
        wrong += [f"left: {file}" for file in self.folder.rglob("*") if file.suffix in (".state", ".writing")]
        wrong += [f"left: {name}" for name in ("groups", "tune") if (self.folder / "experiments/s" / name).exists()]
        return wrong, f"{kills} kills, {dict(states)}, {again} of {len(self.trained())} epochs trained again"

    def histories(self) -> dict[int, list[int]]:
        """The epochs of each trial as the database has them."""
        with contextlib.closing(sqlite3.connect(self.folder / "experiments" / "studies.db")) as database:
            rows = database.execute(
                "SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id) WHERE key = 'history'"
            ).fetchall()
        return {number: json.loads(text)["epoch"] for number, text in rows}


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
        if "/ray/" in words or words.startswith("ray::") or "bench.faults --run" in words:
            found.add(process.pid)
    return found


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


# ---- the cases ----


def kill_and_resume(
    run: Run, kills: int, chance: random.Random, kill: Callable[[subprocess.Popen[str]], None]
) -> list[str]:
    """Kill it at random moments and resume it until it ends; what is wrong with the trials that had finished."""
    wrong, known, seen, killed = list[str](), dict[int, str](), 0, 0
    process = run.start()
    while True:
        status = wait(process, chance.uniform(1, 20) if killed < kills else LONG)
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
    while wait(process, plan.chance.uniform(3, 8)) is None and killed < kills:
        children = psutil.Process(process.pid).children(recursive=True)
        found = [child for child in children if any(name in " ".join(_cmdline(child)) for name in names)]
        if found:
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

    def add(self) -> Any:
        """Another node, with one CPU."""
        return self._cluster.add_node(num_cpus=1)

    def replace(self, chance: random.Random) -> None:
        """Kill a node, as a machine dies that is switched off, and bring another up."""
        lost = self._nodes.pop(chance.randrange(len(self._nodes)))
        self._cluster.remove_node(lost, allow_graceful=False)
        self._nodes.append(self.add())

    def end(self) -> None:
        """End all."""
        self._cluster.shutdown()


def node(plan: Plan) -> tuple[list[str], str]:
    """Kill a node of a cluster with its group and its trial's reader; another comes up."""
    nodes = Nodes()
    try:
        run = Run(plan.folder, nodes.address, trials=plan.trials, max_retries=plan.few)
        process, killed = run.start(), 0
        while wait(process, plan.chance.uniform(3, 8)) is None and killed < plan.few:
            if run.trained():
                nodes.replace(plan.chance)
                killed += 1
        status = wait(process, LONG)
    finally:
        nodes.end()
    wrong = [f"exit status {status}: {run.said()}"] if status != 0 else []
    wrong += [f"it ended after {killed} kills"] if killed < plan.few else []
    more, said = run.judge(killed)
    return wrong + more, said


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
    "head": head,
    "failures": failures,
}


if __name__ == "__main__":
    main()
