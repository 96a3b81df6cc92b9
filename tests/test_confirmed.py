"""The arithmetic of confirmed configurations, against scipy and by hand. `python -m pytest tests/test_confirmed.py`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from cluster.config import make_config
from cluster.confirmed import (
    Comparison,
    FinalScore,
    best_configurations,
    compare,
    configuration,
    holm,
    key_of,
    welch,
)
from cluster.preference import preference
from cluster.record import SweepRecord, TrialRecord, rank
from trainer.hyperparameters import flatten, unflatten

CLOSE = (0.90, 0.92, 0.91, 0.93, 0.94)
CLOSE_TOO = (0.91, 0.90, 0.93, 0.92, 0.93)
FAR = (0.50, 0.52, 0.51, 0.49, 0.50)


def scores(trial: int, *accuracies: float, **more: float) -> list[FinalScore]:
    """The scores of a trial's configuration with the seeds 0, 1, ...; the other metrics run against the accuracy."""
    return [
        FinalScore(
            trial=trial,
            seed=seed,
            accuracy=accuracy,
            balanced_accuracy=1 - accuracy,
            macro_f1=accuracy / 2,
            loss=more.get("loss", 2 * accuracy),
            images=360,
            scored_at=1000.0 + trial + seed,
        )
        for seed, accuracy in enumerate(accuracies)
    ]


def compared(
    *accuracies: Sequence[float], parameters: Sequence[int | None] = (), metric: str = "accuracy"
) -> Comparison:
    """The comparison of configurations with these accuracies, of trials 0, 1, ..."""
    known = dict(enumerate(parameters or [100] * len(accuracies)))
    return compare([s for trial, values in enumerate(accuracies) for s in scores(trial, *values)], known, metric)


def ties(comparison: Comparison) -> dict[int, bool | None]:
    return {c.trial: c.tied for c in comparison.configurations}


# ---- mean, spread, interval ----


def test_the_interval_is_that_of_students_t() -> None:
    (one,) = compared(CLOSE).configurations
    low, high = stats.t.interval(0.95, 4, loc=np.mean(CLOSE), scale=stats.sem(CLOSE))
    assert one.n == 5
    assert one.mean == pytest.approx(0.92)
    assert one.deviation == pytest.approx(np.std(CLOSE, ddof=1))
    assert one.interval == pytest.approx((low, high))


def test_the_interval_of_three_values_by_hand() -> None:
    (one,) = compared((0.8, 0.9, 1.0)).configurations
    half = 4.302653 * 0.1 / math.sqrt(3)  # the 97.5 % quantile of t with two degrees of freedom
    assert one.interval == pytest.approx((0.9 - half, 0.9 + half), abs=1e-6)


def test_equal_values_have_no_spread_to_the_last_bit() -> None:
    (one,) = compared((0.1 + 0.2,) * 7).configurations
    assert one.deviation == 0
    assert one.interval == (one.mean, one.mean)


# ---- tests ----


@pytest.mark.parametrize("seed", range(8))
def test_welchs_test_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0.9, 0.01, rng.integers(2, 9)), rng.normal(0.91, 0.03, rng.integers(2, 9))
    expected = stats.ttest_ind(first, second, equal_var=False).pvalue
    assert welch([*map(float, first)], [*map(float, second)], 360) == pytest.approx(expected)


def test_one_spread_is_enough_for_welchs_test() -> None:
    still, spread = (0.9, 0.9, 0.9), (0.8, 0.85, 0.84)
    error = statistics.stdev(spread) / math.sqrt(3)
    by_hand = 2 * stats.t.sf((0.9 - statistics.fmean(spread)) / error, df=2)
    assert welch(still, spread, 360) == pytest.approx(by_hand)


def test_without_any_spread_chance_is_that_of_rounding_to_whole_images() -> None:
    assert welch((0.9, 0.9), (0.9, 0.9), 360) == 1
    assert welch((0.9, 0.9), (0.9 + 1 / 360, 0.9 + 1 / 360), 360) > 0.05  # one image, twice
    assert welch((0.9,) * 5, (0.9 + 1 / 360,) * 5, 360) < 0.05  # one image, every time
    assert welch((0.9, 0.9, 0.9), (0.8, 0.8, 0.8), 360) < 0.001


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.6]) == pytest.approx([1.0, 0.003, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


# ---- ties ----


def test_what_chance_explains_is_tied_and_what_it_does_not_is_not() -> None:
    comparison = compared(CLOSE_TOO, FAR, CLOSE)
    assert ties(comparison) == {2: True, 0: True, 1: False}
    assert [c.trial for c in comparison.configurations] == [2, 0, 1]
    assert comparison.configurations[0].p is None
    raw = [stats.ttest_ind(CLOSE, other, equal_var=False).pvalue for other in (CLOSE_TOO, FAR)]
    assert [c.p for c in comparison.configurations[1:]] == pytest.approx(holm(raw))


def test_several_comparisons_need_more_than_one() -> None:
    best, other = (0.90, 0.92, 0.94), (0.86, 0.88, 0.87)
    assert 0.025 < stats.ttest_ind(best, other, equal_var=False).pvalue < 0.05
    assert ties(compared(best, other)) == {0: True, 1: False}
    assert ties(compared(best, other, other)) == {0: True, 1: True, 2: True}


def test_of_a_loss_less_is_better() -> None:
    by_accuracy, by_loss = compared(CLOSE, FAR), compared(CLOSE, FAR, metric="loss")
    assert [c.trial for c in by_accuracy.configurations] == [0, 1]
    assert [c.trial for c in by_loss.configurations] == [1, 0]
    assert by_loss.configurations[0].mean == pytest.approx(2 * statistics.fmean(FAR))
    assert [c.trial for c in compared(CLOSE, FAR, metric="balanced_accuracy").configurations] == [1, 0]


def test_an_unknown_metric_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="accuracy, macro_f1, balanced_accuracy, loss, but got 'f1'"):
        compared(CLOSE, metric="f1")


# ---- one seed ----


def test_one_seed_says_nothing_about_ties_and_the_best_value_is_recommended() -> None:
    comparison = compared((0.9,), (0.95,), (0.3,), parameters=(10, 1000, 1))
    assert ties(comparison) == {1: None, 0: None, 2: None}
    assert comparison.recommended is not None
    assert comparison.recommended.trial == 1
    one = comparison.configurations[0]
    assert (one.n, one.deviation, one.interval, one.p) == (1, None, None, None)
    assert "says nothing about chance" in comparison.in_words()


def test_a_lucky_single_seed_does_not_come_before_several() -> None:
    comparison = compared(CLOSE, (0.99,), FAR)
    assert ties(comparison) == {0: True, 2: False, 1: None}
    assert [c.trial for c in comparison.configurations] == [0, 2, 1]
    assert comparison.recommended is comparison.configurations[0]


# ---- what is recommended ----


def test_the_smallest_of_those_that_are_tied_is_recommended() -> None:
    comparison = compared(CLOSE, CLOSE_TOO, FAR, parameters=(5000, 4000, 3))
    assert comparison.recommended is not None
    assert comparison.recommended.trial == 1
    assert "between trials 0, 1 (" in comparison.in_words()


def test_of_equally_small_ones_the_better_is_recommended() -> None:
    comparison = compared(CLOSE_TOO, CLOSE, parameters=(7, 7))
    assert comparison.recommended is comparison.configurations[0]
    assert comparison.configurations[0].trial == 1


def test_an_unknown_size_is_no_small_one() -> None:
    recommended = compared(CLOSE, CLOSE_TOO, parameters=(None, 9)).recommended
    assert recommended is not None
    assert recommended.trial == 1
    assert compared().recommended is None


@pytest.mark.parametrize(
    ("values", "metric", "seed"),
    [
        ((0.5, 0.9, 0.7), "accuracy", 2),
        ((0.9, 0.8), "accuracy", 1),  # of two, the worse one
        ((0.9, 0.8), "loss", 0),
        ((0.6, 0.9, 0.7, 0.8), "accuracy", 2),
        ((0.9, 0.9, 0.9), "accuracy", 1),
        ((0.4,), "accuracy", 0),
    ],
)
def test_the_model_of_the_middle_seed_stands_for_a_configuration(
    values: tuple[float, ...], metric: str, seed: int
) -> None:
    (one,) = compared(values, metric=metric).configurations
    assert one.typical.seed == seed


# ---- the record's own ----


def test_scores_and_comparisons_are_plain_values() -> None:
    (score,) = scores(3, 0.9)
    assert FinalScore(**json.loads(json.dumps(score.to_json()))) == score
    document = json.loads(json.dumps(compared(CLOSE, FAR, (0.2,)).to_json()))
    assert document["recommended"] == 0
    assert document["test_touched"] == 11
    assert [c["tied"] for c in document["configurations"]] == [True, False, None]
    assert document["configurations"][2]["interval"] is None


def test_every_final_model_has_a_number_of_its_own() -> None:
    keys = {key_of(trial, seed) for trial in range(30) for seed in range(1000)}
    assert len(keys) == 30_000
    assert scores(2, 0.1, 0.2)[1].key == key_of(2, 1)


def trial(number: int, value: float, state: str = "COMPLETE", **given: object) -> TrialRecord:
    config = flatten(unflatten({name.replace("__", "."): v for name, v in given.items()}))
    return TrialRecord(number, state, value, config, parameters=1000 + number)


def sweep_of(*trials: TrialRecord, confirmed: Sequence[FinalScore] = ()) -> SweepRecord:
    wanted = make_config({"name": "s", "data": "digits", "trials": 9, "epochs": 2})
    return SweepRecord("s", "FINISHED", wanted, ("a", "b"), (1, 8, 8), (), rank(trials), confirmed=tuple(confirmed))


def test_the_best_complete_trials_are_taken_each_configuration_once() -> None:
    sweep = sweep_of(
        trial(0, 0.7, model__kernel_size=5),
        trial(1, 0.9, model__kernel_size=7),
        trial(2, 0.8, model__kernel_size=7, training__seed=4),
        trial(3, 0.99, "PRUNED"),
        trial(4, 0.6),
    )
    assert [t.number for t in best_configurations(sweep, 2)] == [1, 0]
    assert [t.number for t in best_configurations(sweep, 9)] == [1, 0, 4]
    assert configuration(sweep.trial(1)) == configuration(sweep.trial(2))


def test_a_hyperparameter_that_is_newer_than_a_record_makes_no_other_configuration() -> None:
    old = trial(0, 0.7)
    without = dict(old.config)
    del without["augmentation.cutout"]
    assert configuration(TrialRecord(1, "COMPLETE", 0.7, without)) == configuration(old)


# ---- what export prefers ----


def test_a_sweep_that_was_not_confirmed_prefers_nothing() -> None:
    assert preference(sweep_of(trial(0, 0.9))) is None


def test_export_prefers_the_recommended_configurations_middle_seed_and_says_why() -> None:
    trials = trial(0, 0.9, model__kernel_size=5), trial(1, 0.95, model__kernel_size=7), trial(2, 0.8)
    sweep = sweep_of(*trials, confirmed=[*scores(0, *CLOSE_TOO), *scores(1, *CLOSE), *scores(2, *FAR)])
    preferred = preference(sweep)
    assert preferred is not None
    assert (preferred.choice.trial, preferred.model.seed, preferred.beaten) == (0, 3, None)  # 0.92 is in the middle
    assert "fewest parameters of the 2 that are tied with the best of 3" in preferred.reason
    figures = preferred.figures
    assert (figures.n, figures.seed, figures.compared, figures.metric) == (5, 3, 3, "accuracy")
    assert figures.mean == pytest.approx(statistics.fmean(CLOSE_TOO))
    assert figures.interval == preferred.choice.interval
    assert f"mean accuracy {figures.mean:.4f}, 95 % interval" in preferred.reason


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([scores(0, *CLOSE), scores(1, *FAR)], "trial 0 is the best of 2, by more than chance"),
        ([scores(0, *CLOSE)], "trial 0 alone"),
        ([scores(0, 0.9), scores(1, 0.8)], "one seed each says little"),
    ],
)
def test_the_reason_fits_what_was_found(given: list[list[FinalScore]], words: str) -> None:
    trials = trial(0, 0.9, model__kernel_size=5), trial(1, 0.95, model__kernel_size=7)
    preferred = preference(sweep_of(*trials, confirmed=[s for each in given for s in each]))
    assert preferred is not None
    assert words in preferred.reason


def test_a_better_trial_that_came_later_is_named() -> None:
    confirmed = [*scores(0, *CLOSE), *scores(1, *FAR)]
    before = [trial(0, 0.9, model__kernel_size=5), trial(1, 0.95, model__kernel_size=7)]
    same = trial(2, 0.97, model__kernel_size=5, training__seed=9)  # a confirmed configuration once more
    worse = trial(3, 0.89, model__kernel_size=9)
    preferred = preference(sweep_of(*before, same, worse, confirmed=confirmed))
    assert preferred is not None
    assert preferred.beaten is None
    preferred = preference(sweep_of(*before, same, worse, trial(4, 0.96, model__kernel_size=9), confirmed=confirmed))
    assert preferred is not None
    assert preferred.beaten is not None
    assert preferred.beaten.number == 4
    assert "Since then trial 4 has reached 0.9600" in preferred.reason
