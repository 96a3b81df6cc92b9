"""Measure single trainings against the Keras recipes: images per second at the same batch size, and accuracy in the same seconds.

    python -m bench.train [--seeds 3] [--pairs mnist-3conv mnist-fast cifar-3conv cifar10-fast] [--keras PYTHON]

The recipes run alternately, seed after seed, each in a process of its own: Keras as its tutorial has it, on all training
images, and `convsweep train` with a preset, which holds a tenth of them out to choose its epoch. `mnist-fast` and
`cifar10-fast` are to be better in no more seconds than the Keras recipe takes. PYTHON is one that has TensorFlow (by default
this one). Needs CONVSWEEP_DATA.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench.commands import convsweep, run
from bench.results import save

PAIRS = {
    "mnist-3conv": ("mnist", "mnist-3conv"),
    "mnist-fast": ("mnist", "mnist-3conv"),
    "cifar-3conv": ("cifar10", "cifar-3conv"),
    "cifar10-fast": ("cifar10", "cifar-3conv"),
}
"""Preset -> the data set and the Keras recipe to compare with."""


def main() -> None:
    """Measure, print a line per run and one per preset, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=[*PAIRS])
    parser.add_argument("--keras", default=sys.executable, help="a Python with TensorFlow")
    given = parser.parse_args()
    root = str(Path(os.environ["CONVSWEEP_DATA"]).absolute())
    if subprocess.run([given.keras, "-c", "import tensorflow"], capture_output=True, check=False).returncode:
        parser.error(f"{given.keras} has no TensorFlow: say one that has with --keras.")
    recipes = dict.fromkeys(PAIRS[pair][1] for pair in given.pairs)
    keras: dict[str, list[dict[str, float]]] = {recipe: [] for recipe in recipes}
    ours: dict[str, list[dict[str, float]]] = {pair: [] for pair in given.pairs}
    for seed in range(given.seeds):
        for recipe in recipes:
            keras[recipe].append(run([given.keras, "bench/keras_recipes.py", root, recipe, str(seed)]))
            tell("Keras", recipe, seed, keras[recipe][-1])
            for pair in given.pairs:
                data, against = PAIRS[pair]
                if against == recipe:
                    words = ["train", "--preset", pair, "--data", data, "--seed", seed]
                    ours[pair].append(convsweep(*words, "--data-root", root))
                    tell("convsweep", pair, seed, ours[pair][-1])
    for pair, found in ours.items():
        theirs = keras[PAIRS[pair][1]]
        speed = median(found, "images_per_second") / median(theirs, "images_per_second")
        print(
            f"{pair}: {speed:.2f} times the images per second of Keras; test accuracy {mean(found):.4f} against {mean(theirs):.4f} "
            f"(means of {given.seeds}); {median(found, 'train_seconds'):.0f} s against {median(theirs, 'train_seconds'):.0f} s"
        )
    keys = ("test_accuracy", "train_seconds", "images_per_second")
    short = {pair: [{key: one[key] for key in keys} for one in found] for pair, found in ours.items()}
    save("train", {"keras": keras, "convsweep": short, "pairs": {pair: PAIRS[pair][1] for pair in given.pairs}})


def tell(who: str, what: str, seed: int, found: dict[str, float]) -> None:
    """Print a line about one run."""
    print(
        f"{who:9} {what:12} seed {seed}: test {found['test_accuracy']:.4f}, {found['train_seconds']:.1f} s, "
        f"{found['images_per_second']:,.0f} images/s",
        flush=True,
    )


def median(runs: list[dict[str, float]], key: str) -> float:
    """The runs' median of `key`."""
    return statistics.median(one[key] for one in runs)


def mean(runs: list[dict[str, float]]) -> float:
    """The runs' mean test accuracy."""
    return statistics.mean(one["test_accuracy"] for one in runs)


if __name__ == "__main__":
    main()
