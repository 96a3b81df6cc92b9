"""Run the examples and the networks of other families for real, through the command line, and write down what came out.

    python -m bench.tasks                          all of them, in about an hour on two cores
    python -m bench.tasks --tasks digits rnn       these alone; what was found of the others stays
    python -m bench.tasks --write                  nothing is run: the pages are written again

A task is a few commands, run one after the other as a reader of its page would run them, in an empty folder with a cache of its
own. Its score is that of the bundle which they leave, on the test split. What was found is kept in docs/results/TASK.json, and
docs/results.md and the lines `Measured: ...` in examples/ are written from that. Needs CONVSWEEP_DATA with MNIST and CIFAR-10.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import task_pages
from bench.commands import convsweep
from bench.results import save

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Task:
    """What is run: command lines that leave a bundle in `bundles/` under the task's name, and what they are to reach.

    `score` is accuracy or macro_f1, of the test split; `promised` the least one in percent, or the task whose score it exceeds.
    `example` is the folder in examples/ whose page shows the commands and says what was measured.
    """

    what: str
    steps: tuple[str, ...]
    promised: float | str | None = None
    score: str = "accuracy"
    example: str | None = None


def training(preset: str, name: str) -> tuple[str, ...]:
    """The steps of one training on MNIST."""
    return (f"convsweep train --preset {preset} --data mnist --to bundles/{name}",)


def search(file: str, name: str, *, before: Sequence[str] = (), then: Sequence[str] = ()) -> tuple[str, ...]:
    """The steps of a search: the sweep of a file in examples/, and its best model."""
    sweep = f"convsweep sweep examples/{file} --name {name}"
    return (*before, sweep, *then, f"convsweep export {name} --to bundles/{name} --samples 3")


LONG_TAIL = ("python examples/cifar10-long-tail/write_images.py",)
OWN_IMAGES = ("python examples/own-images/write_images.py", "convsweep doctor --data data/own-images")
TASKS = {
    "rnn": Task("a recurrent network, row by row, on MNIST", training("mnist-rnn", "rnn"), 97.5),
    "transformer": Task("a vision transformer on MNIST", training("mnist-transformer", "transformer"), 97.5),
    "resnet18": Task("torchvision's ResNet-18 on MNIST", training("mnist-resnet18", "resnet18"), 99.3),
    "digits": Task(
        "a search on scikit-learn's digits, the best three confirmed",
        search("digits/sweep.yaml", "digits", then=["convsweep confirm digits --top 3 --seeds 3"]),
        97.0,
        example="digits",
    ),
    "mnist": Task("a search on MNIST", search("mnist/sweep.yaml", "mnist"), 99.4, example="mnist"),
    "cifar10": Task("a search on CIFAR-10", search("cifar10/sweep.yaml", "cifar10"), 85.0, example="cifar10"),
    "own-images": Task(
        "a search on a folder of 2,000 images",
        search("own-images/sweep.yaml", "own-images", before=OWN_IMAGES),
        97.0,
        example="own-images",
    ),
    "long-tail-plain": Task(
        "a search on CIFAR-10 with classes of 5,000 to 50 images, by accuracy",
        search("cifar10-long-tail/plain.yaml", "long-tail-plain", before=LONG_TAIL),
        score="macro_f1",
        example="cifar10-long-tail",
    ),
    "long-tail-tools": Task(
        "the same budget with the means against unequal classes",
        search("cifar10-long-tail/sweep.yaml", "long-tail-tools", before=LONG_TAIL),
        "long-tail-plain",
        score="macro_f1",
        example="cifar10-long-tail",
    ),
}


def main() -> None:
    """Run the tasks, print a line for each, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS], metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--write", action="store_true", help="run nothing, write the pages from what was found")
    given = parser.parse_args()
    if not given.write:
        with tempfile.TemporaryDirectory() as folder:
            surround(Path(folder))
            for name in given.tasks:
                found = run(name, Path(folder) / name)
                save(name, found, task_pages.FOLDER)
                print(f"{name:15} {task_pages.measured(TASKS[name], found)}, {found['seconds']:.0f} s", flush=True)
    task_pages.write(TASKS)


def surround(folder: Path) -> None:
    """What the commands find around them: this checkout, the data, a cache in `folder`, and nothing of this user's own."""
    for name in ("EXPERIMENTS", "STUDY_STORAGE", "STORAGE_PATH"):
        os.environ.pop(f"CONVSWEEP_{name}", None)
    data = str(Path(os.environ["CONVSWEEP_DATA"]).absolute())
    os.environ |= {"CONVSWEEP_DATA": data, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}


def run(name: str, folder: Path) -> dict[str, Any]:
    """The commands of one task, in `folder`, and what they gave."""
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    began = time.perf_counter()
    answers = [execute(step, folder) for step in TASKS[name].steps]
    seconds = time.perf_counter() - began
    metrics, classes = (
        json.loads((folder / f"bundles/{name}/{file}.json").read_text()) for file in ("metrics", "classes")
    )
    test = metrics["test"]
    recall = {label: row[i] / sum(row) for i, (label, row) in enumerate(zip(classes, test["confusion"], strict=True))}
    scores = {"accuracy": test["accuracy"], "macro_f1": test["macro_f1"], "recall": recall}
    found: dict[str, Any] = {"steps": TASKS[name].steps, "seconds": round(seconds, 1), "test": scores}
    for step, answer in zip(TASKS[name].steps, answers, strict=True):
        kind = step.split()[1]
        if kind == "sweep":
            states = Counter(trial["state"] for trial in answer["trials"])
            best = answer["trials"][0]
            found["sweep"] = {"trials": states, "seconds": answer["wall_seconds"], "metric": answer["metric"]}
            found["best"] = {"trial": best["number"], "value": best["value"], "config": best["config"]}
        elif kind == "train":
            found["best"] = {"value": answer["val_accuracy"], "config": answer["config"]}
        elif kind == "confirm":
            found["confirmed"] = answer
    return found


def execute(step: str, folder: Path) -> Any:
    """The JSON document that a `convsweep` command prints; of a script nothing is kept. Raises RuntimeError when it fails."""
    program, *words = shlex.split(step)
    if program == "convsweep":
        return convsweep(*words, folder=str(folder))
    done = subprocess.run([sys.executable, *words], cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{step} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return None


if __name__ == "__main__":
    main()
