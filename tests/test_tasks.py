"""What is run of `bench.tasks`, and what its pages say: `python -m pytest tests/test_tasks.py`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from bench import results, task_pages, tasks
from bench.tasks import TASKS, Task

SCORES = {"accuracy": 0.5, "macro_f1": 0.4, "confusion": [[3, 1], [2, 2]]}
SWEEP = {
    "trials": [
        {"number": 3, "state": "COMPLETE", "value": 0.75, "config": {"model.blocks": 2}},
        {"number": 0, "state": "PRUNED", "value": 0.5, "config": {"model.blocks": 3}},
    ],
    "wall_seconds": 12.5,
    "metric": "val_accuracy",
}


def content(score: float, **own: Any) -> dict[str, Any]:
    """What docs/results/TASK.json holds."""
    test = {"accuracy": score, "macro_f1": score, "recall": {"cat": 0.75, "dog": 0.5}}
    found = {"steps": ["convsweep sweep --data digits"], "seconds": 61.4, "test": test} | own
    return {"machine": "a machine", "versions": {"python": "3.11"}, "day": "2026-01-01", "found": found}


def row(name: str, page: str) -> list[str]:
    return next(line for line in page.splitlines() if line.startswith(f"| `{name}`")).strip("| ").split(" | ")


def test_a_task_runs_its_commands_and_keeps_what_its_bundle_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def pretend(*words: str, folder: str) -> Any:
        ran.append(shlex.join(["convsweep", *words]))
        if words[0] == "export":
            bundle = Path(folder) / words[words.index("--to") + 1]
            bundle.mkdir(parents=True)
            (bundle / "metrics.json").write_text(json.dumps({"test": SCORES}))
            (bundle / "classes.json").write_text(json.dumps(["cat", "dog"]))
        return SWEEP if words[0] == "sweep" else {}

    monkeypatch.setattr(tasks, "convsweep", pretend)
    found = tasks.run("mnist", tmp_path / "mnist")
    assert ran == list(TASKS["mnist"].steps) == list(found["steps"])
    assert found["test"] == {"accuracy": 0.5, "macro_f1": 0.4, "recall": {"cat": 0.75, "dog": 0.5}}
    assert found["sweep"] == {"trials": {"COMPLETE": 1, "PRUNED": 1}, "seconds": 12.5, "metric": "val_accuracy"}
    assert found["best"] == {"trial": 3, "value": 0.75, "config": {"model.blocks": 2}}


def test_a_script_that_fails_ends_the_task(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("raise SystemExit('the data are not there')")
    with pytest.raises(RuntimeError, match=r"python script\.py ended with status 1:\nthe data are not there"):
        tasks.execute("python script.py", tmp_path)


def test_what_is_not_measured_is_said_to_be_so() -> None:
    page = task_pages.page(TASKS, {})
    assert page.count("not measured yet") == len(TASKS)
    assert "## " not in page


@pytest.mark.parametrize(("score", "kept"), [(0.9749, "no"), (0.975, "yes"), (1.0, "yes")])
def test_a_promise_is_kept_from_its_number_on(score: float, kept: str) -> None:
    task = {"rnn": Task("a network", ("convsweep train --data mnist",), 97.5)}
    cells = row("rnn", task_pages.page(task, {"rnn": content(score)}))
    assert cells == ["`rnn`", "a network", ">= 97.5 %", f"accuracy {100 * score:.2f} %", kept, "61"]


@pytest.mark.parametrize(
    ("plain", "kept"), [(0.4, "yes"), (0.5, "no"), (0.6, "no"), (None, "")], ids=["less", "equal", "more", "unknown"]
)
def test_a_task_can_promise_more_than_another(plain: float | None, kept: str) -> None:
    both = {"plain": Task("without", (), score="macro_f1"), "tools": Task("with", (), "plain", score="macro_f1")}
    found = {"tools": content(0.5)} | ({} if plain is None else {"plain": content(plain)})
    cells = row("tools", task_pages.page(both, found))
    assert cells == ["`tools`", "with", "more than `plain`", "macro-F1 50.00 %", kept, "61"]


def test_a_section_says_what_was_run_and_what_came_of_it() -> None:
    own = {
        "sweep": {"trials": {"COMPLETE": 2, "PRUNED": 1}, "seconds": 50.4},
        "best": {"trial": 3},
        "confirmed": {
            "configurations": [
                {"trial": 3, "n": 3, "mean": 0.98, "deviation": 0.001, "tied": True},
                {"trial": 1, "n": 3, "mean": 0.9, "deviation": 0.002, "tied": False},
            ]
        },
    }
    page = task_pages.page({"digits": Task("a search", ())}, {"digits": content(0.5, **own)})
    assert page[page.index("## digits") :].splitlines() == [
        "## digits",
        "",
        "```console",
        "$ convsweep sweep --data digits",
        "```",
        "",
        "The sweep took 50 s (2 COMPLETE, 1 PRUNED); trial 3 was the best. Trial 3 confirmed with 3 seeds: 98.00 +- 0.10 %, as good as "
        "the best. Trial 1 confirmed with 3 seeds: 90.00 +- 0.20 %, worse. On the test split: accuracy 50.00 %, macro-F1 50.00 %. "
        "Recognised of each class, cat: 75.0 %, dog: 50.0 %.",
        "",
        "*a machine; python 3.11; 2026-01-01.*",
    ]


def test_the_results_of_other_tasks_stay(tmp_path: Path) -> None:
    results.save("digits", {"seconds": 1}, tmp_path)
    results.save("mnist", {"seconds": 2}, tmp_path)
    results.save("digits", {"seconds": 3}, tmp_path)
    assert {name: one["found"]["seconds"] for name, one in results.load(tmp_path).items()} == {"digits": 3, "mnist": 2}


def test_an_examples_page_gets_a_line_for_each_of_its_tasks_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "cats/README.md"
    file.parent.mkdir()
    file.write_text("# cats\n\nMeasured: not yet.\n\nBetween.\n\nMeasured: something old, 12 %.\n")
    sweep = {"sweep": {"trials": {"COMPLETE": 2, "PRUNED": 1}, "seconds": 50.4}}
    both = {"other": Task("dogs", (), example="dogs")}
    both |= {name: Task("cats", (), example="cats") for name in ("first", "second")}
    text = task_pages.with_measured(file, both, {"second": content(0.5, **sweep)})
    assert text.splitlines() == [
        "# cats",
        "",
        "Measured: not yet; `python -m bench.tasks --tasks first` does it.",
        "",
        "Between.",
        "",
        "Measured: accuracy 50.00 % on the test split; 3 trials in 50 s, all commands in 61 s (a machine; 2026-01-01).",
    ]


def test_an_examples_page_without_its_line_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cats/README.md"
    file.parent.mkdir()
    file.write_text("# cats\n")
    with pytest.raises(ValueError, match=r"a line 'Measured: \.\.\.' for each of its 1 task\(s\), but has 0"):
        task_pages.with_measured(file, {"first": Task("cats", (), example="cats")}, {})
