"""What the next trial is expected to gain over the best one so far, and the end of a sweep for which that is too little.

Two estimates are made from the values of the trials that have ended, and the larger one counts: a sweep that ends too early loses more
than one that tries a few more.

By what is proposed now: the last complete trials are a sample of what the sampler proposes. What exceeds a high threshold is about
exponentially distributed, whatever the distribution is below (peaks over threshold: Pickands, "Statistical inference using extreme
order statistics", 1975, with the tail of a normal distribution). With the sample's (k + 1)-th best value as threshold u, and m the mean
by which the k best exceed it, a proposal thus exceeds the best b by k / n m exp(-(b - u) / m) on average. It does so with the
probability that it is complete: a pruned trial was not among the best, and a failed one has no value; neither gains anything. The
best third of the sample are its k best. With normally distributed values, whose tail is thinner, that is two to four times too much.

By how it went: the mean rise of the best value over the last trials, each of which may have been the one that gained.

Optuna's terminators are not used. Their Gaussian processes know the hyperparameters that all trials have, 21 of 32 by default, need
torch in the driver, and take a core 1.5 s for 200 trials and 43 s for 1,000 (EMMREvaluator of Optuna 5.0; 0.6 and 6 s for the regret
bound); a plateau with a standard deviation of 0.01 is expected to gain 0.5 to 1 by the one, 0.002 to 0.006 by the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean

from cluster.budget import Ending
from cluster.running_trial import RunningTrial
from cluster.study import SweepStudy
from cluster.watchers import Watcher

AT_LEAST = 10
"""So many trials must have ended before anything is expected,"""
AT_LEAST_COMPLETE = 5
"""and so many of them have been complete."""
RECENT = 20
"""Of so many last trials the progress is taken, and the share that was complete; so many last complete ones are the sample."""


def expected_gain(values: Sequence[float | None]) -> float | None:
    """What the next trial is expected to be better than the best so far; None as long as too few trials have ended.

    `values` are those of the trials in the order in which they ended, the larger the better: None for one that is not complete.
    """
    complete = [value for value in values if value is not None]
    if len(values) < AT_LEAST or len(complete) < AT_LEAST_COMPLETE:
        return None
    recent = values[-RECENT:]
    share = sum(value is not None for value in recent) / len(recent)
    return max(share * _gain_of_proposal(complete[-RECENT:], max(complete)), _progress(values))


def _gain_of_proposal(sample: Sequence[float], best: float) -> float:
    """What one more value of the sample's distribution is expected to exceed `best` by."""
    descending, size = sorted(sample, reverse=True), len(sample)
    exceeding = max(2, size // 3)
    threshold = descending[exceeding]
    mean = fmean(descending[:exceeding]) - threshold
    return exceeding / size * mean * math.exp((threshold - best) / mean) if mean > 0 else 0.0


def _progress(values: Sequence[float | None]) -> float:
    """By how much a trial has raised the best value on average, of the last ones; the first complete one raised nothing."""
    best = list(accumulate((-math.inf if value is None else value for value in values), max))
    known = [value for value in best[-RECENT - 1 :] if value > -math.inf]
    return (known[-1] - known[0]) / (len(known) - 1) if len(known) > 1 else 0.0


class GainWatch(Watcher):
    """Follows the expected gain of a sweep's next trial as trials end. Once it is below `least`, the sweep has its `ending`.

    That is recorded and stays, also when the sweep is resumed, until it is extended.
    """

    def __init__(self, study: SweepStudy, least: float) -> None:
        self._study, self._least, self._merit = study, least, study.config.goal.merit
        finished = [t for t in study.read().trials if t.ended is not None and t.state in ("COMPLETE", "PRUNED", "FAIL")]
        finished.sort(key=lambda t: (t.ended, t.number))
        self._values = [self._merit(t.value) if t.state == "COMPLETE" else None for t in finished]
        known = study.ending
        self.ending = known if known is not None and known.setting == "min_gain" else None
        self._estimate()

    def ended(self, trial: RunningTrial, state: str) -> None:
        """Estimate anew, unless the trial only waits."""
        if state != "WAITING":
            self._values.append(self._merit(trial.value) if state == "COMPLETE" else None)
            self._estimate()

    def _estimate(self) -> None:
        self.gain = expected_gain(self._values)
        if self.ending is None and self.gain is not None and self.gain < self._least:
            words = f"expected gain {self.gain:.2g} < {self._least:g} after {len(self._values)} trials"
            self.ending = Ending("min_gain", f"The sweep has ended: {words}.")
            self._study.note_ending(self.ending)

    def __str__(self) -> str:
        gain = "not known yet" if self.gain is None else f"{self.gain:.2g}"
        return f"expected gain {gain}, ends below {self._least:g}"
