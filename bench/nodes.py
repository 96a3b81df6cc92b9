"""Measure how trials per minute grow with the nodes of a cluster, with trials that only sleep.

    python -m bench.nodes [--nodes 1 2 4 8] [--seconds 10] [--rounds 4]

For each number a local cluster of that many nodes with one CPU each beside a head that trains nothing, and a sweep of `rounds` trials
per node, each of which sleeps for `seconds`: this machine's cores do not count, what convsweep and Ray do between the trials does.
The share is of what so many groups would do if nothing were lost between trials; start-up is until the first trial begins, which
as many processes as nodes have to be started for, on this one machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from bench.results import save


def main() -> None:
    """Measure, print a line per number of nodes, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(sweep(given.one, given.seconds, given.rounds)))
        return
    found = []
    for nodes in given.nodes:
        found.append(one := in_a_process(nodes, given.seconds, given.rounds))
        print(
            f"{nodes} node(s): {one['trials_per_minute']:.1f} trials/min, {one['share']:.3f} of what they could be; "
            f"start-up {one['startup_seconds']:.1f} s",
            flush=True,
        )
    save("nodes", {"seconds": given.seconds, "nodes": found})


def in_a_process(nodes: int, seconds: float, rounds: int) -> dict[str, float]:
    """`sweep` in a process of its own."""
    words = ["--one", str(nodes), "--seconds", str(seconds), "--rounds", str(rounds)]
    done = subprocess.run([sys.executable, "-m", "bench.nodes", *words], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def sweep(nodes: int, seconds: float, rounds: int) -> dict[str, float]:
    """A sweep on a cluster of that many nodes; `share` is of `nodes` trials in `seconds`."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import cloudpickle
    from ray.cluster_utils import Cluster

    from bench import scale
    from cluster import worker_group
    from cluster.config import make_config
    from cluster.experiments import Experiments
    from cluster.sweep import start

    cloudpickle.register_pickle_by_value(scale)  # the ranks need not find that file
    worker_group.work = functools.partial(scale.report_only, seconds=seconds)
    small = {"object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False} | small)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, **small)
        cluster.wait_for_nodes()
        with tempfile.TemporaryDirectory() as folder:
            words = {"name": "nodes", "data": "digits", "trials": nodes * rounds, "epochs": 1}
            record = start(make_config(words), Experiments(Path(folder)), cluster.address, None).sweep
    finally:
        cluster.shutdown()
    assert record.counts["COMPLETE"] == nodes * rounds, record.counts
    begun = defaultdict[str | None, list[float]](list)
    for trial in record.trials:
        begun[trial.group].append(trial.group_began or 0.0)
    assert len(begun) == nodes, begun
    # Each group from its first begin to its last one: neither the start nor the end, when there is no work for all, counts here.
    pace = sum((len(at) - 1) / (max(at) - min(at)) for at in begun.values())
    return {
        "nodes": nodes,
        "trials": nodes * rounds,
        "trials_per_minute": 60 * pace,
        "share": pace * seconds / nodes,
        "startup_seconds": record.timing.startup_seconds or 0.0,
    }


if __name__ == "__main__":
    main()
