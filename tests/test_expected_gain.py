"""What the next trial is expected to gain, on objectives whose gain is known: `python -m pytest tests/test_expected_gain.py -q`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import pytest

from cluster.budget import Ending
from cluster.config import make_config
from cluster.expected_gain import AT_LEAST, RECENT, GainWatch, expected_gain
from cluster.experiments import Experiments
from cluster.studies import Studies
from cluster.study import SweepStudy
from trainer.metrics import EpochMetrics

Values = Sequence[float | None]


def first_below(values: Values, least: float) -> int | None:
    """After how many trials the expected gain is below that for the first time."""
    for count in range(1, len(values) + 1):
        gain = expected_gain(values[:count])
        if gain is not None and gain < least:
            return count
    return None


def normal(seed: int, spread: float, count: int = 300) -> list[float]:
    """Proposals that do not get better: a plateau."""
    chance = random.Random(seed)
    return [chance.gauss(0.9, spread) for _ in range(count)]


def gain_of_normal(best: float, spread: float) -> float:
    """What another value of `normal` exceeds `best` by on average."""
    z = (best - 0.9) / spread
    return spread * (math.exp(-z * z / 2) / math.sqrt(2 * math.pi) - z * 0.5 * math.erfc(z / math.sqrt(2)))


# ---- the estimate ----


def test_nothing_is_expected_before_ten_trials_have_ended_and_five_of_them_were_complete() -> None:
    values: list[float | None] = [0.5 + 0.01 * i for i in range(20)]
    assert [expected_gain(values[:count]) is None for count in (0, 1, 9, 10, 20)] == [True, True, True, False, False]
    assert AT_LEAST == 10
    assert expected_gain([None] * 30 + values[:4]) is None
    assert expected_gain([None] * 30 + values[:5]) is not None


def test_what_can_be_worked_out_by_hand() -> None:
    """12 complete trials, of which the last 8 gave nothing new; threshold 0.5, excesses of 0.4, 0.3, 0.2 and 0.1."""
    values = [0.9, 0.8, 0.7, 0.6, *[0.5] * 8]
    assert expected_gain(values) == pytest.approx(4 / 12 * 0.25 * math.exp(-0.4 / 0.25))
    assert expected_gain([*values, *[None] * 12]) == pytest.approx(8 / 20 * 4 / 12 * 0.25 * math.exp(-0.4 / 0.25))
    assert expected_gain([0.5] * 12) == 0.0


def test_progress_is_the_mean_rise_over_the_last_twenty_trials() -> None:
    steps = [0.5 + 0.1 * (i // 15) for i in range(60)]
    assert expected_gain(steps) == pytest.approx(0.1 / RECENT)
    assert expected_gain(steps[:46]) == pytest.approx(0.2 / RECENT)


def test_a_shift_changes_nothing_and_a_scale_scales() -> None:
    values = normal(1, 0.01, 30)
    once = expected_gain(values)
    assert once is not None
    assert expected_gain([value - 5 for value in values]) == pytest.approx(once, rel=1e-6)
    assert expected_gain([10 * value for value in values]) == pytest.approx(10 * once)


def test_on_a_plateau_the_estimate_is_near_the_gain_that_is_known() -> None:
    """Over many sweeps, on average up to five times as much: excesses of a normal distribution fall off faster than is assumed."""
    for count in (40, 100):
        estimates, truths = [], []
        for seed in range(300):
            values = normal(seed, 0.01, count)
            estimate = expected_gain(values)
            assert estimate is not None
            estimates.append(estimate)
            truths.append(gain_of_normal(max(values), 0.01))
        assert 1 < fmean(estimates) / fmean(truths) < 5


# ---- the end ----


@pytest.mark.parametrize(("spread", "least"), [(0.002, 0.0003), (0.005, 0.001), (0.02, 0.001), (0.02, 0.0003)])
@pytest.mark.parametrize("complete", [1.0, 0.4])
def test_a_plateau_is_left_soon_and_with_little_to_gain(spread: float, least: float, complete: float) -> None:
    counts, left = [], []
    for seed in range(50):
        chance = random.Random(seed + 1000)
        values = [value if chance.random() < complete else None for value in normal(seed, spread)]
        count = first_below(values, least)
        assert count is not None
        best = max(value for value in values[:count] if value is not None)
        counts.append(count)
        left.append(complete * gain_of_normal(best, spread))
    assert median(counts) <= 40
    assert median(left) < least


@pytest.mark.parametrize("step", [0.0005, 0.002, 0.01])
@pytest.mark.parametrize("seed", range(5))
def test_steady_progress_is_not_ended(step: float, seed: int) -> None:
    chance = random.Random(seed)
    values = [0.1 + step * i + chance.gauss(0, step) for i in range(200)]
    assert first_below(values, 0.6 * step) is None


def test_progress_in_steps_and_among_pruned_trials_is_not_ended() -> None:
    """A new best every fifth trial, by 0.01: 0.002 per trial, while the four between are pruned or not so good."""
    values: list[float | None] = []
    for i in range(60):
        values += [0.5 + 0.01 * i, None, 0.45, None, 0.4]
    assert first_below(values, 0.001) is None


def test_what_saturates_is_ended_when_it_has_and_near_its_best() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        values = [0.99 - 0.3 * math.exp(-i / 8) + chance.gauss(0, 0.003) for i in range(200)]
        count = first_below(values, 0.001)
        assert count is not None
        assert 30 < count < 70
        assert max(values) - max(values[:count]) < 0.02


def test_a_sweep_whose_trials_all_fail_expects_nothing_and_is_not_ended() -> None:
    assert expected_gain([None] * 100) is None


# ---- the sweep ----


def create(folder: Path, **settings: object) -> SweepStudy:
    config = make_config({"name": "s", "data": "digits", "epochs": 1, "preset": "none", "trials": 60} | settings)
    study = Studies(Experiments(folder), create=True).create(config, ["a", "b"])
    study.begin_run(config, groups=1)
    return study


def play(study: SweepStudy, watch: GainWatch, values: Values) -> None:
    """Trials that end so: one without a value is pruned."""
    for value in values:
        trial = study.ask()
        trial.report(EpochMetrics(1, 1.0, 1.0, 0.1 if value is None else value, 0.1, 10.0, 1.0), 1.0)
        if value is None:
            trial.prune()
        else:
            trial.complete()
        watch.ended(trial, "PRUNED" if value is None else "COMPLETE")


def plateau(count: int) -> Values:
    return [None if i % 3 == 1 else 0.9 + 0.001 * (i % 2) for i in range(count)]


def test_a_sweep_ends_once_with_the_numbers_it_ended_for(tmp_path: Path) -> None:
    study = create(tmp_path, min_gain=0.001)
    watch = GainWatch(study, 0.001)
    assert str(watch) == "expected gain not known yet, ends below 0.001"
    play(study, watch, plateau(9))
    assert (watch.ending, study.ending) == (None, None)
    play(study, watch, plateau(1))
    assert watch.gain is not None
    reason = f"The sweep has ended: expected gain {watch.gain:.2g} < 0.001 after 10 trials."
    assert watch.ending == study.ending == Ending("min_gain", reason)
    play(study, watch, [0.95])  # a trial that was at work: more is expected now, but the sweep has ended
    assert watch.gain > 0.001
    assert watch.ending == study.ending == Ending("min_gain", reason)


def test_a_trial_that_waits_has_not_ended(tmp_path: Path) -> None:
    study = create(tmp_path)
    watch = GainWatch(study, 0.001)
    play(study, watch, plateau(9))
    trial = study.ask()
    trial.wait()
    watch.ended(trial, "WAITING")
    assert watch.gain is None


def test_a_resumed_sweep_expects_the_same_and_stays_ended(tmp_path: Path) -> None:
    study = create(tmp_path)
    watch = GainWatch(study, 1e-9)
    play(study, watch, normal(3, 0.01, 15))
    study.end_run("INTERRUPTED")
    again = Studies(Experiments(tmp_path)).open("s")
    assert GainWatch(again, 1e-9).gain == watch.gain
    ended = GainWatch(again, 1.0)  # the process was killed before it could write that down
    assert ended.ending == again.ending
    assert ended.ending is not None
    assert GainWatch(Studies(Experiments(tmp_path)).open("s"), 1e-9).ending == ended.ending


def test_an_ending_for_another_reason_does_not_count(tmp_path: Path) -> None:
    study = create(tmp_path)
    study.note_ending(Ending("gpu_hours", "The sweep has ended."))
    assert GainWatch(study, 0.001).ending is None
