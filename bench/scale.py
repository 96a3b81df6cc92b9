"""Measure what a trial costs besides its training as a sweep grows, with a train function that only reports.

    python -m bench.scale [--trials 100 1000 5000] [--readers 100 1000 10000]

For each size a sweep of its own on this machine, TPE and halving as by default: the overhead of a trial, which is what a trial takes
when it takes no time itself, near the sweep's beginning and its end; the median time that a group waits between two such trials, in
which the other groups' trials are asked for too; start-up, and the driver's peak memory. Then the time in which the dashboard's reader
reads a study of so many trials, the first time and again.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.results import save

WINDOW = 100
"""So many trials near each place are looked at."""


def main() -> None:
    """Measure, print a line per size, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1000, 5000])
    parser.add_argument("--readers", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(sweep(given.one)))
        return
    sweeps, readers = [], []
    for trials in given.trials:
        command = [sys.executable, "-m", "bench.scale", "--one", str(trials)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        sweeps.append(one := json.loads(done.stdout.splitlines()[-1]))
        print(
            f"{trials:6,} trials: overhead {1000 * one['overhead_first']:.0f} ms a trial up to trial {WINDOW}, "
            f"{1000 * one['overhead_last']:.0f} ms near trial {trials}; each of {one['groups']} groups waits "
            f"{1000 * one['wait']:.0f} ms between two; start-up {one['startup_seconds']:.1f} s; driver at most {one['driver_mb']:.0f} MB",
            flush=True,
        )
    for trials in given.readers:
        readers.append(one := read(trials))
        print(f"{trials:6,} trials: read in {one['first']:.2f} s, again in {one['again']:.4f} s", flush=True)
    save("scale", {"sweeps": sweeps, "readers": readers})


def report_only(config: dict[str, Any], seconds: float = 0.0) -> None:
    """A worker group's train function: takes assignments as the real one does, sleeps, and reports an epoch of each."""
    import ray

    from trainer.mailbox import Report
    from trainer.metrics import EpochMetrics

    mailbox, group = config["mailbox"], config["group"]
    index = ray.get(mailbox.join.remote(group))
    while (assignment := ray.get(mailbox.take.remote(group, index))) is not None:
        begun = time.time()
        ray.get(mailbox.begin.remote(group, index))
        time.sleep(seconds)
        accuracy = random.Random(assignment.trial).random()
        metrics = EpochMetrics(1, 1.0, 1.0, accuracy, 0.1, 1000.0, 0.001)
        report = Report(group, metrics, done=True, begun_at=begun, reported_at=time.time(), parameters=1)
        mailbox.report.remote(assignment.trial, report)
        mailbox.finish.remote(group, index)
        index += 1


def sweep(trials: int) -> dict[str, float]:
    """Run a sweep of that many trials that only report, in this process."""
    import cloudpickle

    from cluster import worker_group
    from cluster.config import make_config
    from cluster.experiments import Experiments
    from cluster.sweep import start

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the ranks need not find this file
    worker_group.work = report_only
    with tempfile.TemporaryDirectory() as folder:
        config = make_config({"name": "scale", "data": "digits", "trials": trials, "epochs": 1})
        record = start(config, Experiments(Path(folder)), None, None).sweep
    assert record.counts["COMPLETE"] == trials, record.counts
    begun = sorted((t.group_began or 0.0, t.group or "", t.train_seconds) for t in record.trials)
    waits, last = [], dict[str, float]()
    for at, group, seconds in begun:
        if group in last:
            waits.append(at - last[group])
        last[group] = at + seconds
    return {
        "trials": trials,
        "groups": record.timing.groups,
        "overhead_first": (begun[WINDOW - 1][0] - begun[0][0]) / (WINDOW - 1),
        "overhead_last": (begun[-1][0] - begun[-WINDOW][0]) / (WINDOW - 1),
        "wait": statistics.median(waits),
        "startup_seconds": record.timing.startup_seconds,
        "driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def read(trials: int) -> dict[str, float]:
    """Read a synthetic study of that many trials of 20 epochs: the first time, and again."""
    from bench.synthetic import NAME, write_study
    from cluster.experiments import Experiments
    from cluster.studies import Studies

    with tempfile.TemporaryDirectory() as folder:
        where = Experiments(Path(folder))
        write_study(where, NAME, trials, 20)
        studies, seconds = Studies(where), []
        for _ in range(2):
            began = time.perf_counter()
            assert len(studies.read(NAME).trials) == trials
            seconds.append(time.perf_counter() - began)
        studies.close()
    return {"trials": trials, "first": seconds[0], "again": seconds[1]}


if __name__ == "__main__":
    main()
