"""What a sweep is: `SweepConfig`, from a YAML file, from the command line, and from the study that recorded it."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from cluster.budget import Budget
from cluster.goals import Objectives, check_goals, read_limits
from cluster.plan import GroupShape
from cluster.recipes import RECIPES, UNMIRRORED
from cluster.space import Space
from cluster.yaml_values import read_yaml
from trainer.data import DataConfig
from trainer.fold_scores import MOST_FOLDS
from trainer.hyperparameters import TrialConfig, flatten, nearest, unflatten
from trainer.measuring import ACCURACY, METRICS, Metric
from trainer.named_data import NAMES
from trainer.presets import preset

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("halving", "median", "none")
NO_PRESET = "none"
DEFAULT_TRIALS = 20
MAX_GRID = 10_000


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Everything a user says about a sweep. Checked when it is made; raises ValueError with a sentence.

    `epochs` are those of a trial that is not pruned; `time_budget` (seconds) is the time after which no new trial starts;
    `preset` is the configuration that the first trial has (None: the data set's own), `first` are those of the trials after it,
    each of which says what is other than in the preset. `trials` is None only with a limit of `budget`: as many as fit into it.
    Once the next trial is expected to gain less than `min_gain` over the best so far, no new one starts.
    A trial whose processes die is begun again up to `max_retries` times, one without an epoch within `epoch_timeout` seconds fails.
    `warm_start_from` names a sweep whose trials the sampler learns from, `metric` what makes one trial better than another.
    With `folds` above 1 a trial is trained once for each fold, and its value is the mean of theirs. `goals` are costs that shall be
    low besides, `constraints` (such as 'latency_ms <= 5') what every trial has to keep to, and `latency_batch` is how many images
    at a time the latency is of. With `tensorboard` there is an event file of each trial.
    """

    name: str
    data: DataConfig
    trials: int | None = DEFAULT_TRIALS
    epochs: int = 10
    time_budget: float | None = None
    sampler: str = "tpe"
    pruner: str = "halving"
    preset: str | None = None
    seed: int = 0
    space: Mapping[str, Any] = field(default_factory=dict)
    first: Sequence[Mapping[str, Any]] = ()
    shape: GroupShape = field(default_factory=GroupShape)
    keep_checkpoints: int = 5
    max_retries: int = 2
    epoch_timeout: float | None = None
    warm_start_from: str | None = None
    metric: str = ACCURACY.name
    folds: int = 1
    goals: Sequence[str] = ()
    constraints: Sequence[str] = ()
    latency_batch: int = 1
    gpu_hours: float | None = None
    max_cost: float | None = None
    price_per_node_hour: float | None = None
    min_gain: float | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "first", tuple(self.first))
        for name in ("trials", "epochs", "keep_checkpoints", "latency_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but got {value}.")
        if self.budget.is_unlimited and self.trials is None:
            raise ValueError("A sweep ends when something is spent: give trials, time_budget, gpu_hours or max_cost.")
        for name in ("time_budget", "epoch_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name} must be longer than 0 s, but got {seconds:g} s.")
        if not 1 <= self.folds <= MOST_FOLDS:
            raise ValueError(
                f"folds must be 1, which is a single validation split, to {MOST_FOLDS}, but got {self.folds}."
            )
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be at least 0, but got {self.max_retries}.")
        if self.min_gain is not None and not 0 <= self.min_gain < math.inf:
            raise ValueError(f"min_gain must be 0 or more, but got {self.min_gain:g}.")
        if self.min_gain is not None and self.sampler == "grid":
            raise ValueError("A grid tries every combination and expects nothing: leave out min_gain.")
        if self.warm_start_from is not None and self.sampler == "grid":
            raise ValueError("A grid tries every combination and learns nothing: leave out warm_start_from.")
        for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("metric", tuple(METRICS))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, but got {value!r}.{nearest(value, known)}")
        object.__setattr__(self, "goals", check_goals(self.goals, self.goal))
        object.__setattr__(self, "constraints", tuple(map(str, read_limits(self.constraints, self.goal))))
        if self.latency_batch > 1 and "latency_ms" not in self.objectives.costing.names:
            raise ValueError("latency_batch has no effect: neither a goal nor a constraint names latency_ms.")
        if self.baseline is not None:
            preset(self.baseline)
        space = self.build_space()
        if self.sampler == "grid":
            next(space.grid())
        self.first_trials()
        enqueued = self.trials_before_grid()
        if self.first and self.trials is not None and self.trials < enqueued:
            raise ValueError(
                f"trials must be at least {enqueued}, those of `first` and the ones before them, but got {self.trials}."
            )

    @property
    def goal(self) -> Metric:
        """What the search optimises; with `goals` the first of its objectives."""
        return METRICS[self.metric]

    @property
    def objectives(self) -> Objectives:
        """All that makes a trial good."""
        return Objectives(self.goal, tuple(self.goals), read_limits(self.constraints, self.goal), self.latency_batch)

    @property
    def budget(self) -> Budget:
        """What may be spent, beside trials."""
        return Budget(
            time_budget=self.time_budget,
            gpu_hours=self.gpu_hours,
            max_cost=self.max_cost,
            price_per_node_hour=self.price_per_node_hour,
        )

    @property
    def baseline(self) -> str | None:
        """The preset of the first trial, or None for none. A grid is run as it is."""
        if self.preset is not None or self.sampler == "grid":
            return None if self.preset in (NO_PRESET, None) else self.preset
        known = NAMES.get(self.data.data)
        return known.preset if known else "default"

    def starting_point(self) -> TrialConfig:
        """The baseline's configuration, or the default one, with the sweep's epochs and seed."""
        own = {"training.epochs": self.epochs, "training.seed": self.seed}
        return unflatten(own, preset(self.baseline or "default"))

    def recipe_trial(self) -> TrialConfig | None:
        """The best known recipe for the data set, or None: without one, with a preset of the user's own, or outside the space."""
        known = NAMES.get(self.data.data)
        if (
            known is None
            or known.recipe is None
            or self.preset is not None
            or self.sampler == "grid"
            or self.trials == 1
        ):
            return None
        own = {"training.epochs": self.epochs, "training.seed": self.seed}
        recipe = unflatten(own | ({} if known.mirrored else dict(UNMIRRORED)), preset(known.recipe))
        return recipe if self.build_space().contains(flatten(recipe)) else None

    def first_trials(self) -> list[TrialConfig]:
        """The configurations of `first`, whole. Raises ValueError for what is no configuration."""
        base = self.starting_point()
        found = []
        for place, given in enumerate(self.first, 1):
            if not isinstance(given, Mapping):
                raise ValueError(f"first: {place}. must map hyperparameters to values, but got {given!r:.60}.")
            _refuse_own(given, "first")
            found.append(unflatten(given, base))
        return found

    def grid_trials(self) -> int:
        """How many trials a grid has, with the preset's and those of `first`. Raises ValueError for too many."""
        points = sum(1 for _ in itertools.islice(self.build_space().grid(), MAX_GRID + 1))
        if points > MAX_GRID:
            raise ValueError(
                f"A grid may have {MAX_GRID:,} combinations, but it has more: fix or narrow some under `space:`."
            )
        return points + self.trials_before_grid()

    def trials_before_grid(self) -> int:
        """How many trials are given: the preset's, the recipe's and those of `first`."""
        return len(self.first) + (self.baseline is not None) + (self.recipe_trial() is not None)

    def build_space(self) -> Space:
        """The search space: the declared one, as the data set's recipe and then the user narrow it."""
        _refuse_own(self.space, "space")
        known = NAMES.get(self.data.data)
        usual = dict(RECIPES[known.recipe]) if known and known.recipe else {}
        if known and not known.mirrored:
            usual |= UNMIRRORED
        return Space(self.space, {"training.epochs": self.epochs, "training.seed": self.seed}, usual)

    def to_json(self) -> dict[str, Any]:
        """As plain values; `from_json` is the way back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SweepConfig:
        """The configuration that `to_json` gave."""
        return cls(**{**values, "data": DataConfig(**values["data"]), "shape": GroupShape(**values["shape"])})

    @classmethod
    def from_text(cls, text: str) -> SweepConfig:
        """The configuration that `to_json` gave, as JSON. Raises ValueError for a text that is not."""
        try:
            return cls.from_json(json.loads(text))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The record of a sweep cannot be read ({type(error).__name__}: {error}): it is damaged, or was written by another "
                "version of convsweep."
            ) from error


def _refuse_own(given: Mapping[str, Any], part: str) -> None:
    if "training.epochs" in given or "training.seed" in given:
        raise ValueError(
            f"training.epochs and training.seed are the sweep's own `epochs` and `seed`, not part of `{part}`."
        )


def check_name(name: str) -> None:
    """Raise ValueError unless `name` can name a sweep: it becomes a folder and a study."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", name):
        raise ValueError(
            f"A sweep's name has 1 to 80 letters, digits, '-', '_' and '.', beginning with a letter or digit, but got {name!r}."
        )


_DATA_KEYS = {
    "data": "data",
    "data_root": "root",
    "cache": "cache",
    "image_size": "image_size",
    "validation_fraction": "validation_fraction",
    "skip_broken": "skip_broken",
}
_SHAPE_KEYS = tuple(f.name for f in fields(GroupShape))
_OWN_KEYS = tuple(f.name for f in fields(SweepConfig) if f.name not in ("data", "shape"))
KEYS = (*_DATA_KEYS, *_OWN_KEYS, *_SHAPE_KEYS)


def read_sweep_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML sweep file, or on standard input where `path` is -; those without a value are left out.

    Raises ValueError for a file that is none, for unknown keys and for values of a wrong type.
    """
    try:
        content = read_yaml(sys.stdin.read() if str(path) == "-" else path.read_text())
    except OSError as error:
        raise ValueError(f"The sweep file {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is not text"
        raise ValueError(f"{str(path)!r}{where} is not YAML: {problem}.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{str(path)!r} must hold settings such as `data: mnist` and `trials: 20`, but it holds {content!r:.60}."
        )
    settings = {str(key).replace("-", "_"): value for key, value in content.items() if value is not None}
    for key, value in settings.items():
        if key not in KEYS:
            raise ValueError(
                f"{str(path)!r}: there is no setting {key!r}.{nearest(key, KEYS)} Settings: {', '.join(KEYS)}."
            )
        try:
            _check_type(key, value)
        except ValueError as error:
            raise ValueError(f"{str(path)!r}: {error}") from error
    return settings


def make_config(settings: Mapping[str, Any]) -> SweepConfig:
    """A checked configuration from settings as a sweep file has them; raises ValueError for a wrong type as well."""
    given = {key: value for key, value in settings.items() if value is not None}
    for key, value in given.items():
        _check_type(key, value)
    for name in ("time_budget", "epoch_timeout"):
        if name in given:
            given[name] = parse_duration(given[name])
    if not given.keys().isdisjoint(("time_budget", "gpu_hours", "max_cost")) and "trials" not in given:
        given["trials"] = None
    if "data" not in given:
        raise ValueError(f"A sweep needs data: {', '.join(NAMES)}, or a folder of images.")
    if given.get("folds", 1) > 1 and "validation_fraction" in given:
        raise ValueError(
            "With folds every image is held out once, and none for good: leave out validation_fraction, or folds."
        )
    data = DataConfig(**{_DATA_KEYS[key]: given[key] for key in _DATA_KEYS if key in given})
    data.check()
    shape = GroupShape(**{key: given[key] for key in _SHAPE_KEYS if key in given})
    config = SweepConfig(**{key: given[key] for key in _OWN_KEYS if key in given}, data=data, shape=shape)
    if config.sampler == "grid":  # there is nothing to try beyond it
        most = config.grid_trials()
        config = replace(config, trials=min(given.get("trials") or most, most))
    return config


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("trials", "epochs", "seed", "keep_checkpoints", "max_retries"), (int,)),
    **dict.fromkeys(("workers", "groups", "image_size", "folds", "latency_batch"), (int,)),
    **dict.fromkeys(("cpus_per_worker", "gpus_per_worker", "validation_fraction"), (int, float)),
    **dict.fromkeys(("name", "data", "data_root", "cache", "sampler", "pruner", "preset", "warm_start_from"), (str,)),
    "metric": (str,),
    **dict.fromkeys(("time_budget", "epoch_timeout"), (int, float, str)),
    **dict.fromkeys(("gpu_hours", "max_cost", "price_per_node_hour", "min_gain"), (int, float)),
    **dict.fromkeys(("skip_broken", "tensorboard"), (bool,)),
    "space": (dict,),
    **dict.fromkeys(("first", "goals", "constraints"), (list,)),
}
_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}


def _check_type(key: str, value: object) -> None:
    allowed = _TYPES[key]
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise ValueError(f"{key} must be {_TYPE_NAMES[allowed[-1]]}, but got {value!r}.")


def parse_duration(text: str | float) -> float:
    """Seconds of '90', '90s', '30m', '1.5h' or '1d'. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(text))
    if not match:
        raise ValueError(f"A duration is a number with s, m, h or d, such as 30m, but got {text!r}.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
