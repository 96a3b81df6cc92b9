"""Write docs/benchmarks.md and its plots from what the benchmarks saved: `python -m bench.report`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl

from bench import results
from bench.predict import rates, share

mpl.use("svg")
import matplotlib.pyplot as plt

PAGE = results.FOLDER.parent / "benchmarks.md"
OURS, THEIRS = "#3b82f6", "#94a3b8"
PROMISE = ("promise", "promised", "measured", "kept")
FAST = {"mnist-fast": 99.5, "cifar10-fast": 88.0}
"""The test accuracy in percent that is promised of them in the time that the Keras recipe takes."""
SWEEP_NOTES = """On two cores with AVX2 alone, four fifths of these trainings' time goes into oneDNN's convolutions, at 70 to 85 GFLOP/s per
core where a product of large matrices reaches 90: what is left to gain is the start and small things. Tried and left out:
the gradient of the first convolution, which reaches 10 GFLOP/s on gray images, as one product of matrices: four times as fast
by itself, but 3 to 14 % slower inside a training.
"""
TRAIN_NOTES = """convsweep holds a tenth of the training images out, by which it chooses the epoch; Keras's recipes train on all of them.
"""
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
        write = WRITERS.get(name)
        if write is None:  # it has a page of its own
            continue
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
    least = {"loop": 1.5, "train": 5.0} if trials <= 16 else {"loop": 2.2, "train": 7.0}
    promises = [
        at_least(f"trials per minute against {way}", least[way], medians[way] / medians["convsweep"], "{:.2f}")
        for way in least
        if {way, "convsweep"} <= medians.keys()
    ]
    if found["training_share"]:
        share = statistics.median(found["training_share"])
        promises.append(at_least("training seconds / (groups x seconds after the start)", 0.95, share, "{:.3f}"))
    return (
        f"## A fixed list of {trials} MNIST trials (`bench.sweep`)\n\n{_table(heads, rows)}\n{found['said']}\n\n"
        f"{_table(PROMISE, promises)}\n{SWEEP_NOTES}\n{picture}"
    )


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
    promises = []
    for pair, recipe in found["pairs"].items():
        keras, own = found["keras"][recipe], found["convsweep"][pair]
        accuracy, theirs = (100 * statistics.mean(run["test_accuracy"] for run in runs) for runs in (own, keras))
        seconds, time = (statistics.median(run["train_seconds"] for run in runs) for runs in (own, keras))
        if pair in FAST:
            in_time = at_least(
                f"{pair}: % in the seconds of Keras's {recipe} ({time:.0f} s)", FAST[pair], accuracy, "{:.2f}"
            )
            promises.append((*in_time[:2], f"{in_time[2]} in {seconds:.0f} s", in_time[3] if seconds <= time else "no"))
        else:
            ratio = speeds[f"{pair}\nconvsweep"] / speeds[f"{pair}\nKeras"]
            promises.append(at_least(f"{pair}: images per second against Keras", 1.5, ratio, "{:.2f}"))
            promises.append(at_least(f"{pair}: % against Keras's", theirs - 0.3, accuracy, "{:.2f}"))
    return (
        f"## Single trainings against the Keras recipes (`bench.train`)\n\n{_table(heads, rows)}\n{_table(PROMISE, promises)}\n"
        f"{TRAIN_NOTES}\n{bars(name, 'images/s', speeds)}"
    )


def nodes(name: str, found: dict[str, Any]) -> str:
    """Trials per minute by the number of nodes."""
    sizes = found["nodes"]
    rows = [
        (str(n["nodes"]), f"{n['trials_per_minute']:.1f}", f"{n['share']:.3f}", f"{n['startup_seconds']:.1f} s")
        for n in sizes
    ]
    most = max(sizes, key=lambda one: one["nodes"])
    promises = [at_least(f"share at {most['nodes']} nodes of what so many could do", 0.95, most["share"], "{:.3f}")]
    figure, axes = plt.subplots(figsize=(4.5, 3.2))
    _line(axes, "trials per minute by nodes", [(one["nodes"], one["trials_per_minute"]) for one in sizes])
    return (
        f"## Nodes (`bench.nodes`)\n\nTrials that sleep for {found['seconds']:g} s, on nodes of one CPU each, "
        f"all on this machine: so the start, which is as many processes as nodes, says little about a cluster.\n\n"
        f"{_table(('nodes', 'trials per minute', 'share of what could be', 'start-up'), rows)}\n{_table(PROMISE, promises)}\n"
        f"{_save(figure, name)}"
    )


def scale(name: str, found: dict[str, Any]) -> str:
    """What a trial costs as a sweep grows, and reading a study."""
    rows = [
        (
            f"{one['trials']:,}",
            f"{1000 * one['overhead_first']:.0f} ms",
            f"{1000 * one['overhead_last']:.0f} ms",
            f"{1000 * one['wait']:.0f} ms",
            f"{one['startup_seconds']:.1f} s",
            f"{one['driver_mb']:.0f} MB",
        )
        for one in found["sweeps"]
    ]
    heads = (
        "trials",
        "overhead per trial up to the 100th",
        "near the end",
        f"wait of each of {found['sweeps'][0]['groups']} groups",
        "start-up",
        "driver's peak memory",
    )
    reading = [
        (f"{one['trials']:,}", f"{one['first']:.2f} s", f"{1000 * one['again']:.1f} ms") for one in found["readers"]
    ]
    sizes = sorted(found["sweeps"], key=lambda one: one["trials"])
    few, many = sizes[0], sizes[-1]
    promises = [
        at_most(
            f"overhead at trial {many['trials']:,} against that at trial {few['trials']:,}",
            1.5,
            many["overhead_last"] / few["overhead_last"],
            "{:.2f}",
        ),
        at_most(f"seconds of overhead at trial {many['trials']:,}", 0.1, many["overhead_last"], "{:.3f}"),
        at_most(f"MB of the driver at {many['trials']:,}", 700, many["driver_mb"], "{:.0f}"),
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    _line(left, "ms of overhead per trial", [(one["trials"], 1000 * one["overhead_last"]) for one in found["sweeps"]])
    _line(right, "s to read the study", [(one["trials"], one["first"]) for one in found["readers"]])
    return (
        "## Trials that only report (`bench.scale`)\n\nWhat a trial takes that takes no time itself: the driver asks, records and tells "
        f"them one after the other for all groups, so that each waits while the others' are asked.\n\n{_table(heads, rows)}\n"
        f"{_table(('trials of 20 epochs', 'first reading', 'again'), reading)}\n{_table(PROMISE, promises)}\n{_save(figure, name)}"
    )


def search(name: str, found: dict[str, Any]) -> str:
    """The best model after so many minutes."""
    rows = [
        (run["way"], f"{run['minutes']:.1f}", str(run["trials"]), f"{100 * run['test']:.2f} %") for run in found["runs"]
    ]
    heads = ("way", "minutes in all", "trials", "test accuracy of the winner")
    promises = [
        at_least(f"% after {run['minutes']:.0f} minutes", 88, 100 * run["test"], "{:.2f}")
        for run in found["runs"]
        if (run["way"], run["asked"]) == ("convsweep", 20)
    ]
    return f"## Searching on CIFAR-10 (`bench.search`)\n\n{_table(heads, rows)}\n{_table(PROMISE, promises)}"


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


def predict(name: str, found: dict[str, Any]) -> str:
    """Classifying folders of files, on one core."""
    rows, promises, speeds = [], [], {}
    for kind, one in found["kinds"].items():
        for way, who in (("bare", "bare loop"), ("convsweep", "convsweep")):
            alone, together = rates(one, way)
            start = statistics.median(one[way]["one"])
            size = f"{one['bytes'] / one['files'] / 1000:.1f} kB"
            rows.append((kind, f"{one['files']:,}", size, who, f"{alone:,.0f}", f"{together:,.0f}", f"{start:.2f} s"))
            speeds[f"{kind}\n{who}"] = alone
        promises.append(at_least(f"{kind}: images per second against the bare loop", 0.8, share(one), "{:.2f}"))
    heads = ("files", "how many", "of", "by", "images per second", "with the start", "start")
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return (
        f"## Classifying files on one core (`bench.predict`)\n\nWith {packages}.\n\n{_table(heads, rows)}\n"
        f"{_table(PROMISE, promises)}\n{bars(name, 'images/s', speeds)}"
    )


def at_least(what: str, promised: float, measured: float, form: str) -> tuple[str, str, str, str]:
    """A row of a table of promises: it is kept by that much or more."""
    return what, f">= {promised:g}", form.format(measured), "yes" if measured >= promised else "no"


def at_most(what: str, promised: float, measured: float, form: str) -> tuple[str, str, str, str]:
    """The same where less is better."""
    return what, f"<= {promised:g}", form.format(measured), "yes" if measured <= promised else "no"


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


WRITERS = {
    "sweep-16": sweep,
    "sweep-64": sweep,
    "train": train,
    "search": search,
    "scale": scale,
    "nodes": nodes,
    "gpu": gpu,
    "predict": predict,
}


if __name__ == "__main__":
    main()
