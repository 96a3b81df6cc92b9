"""What a sweep may choose: each hyperparameter's choices, the user's narrowing of them, and asking Optuna for a point."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import BaseTrial

from trainer.domains import Between, ByValue, OneOf, Value
from trainer.hyperparameters import MAX_BLOCKS, ModelConfig, Parameter, TrialConfig, parameter, parameters, unflatten


@dataclass(frozen=True)
class Choice:
    """One of these values; a single value is fixed and not searched."""

    values: tuple[Value, ...]

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """The sampler's choice. Whole numbers in regular steps are a range to it: it knows then that 3 is nearer to 5 than to 7."""
        if len(self.values) == 1:
            return self.values[0]
        values = sorted(v for v in self.values if type(v) is int)
        steps = {b - a for a, b in itertools.pairwise(values)}
        if len(values) == len(self.values) and len(steps) == 1:
            return trial.suggest_int(name, values[0], values[-1], step=steps.pop())
        chosen: Any = trial.suggest_categorical(name, self.values)
        value: Value = chosen
        return value

    def contains(self, value: Value) -> bool:
        """Whether it is one of the values."""
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Range:
    """A number in [low, high]."""

    low: float
    high: float
    log: bool = False
    step: int | None = None

    whole: bool = False

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """The sampler's choice."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def contains(self, value: Value) -> bool:
        """Whether the number lies in the range, on its steps."""
        assert not isinstance(value, str)
        return self.low <= value <= self.high and (not self.step or (value - self.low) % self.step == 0)

    def __str__(self) -> str:
        step = f", in steps of {self.step}" if self.step and self.step > 1 else ""
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}{step}"


@dataclass(frozen=True)
class Ranges:
    """A range that depends on another hyperparameter's value. Optuna allows a float's range to change between trials."""

    name: str
    by_value: Mapping[Value, Range]

    def __str__(self) -> str:
        return "; ".join(f"{between} where {self.name} is {value}" for value, between in self.by_value.items())


Domain = Choice | Range | Ranges


class Space:
    """The choices for every hyperparameter, by full name (`model.filters.2` for a block).

    `narrowing` is the user's `space:`: a list chooses among, a mapping `{low, high, log}` is a range, a scalar fixes;
    a name without block number means every block. `fixed` wins over it, and it over `usual`, which has the same form. Raises
    ValueError for unknown names and values that are not allowed.
    """

    def __init__(
        self, narrowing: Mapping[str, Any], fixed: Mapping[str, Value], usual: Mapping[str, Any] | None = None
    ) -> None:
        otherwise = {name: _parse(parameter(name), name, value) for name, value in (usual or {}).items()}
        given = {name: _parse(parameter(name), name, value) for name, value in narrowing.items()}
        given |= {name: Choice((parameter(name).check(value),)) for name, value in fixed.items()}
        self.domains: dict[str, Domain] = {}
        for p in parameters():
            names = [f"{p.name}.{i}" for i in range(1, MAX_BLOCKS + 1)] if p.per_block else [p.name]
            for name in names:
                wanted = given.get(name) or given.get(p.name)
                self.domains[name] = wanted or otherwise.get(name) or otherwise.get(p.name) or _default(p)
        blocks = self.domains["model.blocks"]
        most = max(int(v) for v in blocks.values) if isinstance(blocks, Choice) else int(blocks.high)  # type: ignore[union-attr]
        for name in narrowing:
            block = name.rpartition(".")[2]
            if block.isdigit() and int(block) > most:
                raise ValueError(f"{name}: the networks have at most {most} blocks (model.blocks).")
        self.domains = {n: d for n, d in self.domains.items() if not _is_beyond(n, most)}
        for name in narrowing:
            self._refuse_other_families(name)
        self._searched = {
            name: d
            for name, d in self.domains.items()
            if not (isinstance(d, Choice) and len(d.values) == 1) and self._can_have_effect(name)
        }

    def _refuse_other_families(self, name: str) -> None:
        """Raise ValueError when the user searches, or changes, what belongs to a family of networks that is not in the space."""
        condition, family = parameter(name).condition, self.domains["model.family"]
        if condition is None or condition.name != "model.family" or self._can_have_effect(name):
            return
        default = parameter(name).default
        wanted = self.domains.get(name) or self.domains[f"{name}.1"]
        if wanted != Choice((default[0] if isinstance(default, tuple) else default,)):
            assert isinstance(family, Choice)
            here = ", ".join(map(str, family.values))
            raise ValueError(f"{name} has an effect only with model.family = {condition}, but here that is {here}.")

    def _can_have_effect(self, name: str) -> bool:
        """Whether there are configurations in the space in which the hyperparameter has an effect."""
        condition = parameter(name).condition
        if condition is None:
            return True
        domain = self.domains[condition.name]
        assert not isinstance(domain, Ranges)
        return any(map(domain.contains, condition.values)) and self._can_have_effect(condition.name)

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """The configuration that the study's sampler proposes for this trial."""
        flat: dict[str, Value] = {}
        for p in parameters():
            if not p.is_active(flat):
                continue
            names = [f"{p.name}.{i}" for i in range(1, int(flat["model.blocks"]) + 1)] if p.per_block else [p.name]
            for name in names:
                flat[name] = self._domain(name, flat).suggest(trial, name)
        return unflatten(flat)

    def _domain(self, name: str, flat: Mapping[str, Value]) -> Choice | Range:
        domain = self.domains[name]
        return domain.by_value[flat[domain.name]] if isinstance(domain, Ranges) else domain

    def searched(self) -> dict[str, Domain]:
        """The hyperparameters that have more than one possible value, and an effect with some of the others', with those."""
        return self._searched

    def part_of(self, flat: Mapping[str, Value]) -> dict[str, Value]:
        """Of a given configuration, what is searched and lies in the space: what a sampler can learn from."""
        flat = _with_family(flat)
        given = [name for name in self.searched() if name in flat]
        return {name: flat[name] for name in given if self._domain(name, flat).contains(flat[name])}

    def contains(self, flat: Mapping[str, Value]) -> bool:
        """Whether a given configuration is one that could be proposed."""
        flat = _with_family(flat)
        return all(name in self.domains and self._domain(name, flat).contains(value) for name, value in flat.items())

    def record(self, trial: BaseTrial, flat: Mapping[str, Value]) -> None:
        """Ask the trial, which answers with a given configuration, for what of that lies in the space."""
        flat = _with_family(flat)
        for name in self.part_of(flat):
            self._domain(name, flat).suggest(trial, name)

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every configuration, each once, in order. Raises ValueError when a hyperparameter has a continuous range."""
        for name, domain in self.searched().items():
            if not isinstance(domain, Choice):
                raise ValueError(
                    f"A grid needs a list of values for each hyperparameter, but {name} is searched in a continuous range. "
                    f"List its values under `space:`, fix it, or use --sampler tpe or random."
                )
        yield from self._grid({}, tuple(self.domains))

    def _grid(self, flat: dict[str, Value], rest: tuple[str, ...]) -> Iterator[dict[str, Value]]:
        if not rest:
            yield flat
            return
        name, *others = rest
        p, block = parameter(name), name.rpartition(".")[2]
        if not p.is_active(flat) or (p.per_block and int(block) > int(flat["model.blocks"])):
            yield from self._grid(flat, tuple(others))
            return
        domain = self.domains[name]
        assert isinstance(domain, Choice)
        for value in domain.values:
            yield from self._grid({**flat, name: value}, tuple(others))


def _with_family(flat: Mapping[str, Value]) -> Mapping[str, Value]:
    """A configuration as it is, or, from before there were families of networks, with the one that there was."""
    return flat if "model.family" in flat else {"model.family": ModelConfig().family, **flat}


def _is_beyond(name: str, blocks: int) -> bool:
    """Whether it is a hyperparameter of a block after so many; loss.l2 is of none."""
    block = name.rpartition(".")[2]
    return block.isdigit() and int(block) > blocks


def _default(p: Parameter) -> Domain:
    search = p.domain.search
    if isinstance(search, ByValue):
        return Ranges(search.name, {value: _range(p, between) for value, between in search.ranges.items()})
    if isinstance(search, Between):
        return _range(p, search)
    if search is None:
        if isinstance(p.domain, OneOf):
            return Choice(p.domain.values)
        return _range(p, p.domain)
    return Choice(search or (p.default,))


def _range(p: Parameter, between: Between) -> Range:
    return Range(between.low, between.high, between.log, between.step, p.type is int)


def _parse(p: Parameter, name: str, value: Any) -> Domain:
    if isinstance(value, Mapping):
        return _parse_range(p, name, value)
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name}: the list of values is empty.")
        return Choice(tuple(dict.fromkeys(p.check(v) for v in value)))
    return Choice((p.check(value),))


def _parse_range(p: Parameter, name: str, value: Mapping[str, Any]) -> Domain:
    strange = set(value) - {"low", "high", "log", "step"}
    if strange or not {"low", "high"} <= set(value) or isinstance(p.domain, OneOf):
        allowed = p.domain if isinstance(p.domain, OneOf) else "{low: ..., high: ..., log: true or false, step: ...}"
        raise ValueError(
            f"{name}: expected {'a list or value of ' if isinstance(p.domain, OneOf) else ''}{allowed}, but got {dict(value)}."
        )
    low, high = p.check(value["low"]), p.check(value["high"])
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    log, step = value.get("log", p.domain.log), value.get("step", p.domain.step)
    if not low <= high:
        raise ValueError(f"{name}: `low <= high` must hold, but got (low={low}, high={high}).")
    if not isinstance(log, bool) or (log and low <= 0):
        raise ValueError(f"{name}: `log` is true or false, and true needs `low > 0`, but got (low={low}, log={log}).")
    if step is not None and (
        isinstance(step, bool) or not isinstance(step, int) or step < 1 or (p.domain.step and step % p.domain.step)
    ):
        raise ValueError(f"{name}: `step` must be a positive multiple of {p.domain.step or 1}, but got {step!r}.")
    return Choice((low,)) if low == high else Range(float(low), float(high), log, step, p.type is int)
