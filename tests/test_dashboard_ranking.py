"""The page "Ranking": its filters, columns, selection and Pareto front. `python -m pytest tests/test_dashboard_ranking.py -q`."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow.ipc
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord, rank
from cluster.studies import Studies
from dashboard import charts, filters, leaderboard, pareto, tables
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts
from trainer.domains import Value
from trainer.hyperparameters import MAX_BLOCKS, TrialConfig, flatten, parameters, unflatten


def trial(number: int, value: float | None, state: str = "COMPLETE", **given: object) -> TrialRecord:
    """A trial with this accuracy; what is given are its fields, or its hyperparameters with __ for the dot."""
    fields = {name: given.pop(name) for name in list(given) if name in TrialRecord.__dataclass_fields__}
    chosen = flatten(unflatten({name.replace("__", "."): value for name, value in given.items()}))
    return dataclasses.replace(TrialRecord(number, state, value, chosen), **fields)


def sweep_of(*trials: TrialRecord, **space: object) -> SweepRecord:
    wanted = make_config({"name": "s", "data": "digits", "trials": 9, "epochs": 2, "space": space})
    return SweepRecord("s", "FINISHED", wanted, ("a", "b"), (1, 8, 8), (), rank(trials))


def made(sweep: SweepRecord, name: str) -> filters.Filter:
    return filters.make(sweep, name, filters.labels(sweep.trials)[name])


def fit(trials: Sequence[TrialRecord], states: Sequence[str] = (), **chosen: Sequence[Value]) -> list[int]:
    wanted = {name.replace("__", "."): values for name, values in chosen.items()}
    found = filters.fitting(trials, states, wanted)
    return [t.number for t, fits in zip(trials, found, strict=True) if fits]


# ---- the page ----


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiments folder with the sweep 'mixed': trials 1, 0 and 4 are complete, 2 is pruned and 3 has failed."""
    folder = tmp_path_factory.mktemp("experiments")
    wanted = config("mixed")
    study = Studies(Experiments(folder), create=True).create(wanted, ["zero", "one"])
    study.begin_run(wanted, groups=2)
    run_trial(study, wanted, 0.7, 0.8)
    run_trial(study, wanted, 0.9, 0.95)
    run_trial(study, wanted, 0.6, end="prune")
    run_trial(study, wanted, end="fail", error="the loss is not finite")
    run_trial(study, wanted, 0.1, 0.3)
    study.end_run("FINISHED")
    return folder


@pytest.fixture
def folder(studies: Path, tmp_path: Path) -> Path:
    return shutil.copytree(studies, tmp_path / "experiments")


@pytest.fixture
def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    yield dashboard_on(folder, "", monkeypatch)
    st.cache_resource.clear()


def columns(page: AppTest) -> dict[str, list[object]]:
    with pyarrow.ipc.open_stream(page.dataframe[0].proto.arrow_data.data) as stream:
        found: dict[str, list[object]] = stream.read_all().to_pydict()
    return found


def rows(page: AppTest) -> list[object]:
    return page.session_state["ranking of mixed"]["selection"]["rows"]


def test_the_state_in_the_address_filters(page: AppTest) -> None:
    run(page, sweep="mixed", state="PRUNED")
    assert columns(page)["trial"] == [2]
    assert "1 of 5 trials: PRUNED" in texts(page)


def test_a_range_of_numbers_filters(page: AppTest, folder: Path) -> None:
    rates = {t.number: t.config["optimizer.learning_rate"] for t in Studies(Experiments(folder)).read("mixed").trials}
    run(page, sweep="mixed", by="learning rate")
    assert sorted(columns(page)["trial"]) == [0, 1, 2, 3, 4]  # nothing has been chosen yet
    slider = page.select_slider(key="optimizer.learning_rate")
    low, high = slider.value
    assert low <= min(rates.values()) <= max(rates.values()) <= high
    slider.set_range(0.001, 0.003).run()
    expected = {number for number, rate in rates.items() if 0.001 <= float(rate) <= 0.003}
    assert expected
    assert set(columns(page)["trial"]) == expected
    assert "learning rate 0.001 to 0.003" in texts(page).replace("\\", "")


def test_a_choice_filters(page: AppTest, folder: Path) -> None:
    chosen = {t.number: t.config["optimizer.name"] for t in Studies(Experiments(folder)).read("mixed").trials}
    run(page, sweep="mixed", by="optimizer")
    page.multiselect(key="optimizer.name").set_value(["adamw"]).run()
    assert set(columns(page)["trial"]) == {number for number, name in chosen.items() if name == "adamw"}


def test_filters_that_no_trial_fits_are_a_sentence(page: AppTest) -> None:
    run(page, sweep="mixed", state="PRUNED", by="accuracy")
    page.select_slider(key="value").set_range(0.9, 1.0).run()
    assert "No trial fits the filters." in page.info[0].value
    assert not page.dataframe
    assert not page.exception


def test_the_selection_stays_with_its_trial_under_filters(page: AppTest) -> None:
    run(page, sweep="mixed")
    page.session_state["ranking of mixed, selected"] = [0, 2]
    page.session_state["ranking of mixed"] = {"selection": {"rows": [1, 3]}}
    page.run()
    page.pills[0].set_value(["PRUNED"]).run()
    assert columns(page)["trial"] == [2]
    assert rows(page) == [0]
    page.pills[0].set_value([]).run()
    assert columns(page)["trial"] == [1, 0, 4, 2, 3]
    assert rows(page) == [1, 3]


def test_a_click_selects_what_is_shown_and_leaves_what_is_hidden() -> None:
    assert leaderboard.selected_after([7, 3], shown=[5, 3, 4], rows=[0, 2]) == [7, 5, 4]
    assert leaderboard.selected_after([], shown=[5], rows=[0, 9]) == [5]


@pytest.mark.parametrize(("numbers", "enabled"), [([], []), ([1], ["Open"]), ([1, 0], ["Compare"])])
def test_the_selection_leads_to_the_trial_or_the_comparison(
    page: AppTest, numbers: list[int], enabled: list[str]
) -> None:
    run(page, sweep="mixed", state="COMPLETE")
    page.session_state["ranking of mixed, selected"] = numbers
    page.run()
    links = {link.proto.label: link.proto for link in page.get("page_link")}
    assert [label for label, link in links.items() if not link.disabled] == enabled
    assert links["Open"].page == "trial"
    assert links["Compare"].page == "compare"
    for label in enabled:
        shown = urllib.parse.parse_qs(links[label].query_string)
        assert shown["trial" if label == "Open" else "trials"] == [str(number) for number in numbers]


def test_a_range_in_the_address_filters(page: AppTest) -> None:
    page.query_params["by"] = ["accuracy", "parameters"]
    page.query_params["value"] = ["0.7", "0.9"]
    run(page, sweep="mixed")
    assert columns(page)["trial"] == [0]
    assert page.select_slider(key="value").value == (0.7, 0.9)


def test_nothing_is_selected_any_more_when_that_is_asked_for(page: AppTest) -> None:
    run(page, sweep="mixed")
    page.session_state["ranking of mixed, selected"] = [0, 2]
    page.run()
    next(button for button in page.button if button.label == "Clear").click().run()
    assert page.session_state["ranking of mixed, selected"] == []
    assert page.session_state["ranking of mixed"]["selection"]["rows"] == []


def test_the_columns_of_ones_choice_are_shown(page: AppTest) -> None:
    run(page, sweep="mixed", columns="chosen")
    page.multiselect(key="shown").set_value(["value", "training.seed"]).run()
    assert [*columns(page)] == ["rank", "trial", "marks", "value", "training.seed"]


def test_the_front_depends_on_the_cost(page: AppTest) -> None:
    run(page, sweep="mixed")
    assert marked(page, "front") == [1, 0]  # of 2,000 and 1,000 parameters; 4 has more than both
    page.segmented_control(key="cost").set_value("latency").run()
    assert marked(page, "front") == [1]  # all of them trained equally fast
    assert marked(page, "preset") == [0]
    (chart,) = (c for c in page.get("vega_lite_chart") if "front" in c.proto.alt)
    assert "latency per image, milliseconds" in chart.proto.spec


def marked(page: AppTest, mark: str) -> list[object]:
    shown = columns(page)
    return [number for number, marks in zip(shown["trial"], shown["marks"], strict=True) if mark in str(marks)]


def test_the_download_has_the_trials_that_are_shown(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Callable[[], str]] = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, **more: given.update({label: data}))
    run(page, sweep="mixed", state="COMPLETE")
    assert pd.read_csv(io.StringIO(given["Download CSV"]()))["number"].tolist() == [1, 0, 4]


# ---- filters ----


def test_everything_can_be_filtered_by_and_has_its_own_label() -> None:
    most = {p.name: p.default for p in parameters() if not p.per_block}
    most |= {f"{p.name}.{i}": p.default[0] for p in parameters() if p.per_block for i in range(1, MAX_BLOCKS + 1)}
    everything = TrialRecord(0, "COMPLETE", 0.5, most, parameters=1000, train_seconds=2.0)
    labels = filters.labels([everything])
    assert {"value", "parameters", "train_seconds", "model.filters", "model.filters.5"} <= set(labels)
    assert {p.name for p in parameters()} <= set(labels)
    assert len(set(labels.values())) == len(labels)
    sweep = sweep_of(everything)
    for name in labels:
        found = made(sweep, name)
        assert len(found.choices) > 0 or len(found.steps) > 1, name


def test_what_no_trial_has_yet_can_be_chosen_without_harm() -> None:
    found = made(sweep_of(trial(0, None, "RUNNING")), "parameters")
    assert (found.steps, found.choices) == ((), ())


def test_the_steps_of_a_logarithmic_number_are_even_on_its_scale_and_hold_all_values() -> None:
    sweep = sweep_of(trial(0, 0.5, optimizer__weight_decay=0.0), trial(1, 0.6, optimizer__weight_decay=3.3e-5))
    steps = made(sweep, "optimizer.weight_decay").steps
    assert steps[:3] == (0.0, 1e-6, 1.5e-6)
    assert steps[-1] == 1e-2
    assert all(b / a <= 2 for a, b in itertools.pairwise(steps[1:]))


def test_the_steps_of_a_number_do_not_change_while_the_trials_stay_in_the_space() -> None:
    first = sweep_of(trial(0, 0.5, model__dropout=0.1))
    later = sweep_of(trial(0, 0.5, model__dropout=0.1), trial(1, 0.5, model__dropout=0.499))
    assert made(first, "model.dropout").steps == made(later, "model.dropout").steps


def test_the_steps_of_a_listed_number_are_its_values() -> None:
    sweep = sweep_of(trial(0, 0.5, training__batch_size=32))
    assert made(sweep, "training.batch_size").steps == (32, 64, 128, 256)


def test_a_range_of_whole_numbers_has_whole_steps() -> None:
    sweep = sweep_of(trial(0, 0.5), **{"model.dense_units": {"low": 10, "high": 500}})
    numbers = [trial(n, 0.5, model__dense_units=10 + 7 * n) for n in range(20)]
    steps = made(dataclasses.replace(sweep, trials=rank(numbers)), "model.dense_units").steps
    assert steps[0] <= 10
    assert steps[-1] >= 500
    assert all(step == int(step) for step in steps)


def test_what_never_changes_can_still_be_filtered_by() -> None:
    sweep = sweep_of(trial(0, 0.5), trial(1, 0.4))
    assert made(sweep, "training.seed").choices == ("0",)
    assert made(sweep, "model.padding").choices == ("same",)
    assert fit(sweep.trials, training__seed=["0"]) == [0, 1]


def test_of_a_value_per_block_all_must_fit_unless_a_block_is_named() -> None:
    trials = [
        trial(0, 0.5, model__kernel_size=[3, 5, 7]),
        trial(1, 0.5, model__kernel_size=[3, 3, 5]),
        trial(2, 0.5, model__blocks=2, model__kernel_size=[7, 3]),
    ]
    assert fit(trials, model__kernel_size=(3, 5)) == [1]
    assert fit(trials, model__kernel_size__2=(3, 3)) == [1, 2]
    assert fit(trials, model__kernel_size__3=(3, 7)) == [0, 1]  # a trial of two blocks has no third one
    assert made(sweep_of(*trials), "model.kernel_size").steps == (3, 5, 7)


def test_a_trial_without_the_hyperparameter_fits_no_value_of_it() -> None:
    trials = [trial(0, 0.5), trial(1, 0.5, optimizer__name="sgd", optimizer__momentum=0.9)]
    assert fit(trials, optimizer__momentum=(0.0, 1.0)) == [1]
    assert fit(trials, value=(0.0, 1.0)) == [0, 1]
    assert fit([trial(2, None, "RUNNING")], value=(0.0, 1.0)) == []


def test_conditions_are_combined() -> None:
    trials = [trial(0, 0.5), trial(1, 0.6, "PRUNED"), trial(2, 0.7, "PRUNED", model__activation="gelu")]
    assert fit(trials, ["PRUNED"]) == [1, 2]
    assert fit(trials, ["PRUNED", "COMPLETE"], model__activation=["relu", "silu"]) == [0, 1]
    assert fit(trials, ["PRUNED"], model__activation=["relu"], value=(0.55, 0.65)) == [1]


def test_a_hyperparameter_of_another_version_can_be_filtered_by() -> None:
    trials = [dataclasses.replace(trial(n, 0.5), config={"old.thing": value}) for n, value in enumerate(["a", "b"])]
    assert made(sweep_of(*trials), "old.thing").choices == ("a", "b")
    assert fit(trials, old__thing=["b"]) == [1]


# ---- the Pareto front ----


def front(*trials: TrialRecord, cost: str = "parameters") -> set[int]:
    return set(pareto.front(tables.ranking(rank(trials)), cost))


def test_the_front_has_what_no_other_trial_beats_in_both() -> None:
    trials = [
        trial(0, 0.5, parameters=10),
        trial(1, 0.7, parameters=20),
        trial(2, 0.6, parameters=30),  # dearer than 1 and worse
        trial(3, 0.7, parameters=25),  # as good as 1 and dearer
        trial(4, 0.4, parameters=10),  # as cheap as 0 and worse
        trial(5, 0.9, parameters=40),
    ]
    assert front(*trials) == {0, 1, 5}


def test_the_front_is_that_of_a_comparison_of_each_with_each() -> None:
    numbers = [(n * 7919 % 23 / 23, n * 104729 % 17) for n in range(60)]
    trials = [trial(n, value, parameters=1 + cost) for n, (value, cost) in enumerate(numbers)]

    def beaten(one: TrialRecord) -> bool:
        others = [(t.value or 0, -(t.parameters or 0)) for t in trials]
        mine = (one.value or 0, -(one.parameters or 0))
        return any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in others)

    assert front(*trials) == {t.number for t in trials if not beaten(t)}


def test_equal_trials_are_all_in_the_front() -> None:
    assert front(trial(0, 0.5, parameters=10), trial(1, 0.5, parameters=10)) == {0, 1}


def test_only_complete_trials_that_have_the_cost_are_in_the_front() -> None:
    trials = [
        trial(0, 0.5, parameters=100),
        trial(1, 0.9, "PRUNED", parameters=10),
        trial(2, None, "FAIL", parameters=1),
        trial(3, 0.9),
    ]
    assert front(*trials) == {0}
    assert front(trial(0, None, "RUNNING", parameters=3)) == set()
    assert front() == set()


def test_the_latency_is_the_median_of_the_epochs_and_0_is_none() -> None:
    fast = trial(0, 0.5, history={"latency": [0.9, 0.4, 0.5]})
    slow = trial(1, 0.4, history={"latency": [2.0]})
    still = trial(2, 0.9, history={"latency": [0.0]})
    table = tables.ranking(rank([fast, slow, still]))
    points = pareto.points(table, "latency", pareto.front(table, "latency"))
    assert points[["trial", "cost", "front"]].to_numpy().tolist() == [[0, 0.5, True], [1, 2.0, False]]


def test_of_many_trials_the_front_the_preset_and_the_selected_are_drawn() -> None:
    trials = [trial(n, 0.5 + n / 10_000, parameters=1000 - n % 7) for n in range(500)]
    trials[3] = dataclasses.replace(trials[3], preset="default")
    table = tables.ranking(rank(trials))
    expected = pareto.front(table, "parameters")
    points = pareto.points(table, "parameters", expected, keep=[17], at_most=60)
    assert len(points) == 60
    assert expected | {3, 17} <= set(points["trial"])
    assert set(points.loc[points["front"], "trial"]) == expected
    assert points["value"].min() < 0.51  # also of the worse ones some
    assert len(pareto.points(table, "parameters", expected)) == pareto.complete_count(table, "parameters") == 500


def test_what_lies_far_below_does_not_press_the_rest_together() -> None:
    trials = [trial(n, 0.9 + n / 1000, parameters=100 + n) for n in range(20)] + [trial(20, 0.1, parameters=500)]
    table = tables.ranking(rank(trials))
    assert 20 not in set(pareto.points(table, "parameters", ())["trial"])
    assert 20 in set(pareto.points(table, "parameters", (), keep=[20])["trial"])


def test_the_chart_tells_the_front_the_preset_and_the_selected_apart() -> None:
    trials = [trial(n, 0.5 + n / 100, parameters=100 - n) for n in range(3)] + [trial(3, 0.4, parameters=200)]
    trials[3] = dataclasses.replace(trials[3], preset="default")
    table = tables.ranking(rank(trials))
    points = pareto.points(table, "parameters", pareto.front(table, "parameters"))
    spec = charts.value_against_cost(points, pareto.COSTS["parameters"], selected=[1]).to_dict()
    (drawn,) = spec["datasets"].values()
    assert {row["trial"]: row["kind"] for row in drawn} == {0: "others", 1: "selected", 2: "front", 3: "preset"}
    assert spec["layer"][1]["encoding"]["color"]["scale"]["domain"] == ["others", "front", "preset", "selected"]
    assert json.dumps(spec).count(charts.CLICKED) >= 1


# ---- the ranking, reading after reading ----


def test_a_ranking_of_changed_trials_is_that_from_scratch() -> None:
    trials = [trial(n, n / 100, history={"images_per_second": [n + 1.0]}) for n in range(40)]
    rankings = tables.Rankings()
    pd.testing.assert_frame_equal(rankings.of(rank(trials)), tables.ranking(rank(trials)))
    trials[5] = trial(5, 0.99, preset="default", optimizer__name="sgd", optimizer__momentum=0.9)
    trials.append(trial(40, None, "FAIL", error="out of memory\nhere"))
    changed = rankings.of(rank(trials))
    pd.testing.assert_frame_equal(changed, tables.ranking(rank(trials)))
    assert changed["trial"][0] == 5
    assert changed["gain"][0] == 0
    assert changed["error"].iloc[-1] == "out of memory"
    pd.testing.assert_frame_equal(rankings.of(rank(trials[:3])), tables.ranking(rank(trials[:3])))


def test_the_gain_is_in_percentage_points_over_the_preset() -> None:
    trials = rank([trial(0, 0.8, preset="default"), trial(1, 0.95), trial(2, None, "FAIL")])
    assert tables.ranking(trials)["gain"].round(9).tolist()[:2] == [15, 0]
    assert tables.ranking(trials)["gain"].isna().tolist() == [False, False, True]
    assert "gain" not in tables.ranking([trial(0, 0.8)])
    assert "gain" not in tables.ranking([trial(0, 0.8, "PRUNED", preset="default")])  # it did not run to its end


def test_a_value_of_another_type_does_not_stop_the_ranking() -> None:
    odd = dataclasses.replace(trial(0, 0.5), config=flatten(TrialConfig()) | {"training.batch_size": "many"})
    assert tables.ranking([odd, trial(1, 0.4)])["training.batch_size"].tolist() == ["many", "128"]


def test_a_number_that_is_none_is_missing_in_the_ranking() -> None:
    table = tables.ranking([trial(0, math.nan, "PRUNED"), trial(1, 0.5)])
    assert table["value"].isna().tolist() == [True, False]
    assert pareto.front(table, "parameters") == frozenset()


def test_of_many_failures_the_first_are_named() -> None:
    trials = [trial(n, None, "FAIL") for n in range(12)]
    assert tables.trial_names(trials[:1]) == "Trial 0"
    assert tables.trial_names(trials, at_most=3) == "Trials 0, 1, 2 and 9 more"
