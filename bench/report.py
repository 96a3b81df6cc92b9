"""Write docs/benchmarks.md and its plots from what the benchmarks saved: `python -m bench.report`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl

from bench import results

mpl.use("svg")
import matplotlib.pyplot as plt

PAGE = results.FOLDER.parent / "benchmarks.md"
OURS, THEIRS = "#3b82f6", "#94a3b8"
INTRODUCTION = """# Benchmarks

What `make bench` measured, each comparison in one sitting on one machine. Written by `python -m bench.report` from the files in
[benchmarks/](benchmarks/); each benchmark's own text says how it measures. Times are medians with the lowest and the highest,
accuracies are on the test split.
"""


def main() -> None:
    """Write the page and the plots of what is there."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = results.load()
    sections = [INTRODUCTION]
    for name, content in found.items():
        write = {"train": train, "scale": scale, "search": search, "gpu": gpu}.get(name, sweep)
        where = f"*{content['machine']}; {', '.join(f'{k} {v}' for k, v in content['versions'].items())}; {content['day']}.*"
        sections.append(f"{write(name, content['found'])}\n\n{where}\n")
    PAGE.write_text("\n".join(sections))
    print(f"wrote {PAGE}")


def sweep(name: str, found: dict[str, Any]) -> str:
    """One fixed list of trials, by way."""
    trials, seconds = found["trials"], found["seconds"]
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    rows = [
        (
            way,
            str(len(times)),
            _spread(times, "{:.0f}"),
            f"{60 * trials / medians[way]:.1f}",
            f"{medians[way] / medians['convsweep']:.2f}" if "convsweep" in medians else "-",
        )
        for way, times in seconds.items()
    ]
    heads = ("way", "n", "seconds", "trials per minute", "convsweep is faster by")
    picture = bars(name, "trials per minute", {way: 60 * trials / s for way, s in medians.items()})
    return f"## A fixed list of {trials} MNIST trials (`bench.sweep`)\n\n{_table(heads, rows)}\n{found.get('said', '')}\n\n{picture}"


def train(name: str, found: dict[str, Any]) -> str:
    """Single trainings against the Keras recipes."""
    rows = []
    for pair, recipe in found["pairs"].items():
        for who, runs in (("Keras", found["keras"][recipe]), ("convsweep", found["convsweep"][pair])):
            accuracies = [run["test_accuracy"] for run in runs]
            rows.append(
                (
                    recipe if who == "Keras" else f"**{pair}**",
                    who,
                    str(len(runs)),
                    f"{100 * statistics.mean(accuracies):.2f} %",
                    _spread([run["train_seconds"] for run in runs], "{:.0f}"),
                    _spread([run["images_per_second"] for run in runs], "{:,.0f}"),
                )
            )
    heads = ("configuration", "by", "n", "test accuracy (mean)", "seconds", "images per second")
    speeds = {
        f"{pair}\n{who}": statistics.median(run["images_per_second"] for run in runs)
        for pair, recipe in found["pairs"].items()
        for who, runs in (("Keras", found["keras"][recipe]), ("convsweep", found["convsweep"][pair]))
    }
    return f"## Single trainings against the Keras recipes (`bench.train`)\n\n{_table(heads, rows)}\n{bars(name, 'images/s', speeds)}"


def scale(name: str, found: dict[str, Any]) -> str:
    """What a trial costs as a sweep grows, and reading a study."""
    rows = [
        (
            f"{one['trials']:,}",
            f"{1000 * one['wait_first']:.0f} ms",
            f"{1000 * one['wait_last']:.0f} ms",
            f"{one['trials_per_second']:.1f}",
            f"{one['startup_seconds']:.1f} s",
            f"{one['driver_mb']:.0f} MB",
        )
        for one in found["sweeps"]
    ]
    heads = (
        "trials",
        "wait near the beginning",
        "near the end",
        "trials per second",
        "start-up",
        "driver's peak memory",
    )
    reading = [
        (f"{one['trials']:,}", f"{one['first']:.2f} s", f"{1000 * one['again']:.1f} ms") for one in found["readers"]
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    _line(
        left, "ms that a group waits per trial", [(one["trials"], 1000 * one["wait_last"]) for one in found["sweeps"]]
    )
    _line(right, "s to read the study", [(one["trials"], one["first"]) for one in found["readers"]])
    return (
        "## Trials that only report (`bench.scale`)\n\nHow long a group waits between two trials that take no time themselves: the "
        f"driver asks, records and tells them one after the other for all groups.\n\n{_table(heads, rows)}\n"
        f"{_table(('trials of 20 epochs', 'first reading', 'again'), reading)}\n{_save(figure, name)}"
    )


def search(name: str, found: dict[str, Any]) -> str:
    """The best model after so many minutes."""
    rows = [
        (run["way"], f"{run['minutes']:.1f}", str(run["trials"]), f"{100 * run['test']:.2f} %") for run in found["runs"]
    ]
    heads = ("way", "minutes in all", "trials", "test accuracy of the winner")
    return f"## Searching on CIFAR-10 (`bench.search`)\n\n{_table(heads, rows)}"


def gpu(name: str, found: dict[str, Any]) -> str:
    """One GPU: single trainings, and groups that share it."""
    seconds, accuracies = ([run[key] for run in found["cifar10"]] for key in ("train_seconds", "test_accuracy"))
    rates = ", ".join(
        f"{rate:,.0f} trials per hour with {groups} group(s)" for groups, rate in found["trials_per_hour"].items()
    )
    return (
        f"## One {found['gpu']} (`bench.gpu`)\n\nCIFAR-10: {100 * statistics.mean(accuracies):.2f} % (mean of {len(accuracies)}) in "
        f"{_spread(seconds, '{:.1f}')} s. MNIST: {rates}."
    )


def bars(name: str, label: str, values: dict[str, float]) -> str:
    """A horizontal bar for each value; convsweep's own are blue. Returns what shows the picture."""
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.42 * len(values)))
    colours = [OURS if "convsweep" in key else THEIRS for key in values]
    axis.barh(list(values), list(values.values()), color=colours)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, name)


def _line(axis: Any, label: str, points: Sequence[tuple[float, float]]) -> None:
    axis.plot(*zip(*points, strict=True), marker="o", color=OURS)
    axis.set_xlabel("trials")
    axis.set_title(label, fontsize=10)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, name: str) -> str:
    figure.savefig(results.FOLDER / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return f"![{name}](benchmarks/{name}.svg)"


def _spread(values: Sequence[float], form: str) -> str:
    middle = form.format(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in [heads, ["---"] * len(heads), *rows])


if __name__ == "__main__":
    main()
