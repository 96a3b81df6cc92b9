"""A sweep of digits trials in processes of its own, whose ranks keep a journal and sabotage trials. Part of `bench.faults`."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EPOCHS = 8
NARROW = {"model.filters": [8, 16], "model.kernel_size": [3, 5], "model.blocks": 2}


def main() -> None:
    """Start or resume the sweep in this process, with ranks that keep a journal and do what `sabotage` says."""
    import cloudpickle

    from cluster import sweep, worker_group
    from cluster.config import make_config
    from cluster.experiments import Experiments

    how: dict[str, Any] = json.loads(sys.argv[1])
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

            def write(*words: object) -> None:
                if self._rank == 0:
                    with Path(journal).open("a") as file:
                        file.write(" ".join(map(str, words)) + "\n")

            def train(model: Any, *args: Any, position: Any, **options: Any) -> Iterator[Any]:
                if position.epochs or position.steps:
                    write(number, position.epochs + 1, "goes on after step", position.steps)
                for metrics in loop(model, *args, position=position, **options):
                    write(number, metrics.epoch)
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
        command = [sys.executable, "-m", "bench.faulty_run", json.dumps(how)]
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

    def failures(self) -> dict[int, str]:
        """Why trials failed."""
        with contextlib.closing(sqlite3.connect(self.folder / "experiments" / "studies.db", timeout=60)) as database:
            rows = database.execute(
                "SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id) WHERE key = 'error'"
            ).fetchall()
        return {number: json.loads(text) for number, text in rows}

    def finished(self) -> dict[int, str]:
        """The finished trials, with their records."""
        return {n: text for n, (state, text) in self.trials().items() if state in ("COMPLETE", "PRUNED", "FAIL")}

    def trained(self) -> list[tuple[int, int]]:
        """Every (trial, epoch) that a rank trained, in order."""
        lines = map(str.split, self.journal.read_text().splitlines())
        return [(int(words[0]), int(words[1])) for words in lines if len(words) == 2]

    def went_on(self) -> list[int]:
        """After which step of an epoch trials went on, each time."""
        return [int(line.split()[-1]) for line in self.journal.read_text().splitlines() if "goes on" in line]

    def judge(self, kills: int, groups: int = 2) -> tuple[list[str], str]:
        """What is wrong after the last run, and what is to be said if nothing is."""
        states = Counter(state for state, _ in self.trials().values())
        again = sum(count - 1 for count in Counter(self.trained()).values())
        wrong = []
        if states["COMPLETE"] + states["PRUNED"] != self.settings["trials"]:
            wrong.append(f"trials {dict(states)}: {self.failures()}")
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


if __name__ == "__main__":
    main()
