"""Trials and sweeps side by side, as tables. `python -m pytest tests/test_comparison.py -q`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.record import SweepRecord, TrialRecord, rank
from dashboard import comparison, comparison_charts
from tests.dashboard_studies import config
from trainer.domains import Value
from trainer.hyperparameters import TrialConfig, flatten
from trainer.metrics import EpochMetrics, history

CLASSES = ["zero", "one", "two"]
BEFORE = [[8, 1, 1], [0, 5, 5], [2, 0, 8]]
AFTER = [[10, 0, 0], [1, 4, 5], [2, 0, 8]]


def record(
    number: int, state: str = "COMPLETE", *accuracies: float, but: dict[str, Value] | None = None, **more: Any
) -> TrialRecord:
    epochs = history([EpochMetrics(i, 0.5, 0.5, a, 0.001, 1000.0 * i, 0.1) for i, a in enumerate(accuracies, 1)])
    value = max(accuracies) if accuracies and state in ("COMPLETE", "PRUNED") else None
    return TrialRecord(number, state, value, flatten(TrialConfig()) | (but or {}), epochs, **more)


def sweep_of(*trials: TrialRecord, name: str = "sweep") -> SweepRecord:
    runs = ({"begun": 1000.0, "ended": 1090.0, "groups": 3},)
    return SweepRecord(name, "FINISHED", config("sweep"), tuple(CLASSES), None, runs, rank(trials))


def test_the_suggested_trials_are_the_best_and_the_presets_else_the_two_best() -> None:
    preset = record(0, "COMPLETE", 0.5, preset="default")
    better, best = record(1, "COMPLETE", 0.6), record(2, "COMPLETE", 0.7)
    assert comparison.suggested_trials(sweep_of(preset, better, best)) == [2, 0]
    assert comparison.suggested_trials(sweep_of(better, best)) == [2, 1]
    assert comparison.suggested_trials(sweep_of(record(0, "COMPLETE", 0.9, preset="default"), better)) == [0, 1]
    assert comparison.suggested_trials(sweep_of(best)) == [2]
    assert comparison.suggested_trials(sweep_of()) == []


def test_the_suggested_sweeps_are_on_the_same_data() -> None:
    names, data = ["d", "c", "b", "a"], ["mnist", "digits", "mnist", "mnist"]
    assert comparison.suggested_sweeps(names, data, "b") == ["b", "d"]
    assert comparison.suggested_sweeps(names, data, "c") == ["c"]


def test_what_a_trial_has_not_is_a_dash() -> None:
    with_momentum = record(0, but={"optimizer.name": "sgd", "optimizer.momentum": 0.9})
    table = comparison.configuration([with_momentum, record(1)])
    differing = comparison.differing(table).set_index("hyperparameter")
    assert differing[["trial 0", "trial 1"]].to_numpy().tolist() == [["sgd", "adamw"], ["0.9", "–"]]
    assert differing.loc["optimizer.momentum", "meaning"] == "momentum"


def test_a_value_per_block_is_one_row_and_an_unknown_name_is_said_to_be_one() -> None:
    table = comparison.configuration([record(0, but={"x": 1, "model.kernel_size.2": 5}), record(1)]).set_index(
        "hyperparameter"
    )
    assert list(table.loc["model.kernel_size"])[:2] == ["3-5-3", "3-3-3"]
    assert list(table.loc["x"]) == ["1", "–", "not a hyperparameter of this version"]


def test_the_change_of_a_confusion_is_better_on_the_diagonal_and_worse_beside_it() -> None:
    change = comparison.confusion_change(np.array(BEFORE), np.array(AFTER), CLASSES)
    cells = change.cells.set_index(["true", "predicted"])
    assert cells["change"].to_numpy().reshape(3, 3).tolist() == [[2, -1, -1], [1, -1, 0], [0, 0, 0]]
    assert cells.loc[("zero", "zero"), ["first", "second", "better"]].tolist() == [8, 10, True]
    assert cells.loc[("zero", "one"), "better"]
    assert not cells.loc[("one", "zero"), "better"]
    assert not cells.loc[("one", "one"), "better"]
    assert cells["strength"].max() == 1
    assert change.classes["class"].tolist() == ["zero", "two", "one"]
    assert change.classes["images"].tolist() == [10, 10, 10]


def test_the_most_changed_classes_are_those_that_gained_and_those_that_lost() -> None:
    names = [f"class {i}" for i in range(20)]
    before = np.diag(np.full(20, 50)) + np.roll(np.diag(np.full(20, 50)), 1, axis=1)
    after = before.copy()
    for i in range(20):
        moved = i - 10
        after[i, i] += moved
        after[i, (i + 1) % 20] -= moved
    classes = comparison.confusion_change(before, after, names).classes
    changed = comparison.most_changed(classes, 3)
    assert changed["class"].tolist() == ["class 19", "class 18", "class 17", "class 2", "class 1", "class 0"]
    assert comparison.most_changed(classes[classes["change"] == 0]).empty


def test_an_empty_class_and_equal_confusions_divide_by_nothing() -> None:
    empty = np.array([[3, 0], [0, 0]])
    change = comparison.confusion_change(empty, empty, ["a", "b"])
    assert change.cells["strength"].tolist() == [0, 0, 0, 0]
    assert change.classes["first"].tolist() == [1, 0]


def test_confusions_of_other_images_are_not_compared() -> None:
    for other in ([[1, 0], [0, 3]], [[1]]):
        with pytest.raises(ValueError, match="not of the same images"):
            comparison.confusion_change(np.array([[2, 0], [0, 2]]), np.array(other), ["a", "b"])


def test_the_progress_of_sweeps_has_their_steps_and_their_ends() -> None:
    one = sweep_of(*(record(i, "COMPLETE", v) for i, v in enumerate([0.5, 0.4, 0.6, 0.1])), name="one")
    two = sweep_of(record(0, "PRUNED", 0.9), record(1, "COMPLETE", 0.3), name="two")
    steps = comparison.progress_of([one, two], "trials")
    assert list(steps[["sweep", "x", "best"]].itertuples(index=False, name=None)) == [
        ("one", 0, 0.5),
        ("one", 2, 0.6),
        ("one", 3, 0.6),
        ("two", 1, 0.3),
    ]


def test_the_facts_of_a_sweep_count_its_trials() -> None:
    facts = comparison.sweep_facts([sweep_of(record(0, "COMPLETE", 0.5), record(1, "FAIL"), record(2, "PRUNED", 0.1))])
    row = facts.iloc[0]
    assert (row["trials"], row["complete"], row["pruned"], row["failed"]) == (3, 1, 1, 1)
    assert (row["best"], row["minutes"], row["groups"]) == (0.5, 1.5, 3)


def test_many_classes_have_no_texts_in_their_cells() -> None:
    for number, layers in ((16, 2), (17, 1)):
        names = [str(i) for i in range(number)]
        cells = comparison.confusion_change(np.eye(number, dtype=np.int64), np.eye(number, dtype=np.int64), names).cells
        chart = comparison_charts.confusion_change(cells, names, "trial 0", "trial 1").to_dict()
        assert len(chart["layer"]) == layers
