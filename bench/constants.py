"""Measure the constants by which docs/scale.md says how far a sweep scales, on this machine's own Ray.

    python -m bench.constants [--waiting 100 1000 5000] [--groups 1 4 16]

Of the mailbox: seconds of its processor for a report and the read that gets it while so many other reads wait, and the memory of one
that waits. Of the controllers' process: seconds of its processor for asking one rank how it is, with so many groups that idle.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import psutil
import ray

from bench.results import save
from bench.scale import report_only

ROUNDS = 500
IDLE_SECONDS = 20.0
POLLS_PER_SECOND = 2.0  # RAY_TRAIN_HEALTH_CHECK_INTERVAL_S in cluster/connection.py


def main() -> None:
    """Measure, print a line per size, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, nargs="*", default=[100, 1000, 5000])
    parser.add_argument("--groups", type=int, nargs="*", default=[1, 4, 16])
    given = parser.parse_args()
    mailboxes, controllers = [], []
    for waiting in given.waiting:
        mailboxes.append(one := mailbox(waiting))
        print(
            f"{waiting:5,} reads wait: {1e6 * one['seconds']:.0f} us of the mailbox for a report and its read, "
            f"{one['bytes'] / 1024:.1f} KiB each",
            flush=True,
        )
    for groups in given.groups:
        controllers.append(one := idle(groups))
        print(
            f"{groups:5,} idle group(s): {1e6 * one['seconds']:.0f} us of the controllers per poll, {one['mb']:.0f} MB",
            flush=True,
        )
    save("constants", {"mailbox": mailboxes, "controllers": controllers})


def mailbox(waiting: int) -> dict[str, float]:
    """A mailbox in which that many reads wait, and `ROUNDS` reports are made and read."""
    from cluster.connection import connect
    from trainer.data import DataConfig
    from trainer.hyperparameters import TrialConfig
    from trainer.mailbox import Assignment, Mailbox, Report
    from trainer.metrics import EpochMetrics

    with connect(None):
        actor: Any = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=1_000_000).remote(["group"], print)
        for trial in range(waiting + 1):
            actor.post.remote(Assignment(trial, TrialConfig(), DataConfig(data="digits"), "nowhere"))
        ray.get(actor.census.remote())
        process = _process_of("Mailbox")
        before = process.memory_info().rss
        reads = [actor.read.remote(trial, 0) for trial in range(1, waiting + 1)]
        ray.get(actor.census.remote())
        memory, began = process.memory_info().rss - before, _processor(process)
        for epoch in range(1, ROUNDS + 1):
            metrics = EpochMetrics(epoch, 1.0, 1.0, 0.5, 0.1, 1000.0, 0.001)
            actor.report.remote(0, Report("group", metrics, False, time.time(), time.time(), 1))
            ray.get(actor.read.remote(0, epoch - 1))
        spent = _processor(process) - began
        del reads
    return {"waiting": waiting, "seconds": spent / ROUNDS, "bytes": memory / waiting}


def idle(groups: int) -> dict[str, float]:
    """That many groups of one rank that have nothing to do."""
    import cloudpickle

    from cluster import worker_group
    from cluster.connection import connect
    from cluster.plan import GroupShape

    cloudpickle.register_pickle_by_value(sys.modules[report_only.__module__])
    worker_group.work = report_only
    with tempfile.TemporaryDirectory() as folder, connect(None) as cluster:
        plan = cluster.plan(GroupShape(groups=groups, cpus_per_worker=1 / 16), trials=groups)
        with worker_group.WorkerGroups(plan, folder, cluster, print) as there:
            while ray.get(there.mailbox.census.remote())[:2] != (groups, groups):
                time.sleep(0.2)
            process = _process_of("_Controllers")
            time.sleep(2.0)
            began = _processor(process)
            time.sleep(IDLE_SECONDS)
            spent = _processor(process) - began
            memory = process.memory_info().rss
    return {"groups": groups, "seconds": spent / (IDLE_SECONDS * POLLS_PER_SECOND * groups), "mb": memory / 2**20}


def _process_of(actor: str) -> psutil.Process:
    """The process of this machine that is the actor; Ray names it ray::CLASS or ray::CLASS.METHOD."""
    found = [p for p in psutil.process_iter() if _title(p).startswith(f"ray::{actor}")]
    assert len(found) == 1, found
    return found[0]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
