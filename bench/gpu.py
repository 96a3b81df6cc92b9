"""Measure on one GPU: CIFAR-10 to 94 %, and eight groups that share the GPU against one.

    python -m bench.gpu [--seeds 5] [--trials 32]

The network is that of `cifar10-fast` with airbench's filters, batch size and epochs. The groups train `bench.sweep`'s kind of MNIST
trials. Needs CUDA and CONVSWEEP_DATA; without CUDA it says so and ends.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch

from bench.commands import convsweep
from bench.results import save

WIDE = ("model.filters=[64, 256, 256]", "training.batch_size=1024", "training.epochs=10")


def main() -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=32)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use: nothing was measured.")
        return
    root = ["--data-root", str(Path(os.environ["CONVSWEEP_DATA"]).absolute())]
    settings = [word for one in WIDE for word in ("--set", one)]
    runs = []
    for seed in range(given.seeds):
        words = ["train", "--preset", "cifar10-fast", "--data", "cifar10", "--seed", str(seed), *settings, *root]
        found = convsweep(*words)
        runs.append({key: found[key] for key in ("test_accuracy", "train_seconds", "images_per_second")})
        print(f"seed {seed}: test {found['test_accuracy']:.4f} in {found['train_seconds']:.1f} s", flush=True)
    print(f"mean {statistics.mean(run['test_accuracy'] for run in runs):.4f}")
    rates = {}
    for groups in (1, 8):
        with tempfile.TemporaryDirectory() as folder:
            words = ["sweep", "--data", "mnist", "--trials", str(given.trials), "--epochs", "2", "--pruner", "none"]
            share = ["--groups", str(groups), "--gpus-per-worker", str(1 / groups), "--cpus-per-worker", "1"]
            found = convsweep(*words, *share, "--experiments", folder, *root)
        rates[groups] = 3600 * given.trials / (found["wall_seconds"] - found["startup_seconds"])
        print(f"{groups} group(s): {rates[groups]:,.0f} trials per hour", flush=True)
    print(f"eight groups are {rates[8] / rates[1]:.2f} times as fast as one")
    save("gpu", {"gpu": torch.cuda.get_device_name(), "cifar10": runs, "trials_per_hour": rates})


if __name__ == "__main__":
    main()
