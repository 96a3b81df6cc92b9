"""Measure how good a network a search finds on CIFAR-10 in some minutes: convsweep, Optuna with a plain loop, Keras Tuner.

    python -m bench.search [--minutes 20] [--ways convsweep optuna keras] [--keras PYTHON]

convsweep is run as a user would run it: `sweep --data cifar10 --epochs 8` with half of the time as its budget, since trials that
have begun are run to their end, and the winner exported. The others search the space of their tutorials (2 to 4 blocks, kernel
sizes, filters, activation, pooling, batch normalisation, dense units, dropout, optimizer, learning rate) until the time is up, 10
epochs a trial, with successive halving and Hyperband. Each winner is scored once on the test split. PYTHON is one with
TensorFlow and Keras Tuner. Needs CONVSWEEP_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.commands import convsweep, run
from bench.results import save

WAYS = ("convsweep", "optuna", "keras")
EPOCHS = 8


def main() -> None:
    """Measure, print a line per way, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[20])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--keras", default=sys.executable, help="a Python with TensorFlow and Keras Tuner")
    given = parser.parse_args()
    root, runs = str(Path(os.environ["CONVSWEEP_DATA"]).absolute()), []
    for minutes in given.minutes:
        for way in given.ways:
            began = time.time()
            if way == "convsweep":
                found = sweep(root, minutes)
            else:
                python = given.keras if way == "keras" else sys.executable
                command = [python, "bench/peer_search.py", root, way, str(minutes)]
                found = run(command)
            runs.append(found | {"way": way, "asked": minutes, "minutes": (time.time() - began) / 60})
            print(
                f"{way:10} asked for {minutes:g} min, took {runs[-1]['minutes']:.1f}: {found['trials']} trials, "
                f"test {found['test']:.4f}",
                flush=True,
            )
    save("search", {"runs": runs})


def sweep(root: str, minutes: float) -> dict[str, Any]:
    """A sweep of about that long, and its winner's test accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--experiments", f"{folder}/experiments", "--data-root", root]
        budget = ["--time-budget", f"{round(30 * minutes)}s", "--epochs", str(EPOCHS)]
        ranked = convsweep("sweep", "--data", "cifar10", "--name", "search", *budget, *where)
        convsweep("export", "search", "--to", f"{folder}/bundle", *where)
        metrics = json.loads((Path(folder) / "bundle/metrics.json").read_text())
        best = ranked["trials"][0]
        return {"trials": len(ranked["trials"]), "test": metrics["test"]["accuracy"], "config": best["config"]}


if __name__ == "__main__":
    main()
