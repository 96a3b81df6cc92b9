"""Pages about the tasks of `bench.tasks`: docs/results.md, and the lines `Measured: ...` in the examples' own pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import results

if TYPE_CHECKING:
    from bench.tasks import Task

FOLDER = results.FOLDER.parent / "results"
PAGE = FOLDER.with_suffix(".md")
EXAMPLES = FOLDER.parents[1] / "examples"
MEASURED = re.compile(r"^Measured: .*$", re.MULTILINE)
SCORES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
INTRODUCTION = """# Real tasks

What `python -m bench.tasks` found: each task is a few commands, run one after the other as a reader would run them, and its score
is that of the model which they leave, on the test split. *Seconds* are those of all commands together, starting Ray and
decoding the images included. The examples' own pages are in [examples/](../examples/README.md).
"""


def write(tasks: Mapping[str, Task]) -> None:
    """Write them all, from what was found so far."""
    content = results.load(FOLDER)
    PAGE.write_text(page(tasks, content))
    for file in examples(tasks):
        file.write_text(with_measured(file, tasks, content))
    print(f"wrote {PAGE} and the examples' lines `Measured: ...`")


def page(tasks: Mapping[str, Task], content: Mapping[str, Any]) -> str:
    """docs/results.md."""
    rows = ["| task | what | promised | measured | kept | seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for name, task in tasks.items():
        found = content[name]["found"] if name in content else None
        cells = ["not measured yet", "", ""]
        if found is not None:
            cells = [measured(task, found), kept(task, found, content), f"{found['seconds']:.0f}"]
        rows.append("| " + " | ".join([f"`{name}`", task.what, _promised(task), *cells]) + " |")
    sections = [_section(name, content[name]) for name in tasks if name in content]
    return "\n".join([INTRODUCTION, *rows, "", *sections])


def measured(task: Task, found: Mapping[str, Any]) -> str:
    """The score, as the tables have it."""
    return f"{SCORES[task.score]} {100 * found['test'][task.score]:.2f} %"


def kept(task: Task, found: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Whether the task keeps what is promised: yes, no, or nothing where nothing is, or the other task was not measured."""
    promised = task.promised
    if isinstance(promised, str):
        if promised not in content:
            return ""
        return "yes" if found["test"][task.score] > content[promised]["found"]["test"][task.score] else "no"
    if promised is None:
        return ""
    return "yes" if 100 * found["test"][task.score] >= promised else "no"


def _promised(task: Task) -> str:
    if isinstance(task.promised, str):
        return f"more than `{task.promised}`"
    return "" if task.promised is None else f">= {task.promised:g} %"


def _section(name: str, content: Mapping[str, Any]) -> str:
    found = content["found"]
    commands = "".join(f"$ {step}\n" for step in found["steps"])
    versions = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
    return (
        f"## {name}\n\n```console\n{commands}```\n\n{' '.join([*_trials(found), *_confirmed(found), _tested(found)])}\n\n"
        f"*{content['machine']}; {versions}; {content['day']}.*\n"
    )


def _trials(found: Mapping[str, Any]) -> Iterator[str]:
    if "sweep" in found:
        states = ", ".join(f"{count} {state}" for state, count in found["sweep"]["trials"].items())
        yield f"The sweep took {found['sweep']['seconds']:.0f} s ({states}); trial {found['best']['trial']} was the best."


def _confirmed(found: Mapping[str, Any]) -> Iterator[str]:
    for one in found.get("confirmed", {}).get("configurations", ()):
        spread = "" if one["deviation"] is None else f" +- {100 * one['deviation']:.2f}"
        tied = {True: "as good as the best", False: "worse", None: "not compared"}[one["tied"]]
        yield f"Trial {one['trial']} confirmed with {one['n']} seeds: {100 * one['mean']:.2f}{spread} %, {tied}."


def _tested(found: Mapping[str, Any]) -> str:
    test = found["test"]
    recall = ", ".join(f"{label}: {100 * share:.1f} %" for label, share in test["recall"].items())
    return (
        f"On the test split: accuracy {100 * test['accuracy']:.2f} %, macro-F1 {100 * test['macro_f1']:.2f} %. Recognised of "
        f"each class, {recall}."
    )


def examples(tasks: Mapping[str, Task]) -> list[Path]:
    """The examples' pages."""
    return [EXAMPLES / name / "README.md" for name in dict.fromkeys(t.example for t in tasks.values() if t.example)]


def with_measured(file: Path, tasks: Mapping[str, Task], content: Mapping[str, Any]) -> str:
    """An example's page with its lines `Measured: ...`, one for each of its tasks in their order.

    Raises ValueError when it has not as many.
    """
    lines = [_line(name, task, content) for name, task in tasks.items() if task.example == file.parent.name]
    there = len(MEASURED.findall(text := file.read_text()))
    if there != len(lines):
        raise ValueError(
            f"{file} must have a line 'Measured: ...' for each of its {len(lines)} task(s), but has {there}."
        )
    following = iter(lines)
    return MEASURED.sub(lambda _: next(following), text)


def _line(name: str, task: Task, content: Mapping[str, Any]) -> str:
    if name not in content:
        return f"Measured: not yet; `python -m bench.tasks --tasks {name}` does it."
    found = content[name]["found"]
    sweep = found.get("sweep")
    trials = f"{sum(sweep['trials'].values())} trials in {sweep['seconds']:.0f} s, " if sweep else ""
    where = f"{content[name]['machine']}; {content[name]['day']}"
    return (
        f"Measured: {measured(task, found)} on the test split; {trials}all commands in "
        f"{found['seconds']:.0f} s ({where})."
    )
