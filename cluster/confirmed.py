"""What several seeds say of a sweep's best configurations: mean, spread, and which are as good as the best. Arithmetic alone."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainer.domains import Value
from trainer.hyperparameters import flatten, unflatten
from trainer.measuring import METRICS, metric_named

if TYPE_CHECKING:
    from cluster.record import SweepRecord, TrialRecord

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
MOST_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class FinalScore:
    """One final model's scores on the `images` of the test split: the configuration of `trial`, trained with `seed`.

    `scored_at` (seconds since 1970) is when the test split was touched for it, which is once.
    """

    trial: int
    seed: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    loss: float
    images: int
    scored_at: float

    @property
    def key(self) -> int:
        """Its model's number in the store."""
        return key_of(self.trial, self.seed)

    def to_json(self) -> dict[str, Any]:
        """As plain values; `FinalScore(**values)` is the way back."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """One configuration, that of `trial`, with the `scores` of its final models by seed, compared by `metric`.

    `p` is that of Welch's t-test against the best one, after Holm's correction for several comparisons: None for the best itself,
    and where either has one seed alone. `tied` says whether chance may be all that lies between the two (None: nothing can be
    said); the best one is tied with itself.
    """

    trial: int
    parameters: int | None
    metric: str
    scores: tuple[FinalScore, ...]
    p: float | None = None
    tied: bool | None = None

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.scores)

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The metric by seed."""
        return tuple(float(getattr(score, self.metric)) for score in self.scores)

    @cached_property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values)

    @cached_property
    def deviation(self) -> float | None:
        """The sample's standard deviation; None for one seed."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean by Student's t; None for one seed."""
        if self.deviation is None:
            return None
        from scipy import stats

        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.deviation / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def typical(self) -> FinalScore:
        """The final model in the middle of the seeds: of an even number, the worse one of the two there. Never chosen for its score."""
        worst_first = sorted(self.scores, key=lambda score: (self.goodness(getattr(score, self.metric)), score.seed))
        return worst_first[(self.n - 1) // 2]

    def goodness(self, value: float) -> float:
        """A value of the metric such that more is better."""
        return METRICS[self.metric].merit(value)

    def to_json(self) -> dict[str, Any]:
        """What `confirm --json` says of a configuration."""
        return {
            "trial": self.trial,
            "parameters": self.parameters,
            "n": self.n,
            "mean": self.mean,
            "deviation": self.deviation,
            "interval": list(self.interval) if self.interval else None,
            "p": self.p,
            "tied": self.tied,
            "scores": [score.to_json() for score in self.scores],
        }


@dataclass(frozen=True)
class Comparison:
    """The confirmed `configurations` by their mean of the `metric`, best first; those of a single seed come last, unless all are."""

    metric: str
    configurations: tuple[Confirmed, ...]

    @cached_property
    def recommended(self) -> Confirmed | None:
        """Of those tied with the best, the one with the fewest parameters; the best mean where nothing can be said about ties."""
        tied = [c for c in self.configurations if c.tied]
        if not tied:
            return next(iter(self.configurations), None)
        # Of equal ones the first, which has the better mean.
        return min(tied, key=lambda c: math.inf if c.parameters is None else c.parameters)

    @property
    def scores(self) -> tuple[FinalScore, ...]:
        """Those of all final models, in the order in which the test split was touched for them."""
        return tuple(sorted((s for c in self.configurations for s in c.scores), key=lambda score: score.scored_at))

    def in_words(self) -> str:
        """Who is tied with whom, and how often the test split was touched; there must be a configuration."""
        assert self.recommended is not None
        last = self.scores[-1]
        when = datetime.fromtimestamp(last.scored_at).astimezone().strftime("%Y-%m-%d %H:%M")
        text = f"The test split ({last.images:,} images) was touched once for each of {len(self.scores)} models, last at {when}."
        tied = [str(c.trial) for c in self.configurations if c.tied]
        by_which_test = "(Welch's t-test, Holm's correction, 5 %)"
        if len(self.configurations) == 1:
            return text
        if not tied:
            return (
                f"One seed says nothing about chance; the best value is that of trial {self.recommended.trial}. {text}"
            )
        if len(tied) == 1:
            return f"Trial {self.recommended.trial} is the best {by_which_test}. {text}"
        ties = f"There may be nothing but chance between trials {', '.join(tied)} {by_which_test}"
        return f"{ties}; trial {self.recommended.trial} has the fewest parameters of them. {text}"

    def to_json(self) -> dict[str, Any]:
        """What `confirm --json` says, but for the sweep's name."""
        return {
            "metric": f"test_{self.metric}",
            "configurations": [c.to_json() for c in self.configurations],
            "recommended": self.recommended.trial if self.recommended else None,
            "test_touched": len(self.scores),
        }


def key_of(trial: int, seed: int) -> int:
    """The number that the final model of a trial's configuration with this seed, below MOST_SEEDS, has in its store."""
    return MOST_SEEDS * trial + seed


def best_configurations(sweep: SweepRecord, top: int) -> list[TrialRecord]:
    """The best complete trials; of several with one configuration, whatever their seeds, the best alone."""
    found: dict[frozenset[tuple[str, Value]], TrialRecord] = {}
    for trial in sweep.trials:
        if trial.state != "COMPLETE" or len(found) == top:
            break
        found.setdefault(configuration(trial), trial)
    return list(found.values())


def configuration(trial: TrialRecord) -> frozenset[tuple[str, Value]]:
    """What a trial trained, but for its seed: equal for trials that are one configuration."""
    return frozenset(flatten(unflatten(trial.config | {"training.seed": 0})).items())


def compare_confirmed(sweep: SweepRecord) -> Comparison:
    """What a sweep's record says, by the sweep's metric."""
    return compare(sweep.confirmed, {t.number: t.parameters for t in sweep.trials}, sweep.config.metric)


def compare(scores: Iterable[FinalScore], parameters: Mapping[int, int | None], metric: str) -> Comparison:
    """Compare the configurations, each of which has its trial's number of `parameters`, by a metric.

    Raises ValueError for an unknown one.
    """
    metric_named(metric)  # raises
    by_trial: dict[int, list[FinalScore]] = defaultdict(list)
    for score in scores:
        by_trial[score.trial].append(score)
    found = [
        Confirmed(
            trial=trial,
            parameters=parameters.get(trial),
            metric=metric,
            scores=tuple(sorted(its, key=lambda score: score.seed)),
        )
        for trial, its in by_trial.items()
    ]
    ranked = sorted(found, key=lambda c: (c.n < 2, -c.goodness(c.mean), c.trial))
    if not ranked or ranked[0].n < 2:
        return Comparison(metric, tuple(ranked))
    best, others = ranked[0], [c for c in ranked[1:] if c.n > 1]
    adjusted = holm([welch(best.values, c.values, best.scores[0].images) for c in others])
    judged = [replace(c, p=p, tied=p >= SIGNIFICANCE) for c, p in zip(others, adjusted, strict=True)]
    return Comparison(metric, (replace(best, tied=True), *judged, *ranked[1 + len(others) :]))


def welch(first: Sequence[float], second: Sequence[float], images: int) -> float:
    """The two-sided p-value of Welch's t-test for equal means, of at least two values each.

    Where neither has any spread the test has nothing to measure chance by. Scores on so many images are rounded to whole images: that
    much chance is assumed then.
    """
    deviations = [statistics.stdev(values) for values in (first, second)]
    means = [statistics.fmean(values) for values in (first, second)]
    if not any(deviations):
        deviations = [1 / (images * math.sqrt(12))] * 2  # of a uniform distribution as wide as one image
    from scipy import stats

    found = stats.ttest_ind_from_stats(
        means[0], deviations[0], len(first), means[1], deviations[1], len(second), equal_var=False
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's correction (1979, Scandinavian Journal of Statistics 6, 65-70), in their order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted
