"""Measure what convsweep promises of accuracy, time between trials and equal losses, on real data.

    make bench                                     needs MNIST and CIFAR-10 under CONVSWEEP_DATA
    python -m bench.promises overhead ranks seeds  needs nothing

Prints one line per promise: what was asked, what came out, and whether it holds. Exit status 1 if one does not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import optuna

from bench.commands import convsweep

PLAIN = ["--set", "training.precision=float32", "--set", "model.batch_norm=false"]


def say(holds: bool, promise: str, found: str) -> bool:
    """Print the line; gives `holds`."""
    print(f"{'holds ' if holds else 'BROKEN'}  {promise}: {found}", flush=True)
    return holds


def preset(folder: str, name: str, data: str, least: float) -> bool:
    """A preset's test accuracy."""
    r = convsweep("train", "--preset", name, "--data", data, folder=folder)
    found = f"test {r['test_accuracy']:.4f}, validation {r['val_accuracy']:.4f}, {r['epochs']} epochs in {r['train_seconds']:.0f} s, "
    return say(
        r["test_accuracy"] >= least, f"{name} on {data} >= {least}", found + f"{r['images_per_second']:,.0f} images/s"
    )


def sweep(folder: str) -> bool:
    """A sweep ends, and the commands agree with plain Optuna."""
    started = time.time()
    ranked = convsweep("sweep", "--data", "mnist", "--trials", 24, "--epochs", 3, "--name", "m24", folder=folder)
    seconds = time.time() - started
    theirs = optuna.load_study(study_name="m24", storage=f"sqlite:///{folder}/experiments/studies.db").trials
    agree = len(theirs) == 24 and all(
        (t["state"], t["value"], t["epochs"])
        == (o.state.name, o.value if o.values else None, len(o.intermediate_values))
        for t in ranked["trials"]
        for o in [theirs[t["number"]]]
    )
    shown = all(
        [e["val_accuracy"] for e in convsweep("show", "m24", o.number, folder=folder)["epochs"]]
        == [*o.intermediate_values.values()]
        for o in theirs[:5]
    )
    listed = next(s for s in convsweep("list", folder=folder) if s["name"] == "m24")
    states = Counter(o.state.name for o in theirs)
    early = states["PRUNED"] >= 1 and min(len(o.intermediate_values) for o in theirs if o.state.name == "PRUNED") < 3
    ended = listed["trials"] == {s: states[s] for s in ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")}
    ended = ended and states["RUNNING"] == states["WAITING"] == 0
    best = ranked["trials"][0]["value"]
    baseline = next(t["value"] for t in ranked["trials"] if t["preset"])
    found = f"{dict(states)}, {seconds:.0f} s, start-up {ranked['startup_seconds']:.0f} s, best {best:.4f}, preset {baseline:.4f}"
    return say(agree and shown and early and ended, "24 trials of 3 MNIST epochs agree with plain Optuna", found)


def overhead(folder: str) -> bool:
    """The time between two trials on a warm group."""
    words = ["sweep", "--data", "digits", "--trials", 40, "--epochs", 1]
    ranked = convsweep(*words, folder=folder)
    found = (
        f"{ranked['overhead_seconds']:.3f} s with {ranked['groups']} groups, start-up {ranked['startup_seconds']:.1f} s"
    )
    return say(ranked["overhead_seconds"] <= 0.2, "40 one-epoch trials, median <= 0.2 s between two", found)


def losses(folder: str, *words: object) -> list[float]:
    """Training and validation losses of three digits epochs."""
    history = convsweep("train", "--data", "digits", "--epochs", 3, *words, folder=folder)["history"]
    return [e[name] for e in history for name in ("train_loss", "val_loss")]


def ranks(folder: str) -> bool:
    """Two ranks against one."""
    one, two = losses(folder, *PLAIN), losses(folder, *PLAIN, "--workers", 2)
    difference = max(abs(a - b) for a, b in zip(one, two, strict=True))
    return say(difference <= 1e-4, "two ranks against one, losses within 1e-4", f"{difference:.2g}")


def seeds(folder: str) -> bool:
    """The same seed twice."""
    equal = losses(folder) == losses(folder)
    return say(equal, "same seed, same losses bit for bit", "equal" if equal else "different")


PROMISES = {
    "mnist": lambda folder: preset(folder, "mnist-3conv", "mnist", 0.989),
    "cifar": lambda folder: preset(folder, "cifar-3conv", "cifar10", 0.69),
    "overhead": overhead,
    "ranks": ranks,
    "seeds": seeds,
    "sweep": sweep,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("promises", nargs="*", choices=[*PROMISES, []], help="which; all by default")
    chosen = parser.parse_args().promises or list(PROMISES)
    if root := os.environ.get("CONVSWEEP_DATA"):
        os.environ["CONVSWEEP_DATA"] = str(Path(root).absolute())
    with tempfile.TemporaryDirectory() as folder:
        held = [PROMISES[name](folder) for name in chosen]
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
