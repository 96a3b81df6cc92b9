"""What `export` takes when nobody names a trial: of a confirmed sweep the recommended configuration's final model, and why."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from cluster.confirmed import Comparison, Confirmed, FinalScore, compare_confirmed, configuration
from cluster.record import SweepRecord, TrialRecord
from trainer.seed_figures import SeedFigures


@dataclass(frozen=True)
class Preference:
    """The `choice` among the configurations of a `comparison`, and the first trial that has `beaten` it in the search since, if any."""

    sweep: str
    comparison: Comparison
    choice: Confirmed
    beaten: TrialRecord | None

    @property
    def model(self) -> FinalScore:
        """The final model that stands for the configuration: never the best on the test split by choice."""
        return self.choice.typical

    @property
    def figures(self) -> SeedFigures:
        """What the seeds gave, for the bundle."""
        choice = self.choice
        return SeedFigures(
            metric=choice.metric,
            n=choice.n,
            mean=choice.mean,
            deviation=choice.deviation,
            interval=choice.interval,
            seed=self.model.seed,
            compared=len(self.comparison.configurations),
        )

    @property
    def reason(self) -> str:
        """Why this one, in sentences."""
        text = f"Sweep {self.sweep!r} was confirmed: {self._which()} (on the test split: {self.figures})."
        text += (
            f" Its final model of seed {self.model.seed}, the one in the middle, is trained on validation images too."
        )
        return text if self.beaten is None else f"{text} {self._news(self.beaten)}"

    def _which(self) -> str:
        configurations, name = self.comparison.configurations, f"trial {self.choice.trial}"
        tied = sum(c.tied is True for c in configurations)
        if len(configurations) == 1:
            return f"{name} alone"
        if not tied:
            return f"{name} has the best mean of {len(configurations)}, of which one seed each says little"
        if tied == 1:
            return f"{name} is the best of {len(configurations)}, by more than chance"
        return f"{name} has the fewest parameters of the {tied} that are tied with the best of {len(configurations)}"

    def _news(self, beaten: TrialRecord) -> str:
        return (
            f"Since then trial {beaten.number} has reached {beaten.value:.4f} in the search, more than it: `convsweep confirm "
            f"{self.sweep}` compares them, `convsweep export {self.sweep} --trial {beaten.number}` takes the search's model of it."
        )


def preference(sweep: SweepRecord) -> Preference | None:
    """What stands for the sweep; None when it was not confirmed."""
    comparison = compare_confirmed(sweep)
    choice = comparison.recommended
    if choice is None:
        return None
    chosen = sweep.trial(choice.trial)
    known = {configuration(sweep.trial(c.trial)) for c in comparison.configurations}
    better = itertools.takewhile(lambda t: t.state == "COMPLETE" and _value(t) > _value(chosen), sweep.trials)
    beaten = next((t for t in better if configuration(t) not in known), None)
    return Preference(sweep.name, comparison, choice, beaten)


def _value(trial: TrialRecord) -> float:
    return trial.value or 0.0
