"""The study behind Tune's interfaces, without Tune and without Ray: what is asked, told and sent to the mailbox."""

import time

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.search import StudyScheduler, StudySearcher, SweepStopper, Trials
from cluster.studies import Studies
from trainer.mailbox import Report
from trainer.metrics import EpochMetrics


class RecordingMailbox:
    """Stands in for the actor handle: `post.remote(...)` and `stop.remote(...)` are written down."""

    def __init__(self):
        self.posted, self.stopped, self.is_complete = [], [], False
        self.post = type("Post", (), {"remote": staticmethod(self.posted.append)})
        self.stop = type("Stop", (), {"remote": staticmethod(self.stopped.append)})
        self.no_more = type("NoMore", (), {"remote": lambda posted: setattr(self, "is_complete", posted)})


class RecordingWatcher:
    def __init__(self):
        self.events = []

    def started(self, trial):
        self.events.append(("started", trial.number))

    def reported(self, trial):
        self.events.append(("reported", trial.number))

    def begun_again(self, trial):
        self.events.append(("begun again", trial.number))

    def ended(self, trial, state):
        self.events.append((state, trial.number))


class TuneTrial:
    def __init__(self, trial_id, error=None):
        self.trial_id, self._error = trial_id, error

    def get_pickled_error(self):
        return self._error

    def should_recover(self):
        return False


class Sweep:
    ours, is_over = True, False

    def __init__(self, folder, groups=1, **settings):
        self.groups = groups
        self.config = make_config({"name": "s", "data": "digits", "trials": 4, "epochs": 4} | settings)
        self.study = Studies(Experiments(folder), create=True).create(self.config, [])
        self.study.begin_run(self.config, groups)
        self.mailbox, self.watcher, self.stop_now = RecordingMailbox(), RecordingWatcher(), False
        self.trials = Trials(
            self.study,
            self.config,
            lambda: self.groups,
            self.mailbox,
            "checkpoints",
            lambda: self.stop_now,
            [self.watcher],
            lambda: self.ours,
            (lambda: self.is_over) if self.config.time_budget is None else None,
        )
        self.searcher = StudySearcher(self.trials)
        self.scheduler = StudyScheduler(self.trials)

    def report(
        self, tune_id, epoch=1, accuracy=0.5, error=None, begun_at=100.0, reported_at=101.0, kind=None, costs=()
    ):
        metrics = None if error else EpochMetrics(epoch, 1.0, 1.0, accuracy, 0.1, 10.0, 1.0)
        done = error is not None or epoch == self.config.epochs
        log = "host:/a.err" if error else None
        report = Report("group", metrics, done, begun_at, reported_at, 7, error, kind, log, costs=dict(costs))
        result = {"report": report, "done": done}
        if done:  # as Tune does
            self.scheduler.on_trial_complete(None, TuneTrial(tune_id), result)
            self.searcher.on_trial_complete(tune_id, result)
            return TrialScheduler.STOP
        return self.scheduler.on_trial_result(None, TuneTrial(tune_id), result)


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


def test_the_next_trial_is_asked_for_ahead_of_its_time(sweep):
    assert sweep.searcher.suggest("a") == {"trial": 0}
    assert [assignment.trial for assignment in sweep.mailbox.posted] == [0, 1]
    for epoch in range(1, 5):
        sweep.report("a", epoch)
    assert sweep.searcher.suggest("b") == {"trial": 1}
    assert [assignment.trial for assignment in sweep.mailbox.posted] == [0, 1, 2]


def test_no_more_trials_are_asked_for_than_the_sweep_has_and_the_groups_are_told_that_there_are_no_more(tmp_path):
    sweep = Sweep(tmp_path, groups=5)
    sweep.searcher.suggest("a")
    assert [assignment.trial for assignment in sweep.mailbox.posted] == [0, 1, 2, 3]
    assert sweep.mailbox.is_complete == 4
    assert [sweep.searcher.suggest(tune_id) for tune_id in "bcde"] == [
        *({"trial": n} for n in (1, 2, 3)),
        Searcher.FINISHED,
    ]
    assert len(sweep.mailbox.posted) == 4


def test_a_trial_waits_for_a_group_that_is_there_for_it(sweep):
    assert sweep.searcher.suggest("a") == {"trial": 0}
    assert sweep.searcher.suggest("b") is None
    assert not sweep.mailbox.is_complete
    sweep.groups = 2  # a node has joined the cluster
    assert sweep.searcher.suggest("b") == {"trial": 1}
    assert [assignment.trial for assignment in sweep.mailbox.posted] == [0, 1, 2, 3]


def test_a_trial_that_ran_to_its_end_is_complete_with_its_best_epoch(sweep):
    sweep.searcher.suggest("a")
    for epoch, accuracy in enumerate((0.5, 0.9, 0.7, 0.8), 1):
        sweep.report("a", epoch, accuracy)
    record = sweep.study.read().trial(0)
    assert (record.state, record.value, len(record.epochs)) == ("COMPLETE", 0.9, 4)
    assert (record.parameters, record.train_seconds) == (7, 1.0)
    assert sweep.watcher.events == [("started", 0), *[("reported", 0)] * 4, ("COMPLETE", 0)]


def test_a_pruned_trial_is_pruned_once_and_its_group_is_told_to_stop(tmp_path):
    sweep = Sweep(tmp_path, preset="none")
    sweep.searcher.suggest("a")
    for epoch in range(1, 5):
        sweep.report("a", epoch, 0.9)
    sweep.searcher.suggest("b")
    assert sweep.report("b", 1, 0.1) == TrialScheduler.STOP
    sweep.scheduler.on_trial_complete(None, TuneTrial("b"), {"report": None})  # as Tune does for a stopped trial
    sweep.searcher.on_trial_complete("b", {})
    assert sweep.study.read().trial(1).state == "PRUNED"
    assert sweep.mailbox.stopped == [1]
    assert sweep.watcher.events.count(("PRUNED", 1)) == 1


def test_an_error_in_a_trial_fails_it_with_its_cause(sweep):
    sweep.searcher.suggest("a")
    sweep.report("a", 1)
    sweep.report("a", error="NotFiniteError: the loss is nan")
    record = sweep.study.read().trial(0)
    assert (record.state, record.error, len(record.epochs)) == ("FAIL", "NotFiniteError: the loss is nan", 1)
    assert record.log == "host:/a.err"


def test_a_lost_group_fails_its_trial_with_the_reason(sweep):
    sweep.searcher.suggest("a")
    sweep.scheduler.on_trial_error(None, TuneTrial("a", RuntimeError("node went away")))
    sweep.searcher.on_trial_complete("a", error=True)
    record = sweep.study.read().trial(0)
    assert record.state == "FAIL"
    assert "node went away" in record.error
    assert sweep.mailbox.stopped == [0]


def test_a_trial_whose_processes_died_goes_on_and_its_watchers_are_told(sweep):
    sweep.searcher.suggest("a")
    sweep.report("a", 1, begun_at=100.0)
    sweep.report("a", 1, begun_at=200.0)  # from the state that it goes on from
    for epoch in range(2, 5):
        sweep.report("a", epoch, begun_at=200.0)
    assert sweep.study.read().trial(0).state == "COMPLETE"
    assert sweep.watcher.events[1:4] == [("reported", 0), ("begun again", 0), ("reported", 0)]


def test_an_actor_that_tune_starts_again_reads_the_same_reports_and_nothing_is_recorded_twice(sweep):
    sweep.searcher.suggest("a")
    for epoch in (1, 2, 1, 2, 3, 4):
        sweep.report("a", epoch, 0.1 * epoch)
    record = sweep.study.read().trial(0)
    assert (record.state, record.epochs_done) == ("COMPLETE", 4)
    assert sweep.watcher.events.count(("reported", 0)) == 4


@pytest.mark.parametrize("kind", ["storage", "no worker group"])
def test_what_no_trial_is_to_blame_for_stops_the_sweep_and_its_trials_wait(sweep, kind):
    sweep.searcher.suggest("a")
    sweep.report("a", 1)
    sweep.report("a", error="OSError: No space left on device", kind=kind)
    assert SweepStopper(sweep.trials).stop_all()
    assert "No space left" in sweep.trials.broken
    assert sweep.study.read().trial(0).state == "WAITING"
    assert sweep.trials.left()


def test_a_trial_that_does_not_fit_into_memory_fails_and_says_so_as_a_constraint(sweep):
    sweep.searcher.suggest("a")
    sweep.report("a", error="OutOfMemoryError: CUDA out of memory", kind="out of memory")
    assert sweep.study.read().trial(0).state == "FAIL"
    assert sweep.study._study.trials[0].constraints == {"memory": 1.0}
    assert not sweep.trials.should_stop()


def test_a_trial_over_a_limit_is_pruned_with_its_costs_and_the_reason(tmp_path):
    sweep = Sweep(tmp_path, constraints=["latency_ms <= 5"], goals=["parameters"], latency_batch=4)
    costs = {"parameters": 7, "latency_ms": 7.5}
    sweep.searcher.suggest("a")
    sweep.report("a", error="latency_ms 7.5 > 5", kind="over a limit", costs=costs, reported_at=100.5)
    record = sweep.study.read().trial(0)
    assert (record.state, record.value, record.error, record.infeasible) == ("PRUNED", None, None, "latency_ms 7.5 > 5")
    assert (record.costs, record.parameters, record.train_seconds, record.group_began) == (costs, 7, 0.5, 100.0)
    assert sweep.watcher.events == [("started", 0), ("PRUNED", 0)]
    assert not sweep.trials.should_stop()
    assert sweep.searcher.suggest("b") == {"trial": 1}
    costing = sweep.mailbox.posted[0].costing
    assert (costing.names, [str(limit) for limit in costing.limits], costing.latency_batch) == (
        ("parameters", "latency_ms"),
        ["latency_ms <= 5"],
        4,
    )


def test_the_costs_of_a_trial_are_recorded_with_its_first_epoch(tmp_path):
    sweep = Sweep(tmp_path, goals=["size_mb"])
    sweep.searcher.suggest("a")
    sweep.report("a", 1, costs={"parameters": 7, "size_mb": 0.5})
    assert sweep.study.read().trial(0).costs == {"parameters": 7, "size_mb": 0.5}


def test_a_sweep_that_stops_leaves_its_trials_waiting(sweep):
    sweep.searcher.suggest("a")
    sweep.report("a", 1)
    sweep.stop_now = True
    assert SweepStopper(sweep.trials).stop_all()
    assert sweep.searcher.suggest("b") == Searcher.FINISHED
    sweep.searcher.on_trial_complete("a", {})
    assert sweep.study.read().trial(0).state == "WAITING"
    sweep.study.end_run("INTERRUPTED")
    assert sweep.study.counts()["RUNNING"] == 0


def test_a_sweep_that_another_process_has_taken_over_is_left_alone(sweep):
    sweep.searcher.suggest("a")
    sweep.report("a", 1)
    before = sweep.study.read()
    sweep.ours, sweep.stop_now = False, True
    assert sweep.report("a", 2) == TrialScheduler.STOP
    sweep.scheduler.on_trial_error(None, TuneTrial("a", RuntimeError("node went away")))
    sweep.searcher.on_trial_complete("a", {})
    assert sweep.study.read() == before
    assert before.trial(0).state == "RUNNING"
    assert sweep.trials.left()


def test_after_the_time_budget_what_was_asked_for_still_runs_and_nothing_new(tmp_path, monkeypatch):
    sweep = Sweep(tmp_path, trials=None, time_budget=60)
    sweep.searcher.suggest("a")
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    sweep.groups = 3
    assert sweep.searcher.suggest("b") == {"trial": 1}
    assert sweep.searcher.suggest("c") == Searcher.FINISHED


def test_the_time_that_earlier_runs_took_counts_for_the_time_budget_but_what_had_begun_is_trained_to_its_end(tmp_path):
    sweep = Sweep(tmp_path, trials=None, time_budget=60)
    sweep.searcher.suggest("a")
    sweep.report("a", 1)
    sweep.study._study.set_user_attr("runs", [{"begun": 0.0, "ended": 61.0, "groups": 1}])
    again = Studies(Experiments(tmp_path)).open("s")
    again.begin_run(sweep.config, 1)
    assert again.unfinished == 2  # the second was asked for ahead of its time
    trials = Trials(again, sweep.config, lambda: 1, sweep.mailbox, "checkpoints", lambda: False, [])
    assert [trials.next(tune_id).number for tune_id in "bc"] == [0, 1]
    assert trials.next("d") is None


def test_once_the_sweep_is_over_what_was_asked_for_still_runs_and_nothing_new(tmp_path):
    sweep = Sweep(tmp_path, trials=20)
    sweep.searcher.suggest("a")
    sweep.is_over = True
    for epoch in range(1, 5):
        sweep.report("a", epoch)
    assert sweep.searcher.suggest("b") == {"trial": 1}
    assert not sweep.trials.should_stop()
    for epoch in range(1, 5):
        sweep.report("b", epoch)
    assert sweep.searcher.suggest("c") == Searcher.FINISHED
    assert sweep.mailbox.is_complete == 2
    assert not sweep.trials.left()


def test_the_time_between_trials_is_from_the_last_report_that_counted_to_the_next_begin(tmp_path):
    sweep = Sweep(tmp_path, groups=3)
    sweep.searcher.suggest("a")
    sweep.searcher.suggest("b")
    sweep.searcher.suggest("c")
    sweep.report("c", 1, begun_at=105.5, reported_at=106.0)  # Tune may see reports in another order
    sweep.report("b", 1, begun_at=104.25, reported_at=105.0)
    for epoch in range(1, 5):
        sweep.report("a", epoch, begun_at=100.0, reported_at=100.0 + epoch)
    assert sweep.study.read().timing.overhead_seconds == pytest.approx((0.25 + 0.5) / 2)


def test_tune_pickles_the_searcher_without_the_study(sweep):
    import pickle

    assert b"sqlite" not in pickle.dumps(sweep.trials)
