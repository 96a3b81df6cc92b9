"""How a hyperparameter is declared: its domain, its condition and its meaning, as annotations of a field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Value = bool | int | float | str


@dataclass(frozen=True)
class OneOf:
    """Any of `values`; all of them are searched unless `search` names fewer. Many are told in `words` rather than one by one."""

    values: tuple[Value, ...]
    search: tuple[Value, ...] | None = None
    words: str | None = None

    def allows(self, value: Value) -> bool:
        """Whether `value` is one of the values, type included (True is not 1)."""
        return any(value == v and type(value) is type(v) for v in self.values)

    def __str__(self) -> str:
        return "one of " + (self.words or ", ".join(map(str, self.values)))


@dataclass(frozen=True)
class Between:
    """A number in [low, high]. `search` is what a sweep tries by default: a tuple of values, or a narrower `Between`.

    With `step` only low, low + step, ... are allowed (kernel sizes are odd); `log` searches on a logarithmic scale.
    """

    low: float
    high: float
    step: int | None = None
    log: bool = False
    search: tuple[Value, ...] | Between | ByValue | None = None

    def allows(self, value: Value) -> bool:
        """Whether the number `value` lies in the range and on its steps."""
        if isinstance(value, bool | str) or not self.low <= value <= self.high:
            return False
        return self.step is None or (value - self.low) % self.step == 0

    def __str__(self) -> str:
        odd = f", in steps of {self.step}" if self.step else ""
        return f"{_number(self.low)} to {_number(self.high)}{odd}"


@dataclass(frozen=True)
class ByValue:
    """What a sweep tries by default when that depends on another hyperparameter: its value -> the range."""

    name: str
    ranges: Mapping[Value, Between]


Domain = OneOf | Between


@dataclass(frozen=True)
class When:
    """The condition under which a hyperparameter has an effect: another one, which has an effect itself, has one of these values.

    Many values are told in `words` rather than one by one.
    """

    name: str
    values: tuple[Value, ...]
    words: str | None = None

    def __str__(self) -> str:
        return self.words or " or ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in self.values)


@dataclass(frozen=True)
class Doc:
    """What the hyperparameter means, in one line, with its unit."""

    text: str


@dataclass(frozen=True)
class PerBlock:
    """One value for each of the network's blocks: the field is a tuple of `model.blocks` values."""


def _number(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:g}"
