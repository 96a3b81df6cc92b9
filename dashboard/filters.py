"""What the trials of a sweep can be filtered by, and which trials fit. Pure functions: no Streamlit, no database."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.record import SweepRecord, TrialRecord
from cluster.space import Choice, Domain, Range
from dashboard import tables
from trainer.domains import Between, Value
from trainer.hyperparameters import MAX_BLOCKS, parameter
from trainer.measuring import ACCURACY, Metric

AT_MOST_STEPS = 12
"""Numbers of so few different values are chosen among these values."""

_MANTISSAS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_SHARES = tuple(i / 200 for i in range(201))  # a narrower range would become another one with every trial
_OUTCOME = ("value", "parameters", "train_seconds")
"""What became of a trial and can be filtered by as well; on a logarithmic scale what is no share."""


@dataclass(frozen=True)
class Filter:
    """Something that the trials can be filtered by; `name` is the hyperparameter's, or the column's.

    A number has `steps`, ascending, between which a range is chosen; all of its values lie between the first and the last.
    Everything else has `choices`.
    """

    name: str
    label: str
    help: str
    steps: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def everything(self) -> tuple[float, float]:
        """The range that leaves no trial out."""
        return self.steps[0], self.steps[-1]


def labels(trials: Sequence[TrialRecord], goal: Metric = ACCURACY) -> dict[str, str]:
    """What the trials can be filtered by: names, in the order of the ranking's columns, and what people call them.

    A hyperparameter with a value per block is there as a whole, all of whose values must fit, and block by block.
    """
    found = {c.name: c.label for c in tables.outcome(goal) if c.name in _OUTCOME}
    parts = tables.hyperparameter_names(trials)
    for column in tables.hyperparameter_columns(trials):
        found[column.name] = column.label
        if parts[column.name] != [column.name]:
            found |= {part: f"{column.label} {part.rpartition('.')[2]}" for part in parts[column.name]}
    return found


def make(sweep: SweepRecord, name: str, label: str) -> Filter:
    """The filter by a name of `labels`, with all values of the sweep's trials and of its space."""
    lists = _values(sweep.trials, name)
    present = {value for values in lists for value in values}
    domains = _domains(sweep, name)
    is_share = name == "value" and sweep.config.goal.is_share
    log = name in _OUTCOME and not is_share
    about = ""
    if name not in _OUTCOME:
        try:
            declared = parameter(name)
        except ValueError:
            about = "Not a hyperparameter of this version"
        else:
            log = isinstance(declared.domain, Between) and declared.domain.log
            every = "; the values of all blocks must fit" if declared.per_block and name == declared.name else ""
            about = f"`{name}`: {declared.doc}{every}"
    if present and all(_is_number(value) for value in present):
        whole = all(isinstance(value, int) for value in present)
        numbers = {float(value) for value in present if math.isfinite(value)}  # type: ignore[arg-type]
        numbers |= {end for domain in domains for end in _ends(domain)}
        listed = whole or (bool(domains) and all(isinstance(domain, Choice) for domain in domains))
        steps = _SHARES if is_share else _steps(sorted(numbers), log, whole, listed)
        if len(steps) > 1:
            return Filter(name, label, about, steps)
    offered = [value for domain in domains if isinstance(domain, Choice) for value in domain.values]
    more = sorted(present.difference(offered), key=str)
    return Filter(name, label, about, choices=tuple(dict.fromkeys(map(str, [*offered, *more]))))


def fitting(
    trials: Sequence[TrialRecord], states: Sequence[str], chosen: Mapping[str, Sequence[Any]]
) -> npt.NDArray[np.bool_]:
    """Which of the trials have one of the states and fit all that was chosen; no state means any.

    `chosen` has, by name, a range of numbers, or texts of which one must be the trial's. A trial that does not have the
    hyperparameter does not fit.
    """
    fits = np.ones(len(trials), dtype=bool)
    if states:
        fits &= np.fromiter((t.state in states for t in trials), bool, len(trials))
    for name, wanted in chosen.items():
        lists = _values(trials, name)
        if all(_is_number(value) for value in wanted):
            low, high = wanted
            fits &= [bool(values) and all(_is_number(v) and low <= v <= high for v in values) for values in lists]
        else:
            fits &= [bool(values) and all(str(v) in wanted for v in values) for values in lists]
    return fits


def written(value: float) -> str:
    """A step as people write it, and as it stands in the address."""
    return str(int(value)) if value == int(value) and abs(value) < 1e9 else f"{value:g}"


def _values(trials: Sequence[TrialRecord], name: str) -> list[list[Value]]:
    """For each trial its values of that name: none, one, or one per block."""
    if name in _OUTCOME:
        return [[] if (value := getattr(t, name)) is None else [value] for t in trials]
    parts = _parts(name)
    return [[t.config[part] for part in parts if part in t.config] for t in trials]


def _parts(name: str) -> list[str]:
    """What a configuration may have under that name."""
    try:
        declared = parameter(name)
    except ValueError:
        return [name]
    whole = declared.per_block and declared.name == name
    return [f"{name}.{block}" for block in range(1, MAX_BLOCKS + 1)] if whole else [name]


def _domains(sweep: SweepRecord, name: str) -> list[Domain]:
    """What the sweep's space has under that name; of a value per block, each block's."""
    try:
        domains = sweep.config.build_space().domains
    except ValueError:  # another version's
        return []
    return [domain for key, domain in domains.items() if key == name or key.rpartition(".")[0] == name]


def _ends(domain: Domain) -> list[float]:
    if isinstance(domain, Choice):
        return [float(value) for value in domain.values if _is_number(value)]
    ranges = [domain] if isinstance(domain, Range) else list(domain.by_value.values())
    return [end for found in ranges for end in (found.low, found.high)]


def _steps(numbers: Sequence[float], log: bool, whole: bool, listed: bool) -> tuple[float, ...]:
    """Between which steps a range is chosen, for ascending numbers; `listed` ones can be steps themselves."""
    if len(numbers) < 2 or (listed and len(numbers) <= AT_MOST_STEPS):
        return tuple(numbers)
    low, high = numbers[0], numbers[-1]
    if log and low >= 0:
        return _logarithmic(low or numbers[1], high, zero=low == 0)
    return _linear(low, high, whole)


def _logarithmic(low: float, high: float, zero: bool) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    grid = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in _MANTISSAS]
    below = max(step for step in grid if step <= low)
    above = min(step for step in grid if step >= high)
    return (*((0.0,) if zero else ()), *(step for step in grid if below <= step <= above))


def _linear(low: float, high: float, whole: bool) -> tuple[float, ...]:
    rough = (high - low) / 50
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step), math.ceil(high / step)
    return tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
