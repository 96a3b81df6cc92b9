"""Measure trials per minute: one fixed list of MNIST trials, run the ways a user would run it, on this machine.

    python -m bench.sweep [--trials 16|64] [--ways loop optuna tune train convsweep] [--repeat 1]

10,000 training and 2,000 validation images, two epochs, batch 64, the same networks, optimizers and seeds; the others in
float32, convsweep in bfloat16 where the hardware has it. The others' ways are written as their documentation shows them: a
DataLoader over a float32 TensorDataset; a plain loop over the list; the same in an Optuna study; Ray Tune with as many
trials at once as the machine has cores; and Ray Tune with a Ray Train TorchTrainer in each trial. Each way is a process of
its own, timed from its start to its end, imports included.
Needs CONVSWEEP_DATA with MNIST/raw.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from bench.results import save
from cluster.experiments import Experiments
from cluster.studies import Studies
from trainer.data import DataConfig, load_data

WAYS = ("loop", "optuna", "tune", "train", "convsweep")
TRAINING, VALIDATION = 10_000, 2_000
EPOCHS, BATCH = 2, 64


def configurations(trials: int) -> list[dict[str, Any]]:
    """The fixed list: kernel size, filters of the first of two blocks, optimizer, learning rate."""
    rates = (0.001, 0.01) if trials <= 16 else (0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.02)
    grid = itertools.product((3, 5), (16, 32), ("adam", "sgd"), rates)
    return [{"kernel": k, "filters": f, "optimizer": o, "rate": r} for k, f, o, r in grid][:trials]


def main() -> None:
    """Measure, and print a line per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16, choices=(16, 64))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--repeat", type=int, default=1)
    given = parser.parse_args()
    said_last, shares = "not run", list[float]()
    walls: dict[str, list[float]] = {way: [] for way in given.ways}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_images(Path(os.environ["CONVSWEEP_DATA"]), data)
        for turn, way in itertools.product(range(given.repeat), given.ways):
            began = time.perf_counter()
            said, share = run(way, given.trials, data, Path(folder) / f"{way}-{turn}")
            wall = time.perf_counter() - began
            shares += [] if share is None else [share]
            walls[way].append(wall)
            said_last = said if way == "convsweep" else said_last
            print(f"{way:10} {wall:7.1f} s  {60 * given.trials / wall:6.2f} trials/min  {said}", flush=True)
    medians = {way: statistics.median(found) for way, found in walls.items()}
    if "convsweep" in medians:
        for way in given.ways:
            print(f"convsweep / {way:10} {medians[way] / medians['convsweep']:5.2f}")
    found = {"trials": given.trials, "seconds": walls, "training_share": shares, "said": f"convsweep: {said_last}."}
    save(f"sweep-{given.trials}", found)


def write_images(root: Path, to: Path) -> None:
    """Training and validation images of MNIST as a folder of PNGs, and as arrays for those who would load them so."""
    known = load_data(DataConfig(data="mnist", root=str(root), cache=str(to / "cache")))
    for part, split, count in (("train", known.train, TRAINING), ("val", known.validation, VALIDATION)):
        rows = split.rows[:count]
        images, labels = split.images[rows][:, 0], split.labels[rows]
        for row, image, label in zip(rows, images, labels, strict=True):
            file = to / "images" / part / str(label) / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
        np.savez(to / f"{part}.npz", images=images, labels=labels.astype("int64"))


def run(way: str, trials: int, data: Path, folder: Path) -> tuple[str, float | None]:
    """Run the list in that way; returns what is to be said about it, and convsweep's share of time that went into training.

    Raises CalledProcessError when it fails.
    """
    if way == "convsweep":
        return run_convsweep(trials, data, folder)
    command = [sys.executable, "-m", "bench.peers", way, str(trials), str(data)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.splitlines()[-1], None


def run_convsweep(trials: int, data: Path, folder: Path) -> tuple[str, float]:
    """The list as a user's sweep file."""
    folder.mkdir()
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_file(trials, data)))
    command = ["-m", "cluster.cli", "sweep", file, "--experiments", folder / "experiments", "--cache", folder / "cache"]
    with Memory() as memory:
        subprocess.run([sys.executable, *map(str, command)], check=True, stderr=subprocess.DEVNULL)
    sweep = Studies(Experiments(folder / "experiments")).read("list")
    assert sweep.counts["COMPLETE"] == trials, sweep.counts
    timing = sweep.timing
    after = timing.wall_seconds - timing.startup_seconds
    share = timing.train_seconds / (timing.groups * after)
    best = sweep.best_or_error().value
    said = (
        f"best {best:.4f}; start-up {timing.startup_seconds:.1f} s, training {share:.3f} of the groups' time after it, "
        f"a rank at most {memory.peak:.0f} MB"
    )
    return said, share


class Memory:
    """The most memory that a rank of a worker group has had, in MB, while this context is there (Linux only)."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(2):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # it has ended
                    if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                        lines = (process / "status").read_text().splitlines()
                        highest = next(line for line in lines if line.startswith("VmHWM"))
                        self.peak = max(self.peak, int(highest.split()[1]) / 1024)


def sweep_file(trials: int, data: Path) -> dict[str, Any]:
    """The fixed list as convsweep's settings."""
    fixed = {
        "model.blocks": 2,
        "model.padding": "same",
        "model.batch_norm": False,
        "model.head": "flatten",
        "model.dense_units": 64,
        "optimizer.nesterov": False,
        "schedule.name": "constant",
        "training.batch_size": BATCH,
        "training.precision": "float32",
    }
    first = [
        fixed
        | {
            "model.kernel_size": c["kernel"],
            "model.filters": [c["filters"], 2 * c["filters"]],
            "optimizer.name": c["optimizer"],
            "optimizer.learning_rate": c["rate"],
        }
        for c in configurations(trials)
    ]
    own = {"name": "list", "data": str(data / "images"), "image_size": 28, "trials": trials, "epochs": EPOCHS}
    return own | {"preset": "none", "pruner": "none", "first": first}


if __name__ == "__main__":
    main()
