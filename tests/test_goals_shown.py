"""Several goals and constraints on the command line and in the dashboard. `python -m pytest tests/test_goals_shown.py`."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.ipc
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from cluster import cli
from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord, rank
from cluster.studies import Studies
from cluster.study import SweepStudy
from dashboard import charts, comparison, pareto, tables, trial_tables
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts
from trainer.metrics import EpochMetrics

Command = Callable[..., tuple[int, str, str]]
FRONT = [1, 0, 4]
OVER = "latency_ms 7.5 > 5"


def run_costly(study: SweepStudy, accuracy: float, parameters: int, latency: float) -> None:
    trial = study.ask()
    costs = {"parameters": parameters, "size_mb": 4 * parameters / 1e6, "latency_ms": latency}
    trial.begin(parameters, "group", 10.0 * trial.number, costs)
    if latency > 5:
        trial.refuse(OVER, costs, 0.1)
        return
    for number in (1, 2):
        trial.report(EpochMetrics(number, 0.5, 0.25, accuracy, 0.001, 1000.0, 0.1, 0.02, 0.5, 0.5), 0.1 * number)
    trial.complete()


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweep 'slim' has trials 1, 0 (the preset) and 4 on its front, 2 is worse than 0 in all, and 3 was not trained; one without goals."""
    folder = tmp_path_factory.mktemp("experiments")
    wanted = config(
        "slim",
        goals=["parameters", "latency_ms"],
        constraints=["latency_ms <= 5", "parameters <= 1e5"],
        latency_batch=8,
    )
    study = Studies(Experiments(folder), create=True).create(wanted, ["zero", "one"], (1, 8, 8))
    study.begin_run(wanted, groups=1)
    for accuracy, parameters, latency in (
        (0.8, 1000, 4.0),
        (0.9, 5000, 3.0),
        (0.7, 3000, 4.5),
        (0.0, 2000, 7.5),
        (0.6, 500, 2.0),
    ):
        run_costly(study, accuracy, parameters, latency)
    study.end_run("FINISHED")
    usual = config("usual")
    study = Studies(Experiments(folder)).create(usual, ["zero", "one"], (1, 8, 8))
    study.begin_run(usual, groups=1)
    run_trial(study, usual, 0.7, 0.8)
    run_trial(study, usual, 0.9, 0.95)
    study.end_run("FINISHED")
    return folder


@pytest.fixture
def folder(studies: Path, tmp_path: Path) -> Path:
    return shutil.copytree(studies, tmp_path / "experiments")


# ---- the command line ----


@pytest.fixture
def convsweep(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command beside the experiments; gives exit status, standard output and standard error."""
    monkeypatch.chdir(folder.parent)
    for name in ("CONVSWEEP_DATA", "CONVSWEEP_EXPERIMENTS", "CONVSWEEP_STUDY_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convsweep", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return command


def test_rank_as_json_says_goals_costs_front_and_what_is_beyond(convsweep: Command) -> None:
    document = json.loads(convsweep("rank", "slim", "--json")[1])
    assert document["goals"] == ["parameters", "latency_ms"]
    assert document["constraints"] == ["latency_ms <= 5", "parameters <= 100000"]
    trials = document["trials"]
    assert [t["number"] for t in trials] == [1, 0, 2, 4, 3]
    assert [t["front"] for t in trials] == [True, True, False, True, False]
    assert [t["infeasible"] for t in trials] == [None, None, None, None, OVER]
    assert trials[0]["costs"] == {"parameters": 5000, "size_mb": 0.02, "latency_ms": 3.0}
    assert [t["state"] for t in trials][-1] == "PRUNED"


def test_rank_shows_the_front_alone_on_request(convsweep: Command) -> None:
    document = json.loads(convsweep("rank", "slim", "--front", "--json")[1])
    assert [t["number"] for t in document["trials"]] == FRONT
    lines = convsweep("rank", "slim", "--front")[1].splitlines()
    assert [line.split()[2] for line in lines[1:]] == [str(number) for number in FRONT]
    assert convsweep("rank", "slim", "--front", "--top", "1")[1].splitlines()[-1] == "and 2 more: --top 3"


def test_the_ranking_marks_the_front_and_has_the_costs_and_the_reason(convsweep: Command) -> None:
    head, *lines = convsweep("rank", "slim")[1].splitlines()
    trials = [line for line in lines if line.split()[0].isdecimal()]  # some take two lines
    assert "latency of 8, ms" in head
    assert [line.split()[1] == "*" for line in trials] == [True, True, False, True, False]
    assert f"[{OVER}]" in trials[4]
    assert " 4.5 " in trials[2]
    assert lines[-1].startswith("* the front of accuracy, parameters, latency_ms: no trial is better")


def test_a_sweep_without_goals_is_ranked_as_ever(convsweep: Command) -> None:
    out = convsweep("rank", "usual")[1]
    assert "*" not in out
    assert "latency" not in out
    document = json.loads(convsweep("rank", "usual", "--json")[1])
    assert (document["goals"], document["constraints"]) == ([], [])
    assert [(t["costs"], t["front"], t["infeasible"]) for t in document["trials"]] == [
        ({}, True, None),
        ({}, False, None),
    ]


def test_show_says_the_costs_and_which_constraint_is_broken(convsweep: Command) -> None:
    out = convsweep("show", "slim", "3")[1]
    assert OVER in out
    assert "parameters 2,000, size_mb 0.008, latency_ms 7.5" in out
    assert json.loads(convsweep("show", "slim", "3", "--json")[1])["infeasible"] == OVER


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--goal", "latency"), "Did you mean 'latency_ms'?"),
        (("--constraint", "latency_ms < 5"), "'latency_ms <= 5'"),
        (("--goal", "parameters", "--goal", "parameters"), "counts once"),
        (("--latency-batch", "64"), "latency_batch has no effect"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_begun(
    convsweep: Command, folder: Path, words: tuple[str, ...], sentence: str
) -> None:
    status, _, err = convsweep("sweep", "--data", "digits", "--name", "new", *words)
    assert (status, err.count("\n")) == (2, 1)
    assert sentence in err
    assert Studies(Experiments(folder)).names() == ["slim", "usual"]


def test_the_options_are_the_settings_of_a_sweep_file(convsweep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr("cluster.sweep.start", lambda config, *_: begun.append(config) or sys.exit(0))
    Path("sweep.yaml").write_text("data: digits\ngoals: [size_mb]\nconstraints: ['size_mb <= 1']\n")
    convsweep("sweep", "sweep.yaml")
    convsweep("sweep", "sweep.yaml", "--goal", "latency_ms", "--goal", "parameters", "--latency-batch", "64")
    convsweep("sweep", "sweep.yaml", "--constraint", "parameters <= 5e4")
    assert [(c.goals, c.constraints, c.latency_batch) for c in begun] == [
        (("size_mb",), ("size_mb <= 1",), 1),
        (("latency_ms", "parameters"), ("size_mb <= 1",), 64),
        (("size_mb",), ("parameters <= 50000",), 1),
    ]


def test_the_end_of_a_sweep_in_which_nothing_fits_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = config("tight", constraints=["parameters <= 1"])
    study = Studies(Experiments(folder)).create(wanted, [])
    study.begin_run(wanted, groups=1)
    study.ask().refuse("parameters 5 > 1", {"parameters": 5.0}, 0.1)
    study.end_run("FINISHED")
    from cluster.tables import show_outcome

    show_outcome(study.read(), "FINISHED", None, "experiments", as_json=True)
    assert "No trial of sweep 'tight' is complete and keeps to the constraints." in capsys.readouterr().err


# ---- the dashboard ----


@pytest.fixture
def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], AppTest]]:
    yield lambda path: dashboard_on(folder, path, monkeypatch)
    st.cache_resource.clear()


def columns(page: AppTest) -> dict[str, list[Any]]:
    with pyarrow.ipc.open_stream(page.dataframe[0].proto.arrow_data.data) as stream:
        found: dict[str, list[Any]] = stream.read_all().to_pydict()
    return found


def cost_chart(page: AppTest) -> dict[str, Any]:
    """The chart of the metric against a cost."""
    specs = [json.loads(chart.proto.spec) for chart in page.get("vega_lite_chart")]
    (found,) = [spec for spec in specs if charts.CLICKED in json.dumps(spec)]
    return found


def dashed(spec: dict[str, Any]) -> list[str]:
    """The axes that have a line of a constraint."""
    rules = [layer for layer in spec["layer"] if layer["mark"]["type"] == "rule"]
    return [axis for rule in rules for axis in ("x", "y") if axis in rule["encoding"]]


def test_the_ranking_has_costs_marks_and_reasons(page: Callable[[str], AppTest]) -> None:
    found = run(page(""), sweep="slim")
    table = columns(found)
    assert table["trial"] == [1, 0, 2, 4, 3]
    assert table["latency_ms"] == [3.0, 4.0, 4.5, 2.0, 7.5]
    assert table["size_mb"] == [0.02, 0.004, 0.012, 0.002, 0.008]
    assert table["infeasible"] == [None, None, None, None, OVER]
    assert table["marks"] == [["front"], ["preset", "front"], [], ["front"], []]
    assert "latency" not in table  # what the evaluations took, for which there is a measurement
    assert "best by accuracy, parameters, latency" in texts(found)
    assert "latency_ms <= 5 · parameters <= 100000" in texts(found).replace("\\", "")


def test_the_chart_is_against_the_first_goal_and_shows_the_constraint(page: Callable[[str], AppTest]) -> None:
    found = run(page(""), sweep="slim")
    spec = cost_chart(found)
    assert spec["layer"][1]["encoding"]["x"]["axis"]["title"] == "trainable parameters"
    assert dashed(spec) == ["x"]
    assert "Dashed: what a constraint allows." in texts(found)
    found = run(page(""), sweep="slim", cost="latency")
    spec = cost_chart(found)
    assert spec["layer"][1]["encoding"]["x"]["axis"]["title"] == "latency, milliseconds"
    assert dashed(spec) == ["x"]
    assert dashed(cost_chart(run(page(""), sweep="slim", cost="train time"))) == []


def test_a_sweep_without_goals_is_shown_as_ever(page: Callable[[str], AppTest]) -> None:
    found = run(page(""), sweep="usual")
    table = columns(found)
    assert not {"latency_ms", "size_mb", "infeasible"} & table.keys()
    assert "latency" in table
    assert table["marks"] == [["front"], ["preset", "front"]]
    assert dashed(cost_chart(found)) == []
    assert "Dashed" not in texts(found)


def test_a_cost_that_another_sweep_does_not_have_is_chosen_anew(page: Callable[[str], AppTest]) -> None:
    found = run(page(""), sweep="slim", cost="size")
    assert found.session_state["cost"] == "size_mb"
    found.sidebar.selectbox(key="sweep").select("usual").run()
    assert not found.exception
    assert "preset" in columns(found)["marks"][1]
    assert cost_chart(found)["layer"][1]["encoding"]["x"]["axis"]["title"] == "trainable parameters"


def test_the_page_of_a_trial_has_its_costs_and_says_why_it_was_not_trained(page: Callable[[str], AppTest]) -> None:
    found = run(page("trial"), sweep="slim", trial="3")
    numbers = {m.label: m.value for m in found.metric}
    assert (numbers["Latency"], numbers["Size"]) == ("7.5 ms", "0.008 MB")
    assert any(
        f"not trained, since its network costs more than the sweep's constraints allow: {OVER}" in i.value
        for i in found.info
    )
    assert "Latency" not in {m.label for m in run(page("trial"), sweep="usual", trial="1").metric}


def record(number: int, value: float, *, infeasible: str | None = None, **costs: float) -> TrialRecord:
    parameters = int(costs.get("parameters", 100))
    return TrialRecord(number, "COMPLETE", value, {}, costs=costs, parameters=parameters, infeasible=infeasible)


def test_no_trial_beyond_a_constraint_is_on_a_front() -> None:
    trials = [record(0, 0.5, parameters=10, infeasible="accuracy 0.5 < 0.6"), record(1, 0.7, parameters=20)]
    table = tables.ranking(rank(trials))
    assert pareto.front(table, "parameters") == {1}
    assert pareto.points(table, "parameters", {1})["trial"].tolist() == [0, 1]


def test_a_constraint_on_the_metric_is_a_level_line() -> None:
    table = tables.ranking(rank([record(0, 0.5), record(1, 0.7)]))
    points = pareto.points(table, "parameters", ())
    spec = charts.value_against_cost(
        points, pareto.COSTS["parameters"], limits={"value": 0.6, "cost": 5000.0}
    ).to_dict()
    assert dashed(spec) == ["y", "x"]
    assert spec["layer"][1]["encoding"]["x"]["scale"]["type"] == "log"  # the bound lies far from the trials


def test_trials_are_compared_by_what_was_measured() -> None:
    trials = (record(0, 0.5, size_mb=0.5, latency_ms=2.0), record(1, 0.7, infeasible=OVER))
    sweep = SweepRecord("s", "FINISHED", config("s"), ("a", "b"), None, (), rank(trials))
    table = comparison.outcome(sweep, trials).set_index("outcome")
    assert table.loc["measured size, MB"].tolist() == ["0.5", comparison.NOTHING]
    assert table.loc["measured latency, ms"].tolist() == ["2", comparison.NOTHING]
    assert table.loc["beyond a constraint"].tolist() == [comparison.NOTHING, OVER]
    assert "measured" not in " ".join(comparison.outcome(sweep, (record(2, 0.1),))["outcome"])


def test_a_trial_that_was_not_trained_has_no_weights() -> None:
    refused = TrialRecord(0, "PRUNED", None, {}, infeasible=OVER)
    assert "not trained" in trial_tables.why_no_weights(refused)


def test_the_csv_has_a_column_for_each_cost() -> None:
    text = tables.export([record(0, 0.5, parameters=7, latency_ms=2.5)])
    read = pd.read_csv(io.StringIO(text))
    assert (read["latency_ms"][0], read["parameters"][0]) == (2.5, 7)
    assert "costs" not in read
