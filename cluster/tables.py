"""What the commands print: tables for people, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.activity import SHOWN, errors
from cluster.confirmed import compare_confirmed
from cluster.record import SweepRecord, SweepSummary, TrialRecord
from trainer.fold_scores import numbered_by_fold, with_margin
from trainer.gradients import troubles
from trainer.hyperparameters import in_short, parameter
from trainer.measuring import ACCURACY, Metric

if TYPE_CHECKING:
    from cluster.cleaning import Surplus
    from cluster.export import Exported
    from cluster.verdicts import Verdict
    from trainer.inspection import Inspection


def _output() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)  # a file has no 80 columns


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2))


def show_training(result: Mapping[str, Any], goal: Metric, as_json: bool) -> None:
    """The result of `train`."""
    if as_json:
        _print_json(result)
        return
    test = "" if result["test_accuracy"] is None else f", test accuracy {result['test_accuracy']:.4f}"
    by = "" if goal == ACCURACY else f" by {goal.label}"
    out = _output()
    out.print(
        f"Best epoch {result['best_epoch']} of {result['epochs']}{by}: validation accuracy {result['val_accuracy']:.4f}{test}. "
        f"{result['parameters']:,} parameters, {result['train_seconds']:.1f} s, {result['images_per_second']:,.0f} images/s.",
        soft_wrap=True,
    )
    if result["bundle"]:
        out.print(f"Exported to {result['bundle']}", soft_wrap=True)


def show_list(sweeps: Sequence[SweepSummary], as_json: bool) -> None:
    """All sweeps."""
    rows = [sweep.to_json() for sweep in sweeps]
    if as_json:
        _print_json(rows)
        return
    if not rows:
        _output().print("There are no sweeps yet. Make one: convsweep sweep --data digits")
        return
    table = Table("sweep", "state", "data", "complete", "pruned", "failed", "running", "waiting", "best", box=None)
    for sweep in sweeps:
        best = _score(sweep.best_value)
        if best and sweep.metric != ACCURACY:
            best += f" ({sweep.metric.label})"
        table.add_row(sweep.name, sweep.state, sweep.data, *map(str, sweep.counts.values()), best)
    _output().print(table)


def show_ranking(sweep: SweepRecord, top: int | None, as_json: bool, front: bool = False) -> None:
    """A sweep's trials, the best first; with `front` those on its Pareto front alone."""
    goal, objectives = sweep.config.goal, sweep.config.objectives
    ranking = [t for t in sweep.trials if t.number in sweep.front] if front else sweep.trials
    if as_json:
        head: dict[str, Any] = {"sweep": sweep.name, "state": sweep.state, "metric": goal.field}
        head |= {"goals": list(sweep.config.goals), "constraints": list(sweep.config.constraints)}
        head |= sweep.timing.to_json()
        head |= {"spent": sweep.spent_to_json(), "reason": sweep.ending and sweep.ending.reason}
        trials = [t.to_json() | {"front": t.number in sweep.front} for t in (ranking[:top] if top else ranking)]
        _print_json(head | {"trials": trials})
        return
    out = _output()
    if not ranking:
        out.print(f"Sweep {sweep.name!r} has no trials yet." if not front else _no_front(sweep))
        return
    costs = [name for name in objectives.costing.names if name != "parameters"]  # these have a column anyway
    heads = ("epochs", "seconds", "parameters", *map(objectives.label, costs), "configuration")
    table = Table("", "trial", "state", goal.label, *heads, box=None, padding=(0, 1))
    marked = sweep.front if objectives.costs else ()
    for place, trial in enumerate(ranking[: top or 10], 1):
        preset = f"preset {trial.preset}: " if trial.preset else ""
        beyond = f"[{trial.infeasible}] " if trial.infeasible else ""
        parameters = f"{trial.parameters:,}" if trial.parameters else ""
        table.add_row(
            f"{place}{' *' if trial.number in marked else ''}",
            str(trial.number),
            trial.state,
            _value(trial),
            str(trial.epochs_done),
            f"{trial.train_seconds:.1f}",
            parameters,
            *(f"{trial.costs[name]:.4g}" if name in trial.costs else "" for name in costs),
            Text(beyond + preset + in_short(trial.config)),
        )
    out.print(table)
    if len(ranking) > (top or 10):
        out.print(f"and {len(ranking) - (top or 10)} more: --top {len(ranking)}")
    if marked and not front:
        goals = ", ".join(objectives.costs)
        out.print(
            f"* the front of {goal.name}, {goals}: no trial is better in one of them and as good in the others; --front"
        )


def _no_front(sweep: SweepRecord) -> str:
    keeps = " and keeps to the constraints" if sweep.config.constraints else ""
    return f"No trial of sweep {sweep.name!r} is complete{keeps}."


def show_trial(trial: TrialRecord, goal: Metric, as_json: bool) -> None:
    """One trial with its epochs."""
    if as_json:
        _print_json(
            trial.to_json()
            | {"epochs": [e.to_json() for e in trial.epochs], "gradients": trial.gradients.to_json()}
            | {"error": trial.error, "log": trial.log}
        )
        return
    out = _output()
    preset = f", preset {trial.preset}" if trial.preset else ""
    out.print(f"trial {trial.number}: {trial.state}, {goal.label} {_value(trial) or '-'}{preset}")
    if trial.fold_values:
        out.print(f"of {len(trial.fold_values)} folds: {'  '.join(map(_score, trial.fold_values))}", soft_wrap=True)
    if trial.error:
        out.print(trial.error, style="red", markup=False)
    if trial.infeasible:
        out.print(f"It does not keep to the sweep's constraints: {trial.infeasible}", style="red", markup=False)
    if trial.costs:
        out.print(", ".join(f"{name} {value:,.6g}" for name, value in trial.costs.items()), markup=False)
    if trial.log:
        out.print(f"Log: {trial.log}", markup=False, soft_wrap=True)
    table = Table("hyperparameter", "value", "meaning", box=None)
    for name, value in trial.config.items():
        table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value), parameter(name).doc)
    out.print(table)
    own = [] if goal.field in SHOWN else [goal]
    heads = ("train loss", "val loss", "val accuracy", *(f"val {g.label}" for g in own), "learning rate")
    folds = "fold" in trial.history
    epochs = Table(*["fold"] * folds, "epoch", *heads, "images/s", "seconds", box=None)
    for e, number in zip(trial.epochs, numbered_by_fold(trial.history), strict=True):
        scores = (e.train_loss, e.val_loss, e.val_accuracy, *(g.value_of(e) for g in own))
        numbers = (*[str(e.fold)] * folds, str(number), *(f"{score:.4f}" for score in scores), f"{e.learning_rate:.2g}")
        epochs.add_row(*numbers, f"{e.images_per_second:,.0f}", f"{e.seconds:.2f}")
    out.print(epochs)
    for trouble in troubles(trial.gradients):
        out.print(trouble.text, style="yellow", markup=False, soft_wrap=True)


def show_outcome(sweep: SweepRecord, state: str, reason: str | None, folder: str, as_json: bool) -> None:
    """The end of a run: the ranking and what to do next."""
    notes = errors()
    option = "" if folder == "experiments" else f" --experiments {folder}"
    if reason:
        notes.print(reason, markup=False, soft_wrap=True)
    if as_json:
        show_ranking(sweep, None, as_json=True)
    elif any(t.epochs_done for t in sweep.trials):
        show_ranking(sweep, None, as_json=False)
    if state == "INTERRUPTED":
        notes.print(f"Interrupted. Go on with it: convsweep resume {sweep.name}{option}", soft_wrap=True)
    elif state == "FAILED" and sweep.counts["WAITING"]:
        notes.print(f"When that is mended, go on with it: convsweep resume {sweep.name}{option}", soft_wrap=True)
    elif state == "FINISHED" and not as_json:
        _output().print(_gain(sweep) + _next_steps(sweep.name, option), soft_wrap=True)
    if state == "FINISHED" and sweep.best is None and sweep.config.constraints:
        notes.print(_no_front(sweep) + " Widen the constraints, or narrow the space.", markup=False, soft_wrap=True)


def _gain(sweep: SweepRecord) -> str:
    """How much better than the preset the best trial is, and where the time went."""
    timing, baseline, best = sweep.timing, sweep.baseline, sweep.best
    text = f"\n{timing.wall_seconds:.0f} s, of which {timing.startup_seconds:.0f} s to start {timing.groups} worker group(s)"
    text += f" and {timing.overhead_seconds:.2f} s (median) between two trials.\n"
    if best and baseline and best.value is not None and baseline.value is not None:
        goal, values = sweep.config.goal, (baseline.value, best.value)
        if goal == ACCURACY:
            what, shown = "error", [f"{100 * (1 - value):.2f} %" for value in values]
        else:
            what, shown = goal.label, [f"{value:.4f}" for value in values]
        text += f"Validation {what}: preset {baseline.preset} {shown[0]}, best trial {shown[1]}.\n"
    return text


def _next_steps(name: str, option: str) -> str:
    return f"Export the best model: convsweep export {name}{option}\nBrowse the trials:     convsweep dashboard{option}"


def show_confirmed(sweep: SweepRecord, failures: Mapping[str, str], as_json: bool) -> None:
    """What `confirm` has recorded of a sweep, the best mean first, and which final trainings failed now, why."""
    comparison = compare_confirmed(sweep)
    for title, cause in failures.items():
        errors().print(f"{title} failed: {cause.splitlines()[0]}", markup=False, soft_wrap=True)
    if as_json:
        _print_json({"sweep": sweep.name, "failures": dict(failures)} | comparison.to_json())
        return
    if not comparison.configurations:
        _output().print("Nothing is confirmed yet.")
        return
    names = (
        "trial",
        "parameters",
        "n",
        f"mean {comparison.metric}",
        "deviation",
        "95 % interval",
        "tied",
        "configuration",
    )
    table = Table("", *names, box=None, padding=(0, 1))
    for c in comparison.configurations:
        table.add_row(
            "*" if c is comparison.recommended else "",
            str(c.trial),
            f"{c.parameters:,}" if c.parameters else "",
            str(c.n),
            _score(c.mean),
            _score(c.deviation),
            "{:.4f} to {:.4f}".format(*c.interval) if c.interval else "",
            {True: "yes", False: "no", None: "?"}[c.tied],
            in_short(sweep.trial(c.trial).config),
        )
    out = _output()
    out.print(table)
    out.print(comparison.in_words(), markup=False, soft_wrap=True)
    out.print(f"Export its model of the middle seed: convsweep export {sweep.name}", markup=False, soft_wrap=True)


def show_export(exported: Exported, as_json: bool) -> None:
    """The result of `export`."""
    folder, written = exported.folder, exported.written
    difference, scores = written.max_difference, written.scores
    if as_json:
        accuracies = {f"{split}_accuracy": s.accuracy for split, s in scores.items()}
        seeds = {"seeds": asdict(exported.seeds)} if exported.seeds else {}
        seeds |= {"folds": exported.folds.to_json()} if exported.folds else {}
        _print_json(
            {"bundle": str(folder), "formats": [_format(name) for name in written.checks], "max_difference": difference}
            | {"drops": {precision: found.drop for precision, found in written.smaller.items()}}
            | accuracies
            | seeds
        )
        return
    accuracy = ", ".join(f"{split} accuracy {s.accuracy:.4f}" for split, s in scores.items())
    if exported.folds and "validation" not in scores:
        accuracy = ", ".join([f"cross-validated {exported.folds}", *([accuracy] if accuracy else [])])
    cost = "".join(f"; {p} costs {found.drop:.4f} of the accuracy" for p, found in written.smaller.items())
    _output().print(
        f"{folder}: {accuracy}; written and live model agree within {difference:.1g}{cost}.\n"
        f"Classify images with it: convsweep predict {folder} IMAGE...",
        soft_wrap=True,
    )


def _format(name: str) -> str:
    """A file's ending, with its precision: model.int8.onnx is int8.onnx."""
    return name.removeprefix("model.").removeprefix("weights.")


def show_surplus(surplus: Surplus, as_json: bool) -> None:
    """What `clean` has found."""
    if as_json:
        _print_json({"files": surplus.files, "bytes": surplus.size, "kept": surplus.kept})
        return
    out = _output()
    for path, size in sorted(surplus.files.items()):
        out.print(f"{_bytes(size):>10}  {path}", markup=False, soft_wrap=True)
    stays = f"the weights of trials {', '.join(map(str, surplus.kept))} stay" if surplus.kept else "no weights are kept"
    what = (
        f"{_bytes(surplus.size)} in {len(surplus.files)} file(s) are not needed" if surplus.files else "All is needed"
    )
    out.print(f"{what}; {stays}.", soft_wrap=True)


def show_inspection(found: Inspection, as_json: bool) -> None:
    """What `doctor` has found in a folder of images."""
    if as_json:
        _print_json(found.to_json())
        return
    out = _output()
    for split, counts in found.counts.items():
        total = sum(counts.values())
        listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        out.print(f"{split}: {total:,} images in {len(counts)} classes: {listed}", markup=False, soft_wrap=True)
    for finding in found.findings:
        out.print(f"{finding.severity}: {finding.text}", markup=False, soft_wrap=True)
        for line in finding.details[:10]:
            out.print(f"    {line}", markup=False, soft_wrap=True)
        if len(finding.details) > 10:
            out.print(f"    and {len(finding.details) - 10:,} more: --json has all")
    if not found.findings:
        out.print("Nothing is wrong with them.")


def show_verdicts(address: str, found: Sequence[Verdict], as_json: bool) -> None:
    """What `doctor` has found on a cluster."""
    if as_json:
        _print_json({"address": address, "checks": [verdict.to_json() for verdict in found]})
        return
    out = _output()
    for verdict in found:
        mark = {True: "good", False: "WRONG", None: "-"}[verdict.good]
        mends = f" -- {verdict.fix}" if verdict.fix else ""
        out.print(f"{mark:6} {verdict.name}: {verdict.text}{mends}", markup=False, soft_wrap=True)


def _bytes(size: int) -> str:
    return f"{size:,} B" if size < 1000 else f"{size / 1e3:,.1f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"


def _value(trial: TrialRecord) -> str:
    """With its margin, where it is the mean of several folds."""
    return "" if trial.value is None else with_margin(trial.value, trial.fold_values)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
