"""How a search went, as tables and pictures. `python -m pytest tests/test_search_tables.py -q`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import optuna
import pytest

from cluster.record import SweepRecord, TrialRecord, rank
from dashboard import optuna_charts, search_charts, search_tables
from dashboard.optuna_charts import PLOTS
from tests.dashboard_studies import config
from trainer.metrics import EpochMetrics, history

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)


def record(number: int, state: str = "COMPLETE", *accuracies: float, **more: Any) -> TrialRecord:
    epochs = history([EpochMetrics(i, 0.5, 0.5, a, 0.001, 1000.0, 0.1) for i, a in enumerate(accuracies, 1)])
    value = max(accuracies) if accuracies and state in ("COMPLETE", "PRUNED") else None
    return TrialRecord(number, state, value, {}, epochs, **more)


def sweep_of(*trials: TrialRecord, began: datetime | None = BEGAN) -> SweepRecord:
    runs = () if began is None else ({"begun": began.timestamp(), "groups": 1},)
    return SweepRecord("sweep", "FINISHED", config("sweep"), ("zero", "one"), None, runs, rank(trials))


def study_of(*trials: tuple[float | None, dict[str, Any]]) -> optuna.Study:
    """A study with a trial per value (None: pruned) and parameters: floats in 0 to 1, texts one of a, b, c."""
    study = optuna.create_study(direction="maximize")
    for number, (value, given) in enumerate(trials):
        kinds: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(0, 1)
            if isinstance(given[name], float)
            else optuna.distributions.CategoricalDistribution(["a", "b", "c"])
            for name in given
        }
        state = optuna.trial.TrialState.PRUNED if value is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=state, value=value, params=given, distributions=kinds, user_attrs={"number": 10 * number}
            )
        )
    return study


def test_the_progress_over_time_has_the_trials_in_the_order_of_their_end() -> None:
    def ended(minutes: float) -> dict[str, datetime]:
        return {"begun": BEGAN, "ended": BEGAN + timedelta(minutes=minutes)}

    sweep = sweep_of(
        record(0, "COMPLETE", 0.5, **ended(9)),
        record(1, "COMPLETE", 0.7, **ended(3)),
        record(2, "PRUNED", 0.9, **ended(1)),
        record(3, "COMPLETE", 0.8, **ended(12)),
        record(4, "COMPLETE", 0.9),
        record(5, "FAIL", 0.3, **ended(2)),
    )
    over_time = search_tables.progress(sweep, "time")
    assert over_time["trial"].tolist() == [2, 1, 0, 3]
    assert over_time["x"].tolist() == [1, 3, 9, 12]
    assert over_time["best"].fillna(-1).tolist() == [-1, 0.7, 0.7, 0.8]
    assert over_time["gain"].tolist() == [False, True, False, True]
    over_trials = search_tables.progress(sweep, "trials")
    assert over_trials["x"].tolist() == over_trials["trial"].tolist() == [0, 1, 2, 3, 4]
    assert over_trials["best"].tolist() == [0.5, 0.7, 0.7, 0.8, 0.9]


def test_no_trial_ends_before_the_sweep_began_whatever_the_clocks_say() -> None:
    early = record(0, "COMPLETE", 0.5, begun=BEGAN - timedelta(minutes=5), ended=BEGAN - timedelta(minutes=3))
    assert search_tables.progress(sweep_of(early), "time")["x"].tolist() == [2]
    assert search_tables.progress(sweep_of(early, began=None), "time")["x"].tolist() == [2]


def test_a_thinned_progress_keeps_each_new_best_and_the_last_trial() -> None:
    values = [0.5 + (0.1 if i in (17, 333, 901) else 0) * (i / 1000) for i in range(1000)]
    whole = search_tables.progress(sweep_of(*(record(i, "COMPLETE", v) for i, v in enumerate(values))), "trials")
    thin = search_tables.thinned(whole, 50)
    assert len(thin) <= 55
    assert thin[thin["gain"]]["trial"].tolist() == [0, 17, 333, 901]
    assert thin["trial"].iloc[-1] == 999
    assert search_tables.thinned(whole, 1000) is whole


def test_a_thinned_progress_shows_all_states_however_they_alternate() -> None:
    trials = [record(i, ("COMPLETE", "PRUNED")[i % 2], 0.5) for i in range(1000)]
    thin = search_tables.thinned(search_tables.progress(sweep_of(*trials), "trials"), 100)
    assert 30 < (thin["state"] == "PRUNED").sum() < 70


def test_drawn_trials_are_the_best_and_always_the_same_sample() -> None:
    trials = [record(i, "COMPLETE", 1 - i / 1000) for i in range(1000)]
    drawn = search_tables.drawn(trials, 30, 100)
    assert drawn[:30] == trials[:30]
    assert len({t.number for t in drawn}) == 100
    assert max(t.number for t in drawn) > 500
    assert drawn == search_tables.drawn(trials, 30, 100)
    assert search_tables.drawn(trials, 500, 1000) == trials


def test_curves_leave_out_what_is_not_finite_and_trials_without_epochs() -> None:
    trials = [record(0, "FAIL", 0.1, math.nan, 0.3), record(1, "WAITING"), record(2, "PRUNED", 0.2)]
    curves = search_tables.metric_curves(trials)
    assert curves[["trial", "epoch", "value"]].to_numpy().tolist() == [[0, 1, 0.1], [0, 3, 0.3], [2, 1, 0.2]]


def test_the_fates_count_each_trial_at_each_epoch_that_it_got_to() -> None:
    trials = [
        record(0, "COMPLETE", 0.1, 0.2, 0.3),
        record(1, "PRUNED", 0.1),
        record(2, "PRUNED", 0.1),
        record(3, "FAIL", 0.1, 0.2),
        record(4, "RUNNING", 0.1, 0.2),
        record(5, "FAIL"),
    ]
    fates = search_tables.fates(trials)
    assert list(fates[["epoch", "fate", "trials"]].itertuples(index=False, name=None)) == [
        (1, "went on", 3),
        (1, "PRUNED", 2),
        (2, "went on", 1),
        (2, "FAIL", 1),
        (2, "RUNNING", 1),
        (3, "COMPLETE", 1),
    ]
    assert fates.groupby("epoch")["share"].sum().tolist() == pytest.approx([1, 1, 1])
    assert search_tables.fates([record(0, "FAIL")]).empty


def test_groups_are_numbered_as_they_began_and_busy_while_they_train() -> None:
    def by(group: str | None, began: float | None, seconds: float) -> dict[str, Any]:
        return {"group": group, "group_began": began, "train_seconds": seconds}

    trials = [
        record(0, "COMPLETE", 0.5, **by("z", 1000.0, 60)),
        record(1, "COMPLETE", 0.5, **by("a", 1030.0, 30)),
        record(2, "PRUNED", 0.5, **by("z", 1120.0, 60)),
        record(3, "WAITING", **by(None, None, 0)),
    ]
    bars = search_tables.timeline(trials)
    assert bars[["group", "trial", "begin", "end"]].to_numpy().tolist() == [
        ["group 1", 0, 0.0, 1.0],
        ["group 2", 1, 0.5, 1.0],
        ["group 1", 2, 2.0, 3.0],
    ]
    work = search_tables.group_work(trials)
    assert work["group"].tolist() == ["group 1", "group 2"]
    assert work["minutes"].tolist() == [3.0, 0.5]
    assert work["busy"].tolist() == pytest.approx([100 * 2 / 3, 100.0])
    assert search_tables.timeline(trials, most=1)["trial"].tolist() == [2]
    assert search_tables.timeline([]).empty


def test_a_group_without_a_report_is_busy_with_nothing_known() -> None:
    begun = record(0, "RUNNING", group="z", group_began=1000.0)
    assert search_tables.group_work([begun])["busy"].isna().tolist() == [True]
    assert search_charts.timeline(search_tables.timeline([begun])).to_dict()["height"] > 100


# ---- Optuna's pictures ----


def test_the_best_and_a_sample_are_shown_and_importances_sample_evenly() -> None:
    trials = [record(i, "COMPLETE", 1 - i / 10_000) for i in range(3000)]
    sweep = sweep_of(*trials, record(3000, "PRUNED", 0.99))
    shown = optuna_charts.shown_trials(sweep, 1000)
    assert set(range(500)) <= shown
    assert len(shown) == 1000
    sampled = optuna_charts.sampled_trials(sweep)
    assert len(sampled) == 1000
    assert 100 < len(sampled & set(range(500))) < 250  # a sixth of them
    assert 3000 not in shown | sampled


@pytest.mark.parametrize(
    ("trials", "sentence"),
    [
        ([], "at least 2 trials that ran to their end, but there are 0"),
        ([(0.5, {"x": 0.1}), (None, {"x": 0.2})], "but there are 1"),
        ([(0.5, {"x": 0.1}), (0.5, {"x": 0.2})], "nothing can be said"),
        ([(0.9, {"x": 0.1}), *[(0.5, {"x": 0.2})] * 19], "nothing can be said"),
        ([(0.5, {}), (0.6, {})], "no parameters that were searched"),
    ],
)
def test_trials_that_say_nothing_about_importances_are_a_sentence(
    trials: list[tuple[float | None, dict[str, Any]]], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        optuna_charts.compute_importances(study_of(*trials))


def test_importances_find_what_matters_and_name_what_is_rough() -> None:
    trials = [(i / 40, {"matters": i / 40, "noise": (7 * i % 40) / 40}) for i in range(40)]
    trials[3][1]["rare"] = 0.5
    found = optuna_charts.compute_importances(study_of(*trials))
    assert next(iter(found.values)) == "matters"
    assert sum(found.values.values()) == pytest.approx(1)
    assert found.rough == ("rare",)
    assert found.trials == 40


def test_importances_leave_the_warnings_of_others_as_they_were() -> None:
    before = list(warnings.filters)
    optuna_charts.compute_importances(study_of((0.1, {"x": 0.1}), (0.9, {"x": 0.9, "y": 0.1})))
    assert list(warnings.filters) == before


def test_parameters_with_one_value_tell_nothing() -> None:
    study = study_of((0.1, {"x": 0.1, "same": 0.5, "once": 0.2}), (0.2, {"x": 0.3, "same": 0.5}), (None, {"same": 0.9}))
    assert optuna_charts.telling_parameters(study) == ["x"]


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.title)
def test_pictures_are_without_title_and_as_wide_as_the_page(plot: optuna_charts.Plot) -> None:
    study = study_of(*((i / 9, {"model.dropout": i / 9, "kind": "abc"[i % 3], "third": i % 2 / 2}) for i in range(9)))
    names = ["model.dropout", "kind", "third"][: plot.most]
    figure = optuna_charts.draw(study, plot, names)
    assert not figure.layout.title.text
    assert figure.layout.width is None
    assert figure.layout.height < 500
    assert "..." not in figure.to_json()


def test_pictures_tell_the_trials_numbers_of_the_sweep() -> None:
    study = study_of(*((i / 9, {"x": i / 9, "y": 1 - i / 9}) for i in range(9)))
    slices, ranks = (next(plot for plot in PLOTS if plot.title == title) for title in ("Slices", "Ranks"))
    assert list(optuna_charts.draw(study, slices, ["x"]).data[0].marker.color) == [10 * i for i in range(9)]
    texts = optuna_charts.draw(study, ranks, ["x", "y"]).data[0].hovertext
    assert texts[4] == f"Trial #40<br><b>validation accuracy: {4 / 9}</b>"


def test_parameters_that_no_trial_has_together_have_no_contour() -> None:
    study = study_of((0.1, {"x": 0.1}), (0.2, {"x": 0.2}), (0.3, {"y": 0.3}), (0.4, {"y": 0.4}))
    contour = next(plot for plot in PLOTS if plot.title == "Contour")
    with pytest.raises(ValueError, match="No trial that ran to its end has both x and y"):
        optuna_charts.draw(study, contour, ["x", "y"])


def test_what_optuna_cannot_draw_is_a_sentence() -> None:
    def fail(study: optuna.Study, parameters: Sequence[str], value: str) -> NoReturn:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ValueError, match="Optuna cannot draw this: ZeroDivisionError: division by zero"):
        optuna_charts.draw(study_of((0.1, {"x": 0.1})), replace(PLOTS[0], draw=fail), ["x"])


def test_the_distribution_has_a_line_for_each_sweep() -> None:
    figure = optuna_charts.draw_distribution({"one": [0.1, 0.2, 0.4], "two": [0.3]})
    assert [line.name for line in figure.data] == ["one", "two"]
    assert figure.data[0].y[-1] == 1
    assert figure.layout.showlegend


def test_a_trial_has_the_same_colour_in_all_pictures_of_its_state() -> None:
    pruned = replace(record(0, "PRUNED", 0.5), group="z", group_began=1.0)
    tables = search_tables.progress(sweep_of(pruned), "trials"), search_tables.timeline([pruned])
    points = search_charts.best_so_far(tables[0], "trials").to_dict()["layer"][1]
    bars = search_charts.timeline(tables[1]).to_dict()
    assert points["encoding"]["color"]["scale"] == bars["encoding"]["color"]["scale"]
