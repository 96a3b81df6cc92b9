"""Where an exported model comes from, for its bundle's figures and card. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.domains import Value
from trainer.fold_scores import FoldFigures
from trainer.measuring import ACCURACY, Metric
from trainer.seed_figures import SeedFigures


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search that found a model: what it could choose, in words by hyperparameter, and what it could spend.

    `trials` are how many there are in each state, `value` what the exported one has on the validation split; `baseline` is the preset's
    trial, if it ran: its name, value and configuration. `environment` is where it ran.
    """

    sweep: str
    trial: int
    metric: Metric
    value: float | None
    sampler: str
    pruner: str
    trials: Mapping[str, int]
    budget: str
    spent: str
    space: Mapping[str, str]
    baseline: Baseline | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """The trial that others are compared with: that of a preset, which nobody has searched."""

    preset: str
    trial: int
    value: float
    config: Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an exported model comes from: the search and its trial, or a single training with none.

    `command` trains it again. A `final` model was trained on the validation images too, with several `seeds` if the sweep was
    confirmed. `folds` are the trial's values where it was cross-validated.
    """

    epochs: int
    command: str
    metric: Metric = ACCURACY
    search: Search | None = None
    final: bool = False
    seeds: SeedFigures | None = None
    folds: FoldFigures | None = None
