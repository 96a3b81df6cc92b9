"""Several goals and constraints: how they are read, the front, what the sampler and the pruner make of them, the record.

`python -m pytest tests/test_goals.py`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from cluster import pareto, proposals, sweep, watchers
from cluster.cleaning import clean
from cluster.config import SweepConfig, make_config, read_sweep_file
from cluster.experiments import Experiments
from cluster.goals import Objectives, read_limit
from cluster.record import SweepRecord, TrialRecord, rank
from cluster.studies import Studies
from cluster.study import RunningTrial, SweepStudy
from trainer.checkpoint import Checkpoint
from trainer.costs import COSTS, Limit
from trainer.hyperparameters import TrialConfig
from trainer.measuring import ACCURACY, METRICS
from trainer.metrics import EpochMetrics


def config(**settings: Any) -> SweepConfig:
    return make_config({"name": "s", "data": "digits", "trials": 20, "epochs": 3, "preset": "none"} | settings)


def create(where: Experiments, **settings: Any) -> SweepStudy:
    chosen = config(**settings)
    study = Studies(where, create=True).create(chosen, ["a", "b"])
    study.begin_run(chosen, groups=1)
    return study


def epoch(number: int, accuracy: float) -> EpochMetrics:
    return EpochMetrics(number, 0.5, 1 - accuracy, accuracy, 0.01, 1000.0, 1.0, 0.1, 0.5, 0.5)


def run_trial(
    study: SweepStudy, accuracy: float, parameters: float, end: str = "complete", **costs: float
) -> RunningTrial:
    trial = study.ask()
    trial.begin(int(parameters), "group", 10.0 * trial.number, {"parameters": parameters, "size_mb": 1.0} | costs)
    trial.report(epoch(1, accuracy), 1.0)
    if end:
        getattr(trial, end)()
    return trial


@pytest.fixture
def where(tmp_path: Path) -> Experiments:
    return Experiments(tmp_path / "experiments")


def plain(where: Experiments) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=where.database)


# ---- what users write ----


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency_ms <= 5", Limit("latency_ms", 5.0)),
        ("parameters<=1e5", Limit("parameters", 1e5)),
        ("  size_mb  <=  0.25 ", Limit("size_mb", 0.25)),
        ("parameters <= 100_000", Limit("parameters", 1e5)),
        ("accuracy >= 0.9", Limit("accuracy", 0.9, is_least=True)),
    ],
)
def test_a_constraint_is_read(text: str, limit: Limit) -> None:
    assert read_limit(text, ACCURACY) == limit
    assert read_limit(str(limit), ACCURACY) == limit


def test_the_loss_has_an_upper_bound() -> None:
    assert read_limit("loss <= 0.1", METRICS["loss"]) == Limit("loss", 0.1)
    with pytest.raises(ValueError, match="loss is at most"):
        read_limit("loss >= 0.1", METRICS["loss"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"constraints": ["latency <= 5"]},
            "or on the metric, accuracy, but got 'latency <= 5'. Did you mean 'latency_ms'?",
        ),
        ({"constraints": ["latency_ms"]}, "such as 'latency_ms <= 5', but got 'latency_ms'"),
        ({"constraints": [5]}, "such as 'latency_ms <= 5', but got 5"),
        ({"constraints": ["latency_ms <= 5 ms"]}, "without its unit (ms), but got 'latency_ms <= 5 ms'"),
        ({"constraints": ["parameters <= many"]}, "a number such as 5 or 1e5, but got 'parameters <= many'"),
        ({"constraints": ["parameters <= inf"]}, "a number such as 5"),
        ({"constraints": ["parameters >= 5"]}, "at most: 'parameters <= 5', but got 'parameters >= 5'"),
        ({"constraints": ["parameters < 5"]}, "at most: 'parameters <= 5'"),
        ({"constraints": ["accuracy => 0.9"]}, "at least: 'accuracy >= 0.9'"),
        ({"constraints": ["latency_ms <= 0"]}, "above 0"),
        ({"constraints": ["latency_ms <= 5", "latency_ms <= 4"]}, "one constraint on latency_ms"),
        ({"constraints": "latency_ms <= 5"}, "constraints must be a list"),
        ({"constraints": ["macro_f1 >= 0.5"]}, "or on the metric, accuracy"),
        ({"goals": ["latency"]}, "parameters, size_mb, latency_ms, but got 'latency'. Did you mean 'latency_ms'?"),
        ({"goals": ["accuracy"]}, "the first goal already"),
        ({"goals": ["parameters", "parameters"]}, "counts once"),
        ({"goals": [["parameters"]]}, "A goal is one of"),
        ({"latency_batch": 0, "goals": ["latency_ms"]}, "latency_batch must be at least 1"),
        ({"latency_batch": 64, "goals": ["parameters"]}, "latency_batch has no effect"),
    ],
)
def test_what_is_off_is_answered_with_the_rule_and_what_was_given(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        config(**settings)
    assert words in str(error.value)


def test_a_sweep_file_says_the_same_as_settings(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: s\ndata: digits\ngoals: [parameters, latency_ms]\nconstraints:\n  - latency_ms <= 5\nlatency-batch: 64\n"
    )
    read = make_config(read_sweep_file(file))
    assert read.objectives == Objectives(ACCURACY, ("parameters", "latency_ms"), (Limit("latency_ms", 5.0),), 64)
    assert SweepConfig.from_json(json.loads(json.dumps(read.to_json()))) == read


def test_a_sweep_that_was_recorded_before_there_were_goals_has_none() -> None:
    values = config().to_json()
    for name in ("goals", "constraints", "latency_batch"):
        del values[name]
    assert SweepConfig.from_json(values) == config()
    assert config().objectives == Objectives(ACCURACY)
    assert config().objectives.costing.names == ()


def test_measured_is_what_a_goal_or_a_constraint_names() -> None:
    costing = config(goals=["size_mb"], constraints=["latency_ms <= 5", "accuracy >= 0.5"]).objectives.costing
    assert costing.names == ("size_mb", "latency_ms")
    assert costing.limits == (Limit("latency_ms", 5.0),)


def test_a_verdict_says_by_what_a_trial_is_beyond_its_limits() -> None:
    objectives = config(constraints=["latency_ms <= 5", "parameters <= 1e5", "accuracy >= 0.9"]).objectives
    costs = {"latency_ms": 7.3, "parameters": 123_456.0}
    assert objectives.infeasible(None, costs) == "latency_ms 7.3 > 5, parameters 123,456 > 100,000"
    assert objectives.infeasible(0.85, {"latency_ms": 5.0}) == "accuracy 0.85 < 0.9"
    assert objectives.infeasible(0.9, {"latency_ms": 5.0, "parameters": 1.0}) is None
    assert objectives.excesses(0.45, costs) == pytest.approx(
        {"latency_ms <= 5": 0.46, "parameters <= 100000": 0.23456, "accuracy >= 0.9": 0.5}
    )


# ---- the front ----


def record(number: int, value: float | None, *costs: float, **more: Any) -> TrialRecord:
    return TrialRecord(number, "COMPLETE", value, {}, costs=dict(zip(COSTS, costs, strict=False)), **more)


def numbers_on_optunas_front(trials: Sequence[TrialRecord], objectives: Objectives) -> set[int]:
    """`best_trials` of a study of Optuna's own with the same values and constraints."""
    study = optuna.create_study(directions=objectives.directions)
    for trial in trials:
        values = [trial.value, *(trial.costs[name] for name in objectives.costs)]
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState[trial.state],
                values=values if trial.state == "COMPLETE" else None,
                user_attrs={"number": trial.number},
                constraints=objectives.excesses(trial.value, trial.costs) or None,
            )
        )
    return {t.user_attrs["number"] for t in study.best_trials}


few = st.integers(0, 4).map(float)
trials_of_any_kind = st.lists(
    st.tuples(few, few, few, few, st.sampled_from(["COMPLETE", "COMPLETE", "PRUNED"])), max_size=25
)


@pytest.mark.parametrize(
    "goals", [[], ["parameters"], ["parameters", "size_mb"], ["parameters", "size_mb", "latency_ms"]]
)
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
@given(rows=trials_of_any_kind, bound=st.integers(1, 5))
def test_the_front_is_that_of_optuna_also_with_equal_trials_and_constraints(
    goals: list[str], metric: str, rows: list[Any], bound: int
) -> None:
    objectives = config(metric=metric, goals=goals, constraints=[f"size_mb <= {bound}"]).objectives
    trials = []
    for number, (value, *costs, state) in enumerate(rows):
        known = dict(zip(COSTS, costs, strict=True))
        infeasible = objectives.infeasible(value, known)
        trials.append(TrialRecord(number, state, value, {}, costs=known, infeasible=infeasible))
    assert pareto.front(trials, objectives) == numbers_on_optunas_front(trials, objectives)


def test_a_trial_without_a_cost_or_a_value_is_on_no_front() -> None:
    objectives = Objectives(ACCURACY, ("parameters", "size_mb"))
    trials = [
        record(0, 0.9, 10.0),
        record(1, 0.1, 20.0, 3.0),
        record(2, None, 1.0, 1.0),
        record(3, float("nan"), 1.0, 1.0),
    ]
    assert pareto.front(trials, objectives) == {1}
    assert pareto.front([], objectives) == frozenset()


def test_the_fronts_behind_the_front_are_counted_as_far_as_is_needed() -> None:
    points = {n: (float(n % 3), float(-n)) for n in range(9)}
    found = pareto.layers(points, enough=9)
    assert found == {8: 0, 7: 0, 6: 0, 5: 1, 4: 1, 3: 1, 2: 2, 1: 2, 0: 2}
    assert pareto.layers(points, enough=1) == {n: int(n < 6) for n in (8, 7, 6, 5, 4, 3, 2, 1, 0)}


def sweep_of(*trials: TrialRecord, **settings: Any) -> SweepRecord:
    return SweepRecord("s", "FINISHED", config(**settings), ("a", "b"), (1, 8, 8), (), rank(trials))


def test_the_best_is_the_best_of_those_that_keep_to_the_constraints() -> None:
    beyond = record(0, 0.9, 10.0, infeasible="parameters 10 > 5")
    assert sweep_of(beyond, record(1, 0.5, 3.0), constraints=["parameters <= 5"]).best_or_error().number == 1
    with pytest.raises(ValueError, match="ran to its end and keeps to its constraints: 1 COMPLETE"):
        sweep_of(beyond, constraints=["parameters <= 5"]).best_or_error()


# ---- the record ----


def test_costs_and_verdicts_are_in_the_record_as_any_optuna_tool_reads_them(where: Experiments) -> None:
    study = create(where, goals=["parameters"], constraints=["latency_ms <= 5", "accuracy >= 0.5"])
    run_trial(study, 0.9, 1000, latency_ms=4.0)
    run_trial(study, 0.4, 10, latency_ms=1.0)
    over = study.ask()
    over.begin(5000, "group", 20.0, {"parameters": 5000, "latency_ms": 7.5})
    over.refuse("latency_ms 7.5 > 5", {"parameters": 5000, "latency_ms": 7.5}, 0.25)
    run_trial(study, 0.7, 100, end="prune", latency_ms=2.0)
    theirs, found = plain(where).trials, study.read()
    assert [t.state.name for t in theirs] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert theirs[0].user_attrs["costs"] == {"parameters": 1000, "size_mb": 1.0, "latency_ms": 4.0}
    assert theirs[0].constraints == pytest.approx({"latency_ms <= 5": -0.2, "accuracy >= 0.5": -0.8})
    assert theirs[1].constraints["accuracy >= 0.5"] == pytest.approx(0.2)
    assert theirs[2].constraints == pytest.approx({"latency_ms <= 5": 0.5})
    assert plain(where).best_trial.number == found.best_or_error().number == 0
    assert [found.trial(n).infeasible for n in range(4)] == [None, "accuracy 0.4 < 0.5", "latency_ms 7.5 > 5", None]
    assert (found.trial(2).train_seconds, found.trial(2).error, found.trial(2).value) == (0.25, None, None)
    assert found.trial(0).costs == theirs[0].user_attrs["costs"]
    assert found.front == {0}


def test_a_sweep_without_goals_records_neither_costs_nor_constraints(where: Experiments) -> None:
    study = create(where)
    trial = study.ask()
    trial.begin(5, "group", 1.0, {})
    trial.report(epoch(1, 0.5), 1.0)
    trial.complete()
    theirs = plain(where).trials[0]
    assert not {"costs", "infeasible"} & theirs.user_attrs.keys()
    assert theirs.constraints == {}
    assert study._proposals._study.directions == [optuna.study.StudyDirection.MAXIMIZE]


def test_of_costs_that_are_measured_again_the_first_count(where: Experiments) -> None:
    study = create(where, goals=["latency_ms"], constraints=["latency_ms <= 5"])
    trial = study.ask()
    trial.begin(5, "one", 1.0, {"latency_ms": 4.9})
    trial.report(epoch(1, 0.5), 1.0)
    assert trial.begin(5, "other", 2.0, {"latency_ms": 5.1})
    trial.report(epoch(2, 0.6), 2.0)
    study.end_run("INTERRUPTED")
    again = Studies(where).open("s")
    again.begin_run(again.config, groups=1)
    known = again.ask()
    known.begin(5, "third", 3.0, {"latency_ms": 5.2})
    known.report(epoch(3, 0.7), 3.0)
    known.complete()
    assert again.read().trial(0).costs == {"latency_ms": 4.9}
    assert again.read().trial(0).infeasible is None


def test_extend_and_resume_keep_the_goals(where: Experiments) -> None:
    study = create(where, goals=["latency_ms"], constraints=["parameters <= 1e5"], latency_batch=8)
    more = sweep.More(trials=3).of(study)
    assert more == dataclasses.replace(study.config, trials=23)
    assert more.objectives == Objectives(ACCURACY, ("latency_ms",), (Limit("parameters", 1e5),), 8)


def test_trials_over_a_limit_are_no_sign_that_all_fail_and_none_that_all_is_well() -> None:
    class Ended:
        error: str | None

        def __init__(self, error: str | None) -> None:
            self.error = error

    hopeless = watchers.Hopeless()
    for _ in range(20):
        hopeless.ended(Ended("parameters 10 > 5"), "PRUNED")  # type: ignore[arg-type]
    assert hopeless.reason is None
    for _ in range(10):
        hopeless.ended(Ended("ValueError: no"), "FAIL")  # type: ignore[arg-type]
    assert hopeless.reason is not None


def test_the_weights_of_the_front_are_kept_besides_those_of_the_best(where: Experiments) -> None:
    import torch

    study, store = create(where, goals=["parameters"], keep_checkpoints=1), where.checkpoints("s")
    keeper = watchers.CheckpointKeeper(store, 1, study)

    def end(accuracy: float, parameters: float, keeper: watchers.CheckpointKeeper) -> None:
        trial = run_trial(study, accuracy, parameters)
        store.save(trial.number, Checkpoint({"w": torch.zeros(1)}, trial.config, 1, 0.0))
        keeper.ended(trial, "COMPLETE")

    for accuracy, parameters in ((0.8, 100), (0.9, 1000), (0.7, 200), (0.5, 10)):
        end(accuracy, parameters, keeper)
    assert store.trials() == [0, 1, 3]
    end(0.85, 90, watchers.CheckpointKeeper(store, 1, study))  # after a restart
    assert store.trials() == [1, 3, 4]
    study.end_run("FINISHED")
    store.save(0, Checkpoint({"w": torch.zeros(1)}, TrialConfig(), 1, 0.0))
    assert clean("s", where, keep=1, remove=False).kept == (1, 4, 3)


# ---- pruning ----


@pytest.mark.parametrize("pruner", ["halving", "median"])
def test_a_trial_is_given_up_for_one_that_costs_no_more_and_for_no_other(where: Experiments, pruner: str) -> None:
    study = create(where, goals=["parameters", "size_mb"], pruner=pruner)
    for n in range(8):
        trial = run_trial(study, 0.9, 1000 + n, end="")
        assert not trial.should_prune()
        trial.complete()

    def is_given_up(accuracy: float, parameters: float, **costs: float) -> bool:
        trial = run_trial(study, accuracy, parameters, end="", **costs)
        given_up = trial.should_prune()
        trial.prune()
        return given_up

    assert is_given_up(0.5, 2000)
    assert is_given_up(0.5, 1007)
    assert not is_given_up(0.5, 10)  # the smallest so far
    assert not is_given_up(0.6, 2000, size_mb=0.5)
    assert not is_given_up(0.95, 2000)


# ---- the sampler ----

SMALL = {"model.blocks": 1, "model.filters": [8, 16, 32, 64], "model.kernel_size": [3, 5, 7], "optimizer.name": "adam"}


def ran(study: SweepStudy, judge: Callable[[Any], tuple[float, float]], most: float | None = None) -> Any:
    """A trial whose accuracy and parameters `judge` tells from its network; over `most` parameters it is refused."""
    trial = study.ask()
    accuracy, parameters = judge(trial.config.model)
    costs = {"parameters": parameters, "size_mb": parameters / 1e6}
    trial.begin(int(parameters), "group", 1.0, costs)
    if most is not None and parameters > most:
        trial.refuse(f"parameters {parameters} > {most}", costs, 0.1)
    else:
        trial.report(epoch(1, accuracy), 1.0)
        trial.complete()
    return trial.config.model


def by_size(model: Any) -> tuple[float, float]:
    """Wider and larger kernels are better and cost more."""
    parameters = float(model.filters[0] * model.kernel_size[0] ** 2)
    return 1 - 1 / parameters, parameters


@pytest.mark.parametrize("goals", [[], ["parameters"]], ids=["one goal", "two goals"])
def test_the_sampler_learns_to_keep_to_a_constraint(where: Experiments, goals: list[str]) -> None:
    most = 200.0  # no more have 3 of the 12 networks, a quarter
    study = create(where, goals=goals, constraints=[f"parameters <= {most}"], trials=200, space=SMALL)
    first = [by_size(ran(study, by_size, most))[1] <= most for _ in range(15)]
    for _ in range(45):
        ran(study, by_size, most)
    later = [by_size(ran(study, by_size, most))[1] <= most for _ in range(20)]
    assert np.mean(later) > max(0.6, np.mean(first))
    again = Studies(where).open("s")
    again.begin_run(again.config, groups=1)
    assert np.mean([by_size(ran(again, by_size, most))[1] <= most for _ in range(20)]) > 0.6


def by_size_without_kernels(model: Any) -> tuple[float, float]:
    """Kernels of 7 cost and give nothing, those of 5 are a little worse than those of 3: only kernels of 3 are on the front."""
    filters, kernel = model.filters[0], model.kernel_size[0]
    return 1 - 1 / filters - kernel / 1000, float(filters * kernel**2)


def test_the_sampler_looks_for_the_whole_front(where: Experiments) -> None:
    study = create(where, goals=["parameters"], trials=200, space=SMALL, pruner="none")
    for _ in range(50):
        ran(study, by_size_without_kernels)
    later = [ran(study, by_size_without_kernels) for _ in range(30)]
    assert sum(model.kernel_size == (3,) for model in later) >= 20
    assert {model.filters[0] for model in later if model.kernel_size == (3,)} == {8, 16, 32, 64}
    theirs = study._proposals._study
    assert [d.name for d in theirs.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert len(study.read().front) >= 4


def test_pruned_trials_count_as_worse_than_complete_ones(where: Experiments) -> None:
    study = create(where, goals=["parameters"], trials=200, space=SMALL)

    def is_good(study: SweepStudy) -> bool:
        trial = study.ask()
        good = trial.config.model.kernel_size == (3,)
        trial.begin(9, "group", 1.0, {"parameters": 9.0, "size_mb": 1.0})
        trial.report(epoch(1, 0.5), 1.0)
        trial.complete() if good else trial.prune()
        return good

    for _ in range(30):
        is_good(study)
    known = study._proposals._study.get_trials(deepcopy=False)
    assert {t.state for t in known} == {TrialState.COMPLETE, TrialState.PRUNED}
    again = Studies(where).open("s")
    again.begin_run(again.config, groups=1)
    for trial in (*known, *again._proposals._study.get_trials(deepcopy=False)):
        assert (
            not trial.intermediate_values
        )  # of a pruned trial with some, Optuna asks the direction, and there are two
    assert sum(is_good(again) for _ in range(20)) >= 13


def test_of_many_trials_the_sampler_keeps_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "BEST", 5)
    monkeypatch.setattr(proposals, "MOST", 10)
    mine = proposals.Proposals(config(goals=["parameters"], space=SMALL, trials=1000, sampler="random"), 0, [])
    for number in range(60):
        mine.propose()
        mine.note(number)
        on_front = number < 5  # the earliest are the best: an even selection alone would lose some of them
        costs = {"parameters": 10.0 * (number + 1) if on_front else 1000.0 + number}
        mine.ended(number, TrialState.COMPLETE, 0.5 + number / 100 if on_front else 0.1, 1, costs=costs)
        known = mine._study.get_trials(deepcopy=False)
        assert len(known) <= 2 * 10 + 1
        kept = {t.user_attrs["costs"]["parameters"] for t in known}
        assert kept >= {10.0 * (n + 1) for n in range(min(number + 1, 5))}


def test_a_warm_start_takes_the_parameters_of_a_sweep_without_goals_but_no_latency_of_another_batch(
    where: Experiments,
) -> None:
    study = create(where, space=SMALL)
    for accuracy in (0.5, 0.6):
        trial = study.ask()
        trial.begin(500, "group", 1.0)
        trial.report(epoch(1, accuracy), 1.0)
        trial.complete()

    def learnt(name: str, source: str, **settings: Any) -> list[Any]:
        wanted = config(name=name, space=SMALL, warm_start_from=source, **settings)
        other = Studies(where).create(wanted, ["a", "b"])
        other.begin_run(wanted, groups=1)
        return [t.values for t in other._proposals._study.get_trials(deepcopy=False)]

    log_500 = pytest.approx(np.log(500))
    assert learnt("two", "s", goals=["parameters"]) == [[0.5, log_500], [0.6, log_500]]
    assert learnt("fast", "s", goals=["latency_ms"]) == []
    fast = Studies(where).open("fast")
    fast.begin_run(fast.config, groups=1)
    fast.ask()  # the best of the other
    trial = fast.ask()
    trial.begin(500, "group", 1.0, {"parameters": 500.0, "latency_ms": 1.0})
    trial.report(epoch(1, 0.7), 1.0)
    trial.complete()
    assert learnt("same", "fast", goals=["latency_ms"]) == [[0.7, pytest.approx(0.0)]]
    assert learnt("batch", "fast", goals=["latency_ms"], latency_batch=64) == []
    assert learnt("plain", "fast") == [[0.7]]


def test_what_another_sweep_did_not_allow_says_nothing_to_one_that_does(where: Experiments) -> None:
    study = create(where, constraints=["parameters <= 100"], space=SMALL)
    over = study.ask()
    over.refuse("parameters 500 > 100", {"parameters": 500.0}, 0.1)

    def learnt(name: str, **settings: Any) -> list[Any]:
        wanted = config(name=name, space=SMALL, warm_start_from="s", **settings)
        other = Studies(where).create(wanted, ["a", "b"])
        other.begin_run(wanted, groups=1)
        return [t.constraints for t in other._proposals._study.get_trials(deepcopy=False)]

    assert learnt("plain") == []
    assert learnt("wide", constraints=["parameters <= 1000"]) == []
    assert learnt("narrow", constraints=["parameters <= 50"]) == [{"parameters <= 50": 9.0}]
