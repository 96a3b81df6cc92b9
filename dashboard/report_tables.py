"""Tables in the report: HTML of pandas tables, with numbers written as the pages write them. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from cluster.record import SweepRecord
from dashboard import tables
from dashboard.tables import Column

_MARKS = Column(
    "marks", "mark", "The preset that the trial had; front: no other trial beats it in value and cost at once"
)
_NUMBERS = ("Int64", "Float64")
_LONG = ("error", "infeasible")
_PRINTF = re.compile(r"%([+,]*)((?:\.\d+)?[defg])(.*)")


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number by which its column is sorted, if it is one."""

    text: str | Markup
    number: float | None = None
    is_long: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], caption: str, sortable: bool = False) -> Markup:
    """A table that can be scrolled sideways; `caption` is for those who cannot see it. The page's script makes it sortable."""
    heads = Markup("").join(
        Markup('<th scope="col"{} title="{}">{}</th>').format(_side(column), column.help, column.label)
        for column in columns
    )
    lines = Markup("\n").join(Markup("<tr>{}</tr>").format(Markup("").join(map(_cell, row))) for row in rows)
    return Markup(
        '<div class="scroll" role="region" aria-label="{}" tabindex="0"><table{}><caption>{}</caption>'
        "<thead><tr>{}</tr></thead>\n<tbody>{}</tbody></table></div>\n"
    ).format(caption, Markup(' class="sortable"') if sortable else "", caption, heads, lines)


def ranking(sweep: SweepRecord, found: pd.DataFrame, most: int, front: Collection[int]) -> Markup:
    """The first `most` rows of the ranking `found`: what became of the trials, and the hyperparameters that are not the same in all.

    Trials of the `front` are marked, as is the baseline.
    """
    known = tables.columns(found, sweep.config.goal)
    columns = [known[name] for name in tables.varied(found) if name not in ("curve", "preset")]
    rows, values = [], found[[c.name for c in columns]].head(most).itertuples(index=False)
    for trial, row in zip(sweep.trials, values, strict=False):
        first, second, *others = (cell(value, c) for value, c in zip(row, columns, strict=True))
        marks = [f"preset {trial.preset}"] * bool(trial.preset) + ["front"] * (trial.number in front)
        rows.append([first, second, Cell(", ".join(marks)), *others])
    caption = f"The trials of sweep {sweep.name}, best first"
    return table([*columns[:2], _MARKS, *columns[2:]], rows, caption, sortable=True)


def of_frame(frame: pd.DataFrame, columns: Sequence[Column], caption: str) -> Markup:
    """The table with these columns of the frame."""
    rows = frame[[column.name for column in columns]].itertuples(index=False)
    return table(columns, ([cell(value, c) for value, c in zip(row, columns, strict=True)] for row in rows), caption)


def cell(value: Any, column: Column) -> Cell:
    """A value of the column; what is missing is empty."""
    if pd.isna(value):
        return Cell("")
    if column.dtype in ("boolean", "bool"):
        return Cell("yes" if value else "no")
    if column.dtype in _NUMBERS:
        return Cell(written(value, column.format), float(value))
    return Cell(str(value), is_long=column.name in _LONG)


def written(value: float, form: str | None) -> str:
    """The number in a form such as '%,d' or '%.1f s', those of the pages' columns; without one as it is."""
    match = _PRINTF.fullmatch(form) if form else None
    if match is None:
        assert form is None, f"{form!r} is not a form of numbers"
        return f"{value:g}"
    flags, kind, after = match.groups()
    signs = ("+" if "+" in flags else "") + ("," if "," in flags else "")
    return f"{int(value) if kind == 'd' else value:{signs}{kind}}" + after.replace("%%", "%")


def _side(column: Column) -> Markup:
    return Markup(' class="number"') if column.dtype in _NUMBERS else Markup("")


def _cell(shown: Cell) -> Markup:
    if shown.number is None:
        return Markup('<td class="text">{}</td>' if shown.is_long else "<td>{}</td>").format(shown.text)
    return Markup('<td class="number" data-number="{}">{}</td>').format(repr(shown.number), shown.text)
