"""Run a sweep: start, resume and extend."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from cluster.config import SweepConfig
from cluster.connection import connect
from cluster.experiments import Experiments
from cluster.plan import Plan, make_plan
from cluster.progress import Progress, say_skipped
from cluster.record import SweepRecord
from cluster.studies import Studies
from cluster.study import RunningTrial, SweepStudy
from trainer.checkpoint import CheckpointStore
from trainer.data import OnProgress, load_data

_ALMOST_NOTHING = {"memory": 1.0}  # one byte: a CPU of the actor that Tune sees would be missing to the ranks
HOPELESS_AFTER = 10
"""So many trials that all fail are taken for a mistake in the sweep rather than in the trials."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: FINISHED, INTERRUPTED or FAILED, and for a failed one why."""

    sweep: SweepRecord
    state: str
    reason: str | None = None


def start(
    config: SweepConfig, experiments: Experiments, address: str | None, on_progress: OnProgress | None
) -> Outcome:
    """A new sweep. Everything is checked before anything is written; raises ValueError for what cannot be run."""
    if config.name in Studies(experiments).names():
        Studies(experiments, create=True).create(config, ())  # raises: the name is taken
    experiments.check_folder()
    data = load_data(config.data, on_progress)
    say_skipped(data.skipped)
    with connect(address) as nodes:
        plan = make_plan(config.shape, nodes, config.trials or 1_000_000)
        study = Studies(experiments, create=True).create(config, data.classes, data.image_shape)
        return _run(study, config, plan, experiments)


def resume(name: str, experiments: Experiments, address: str | None, on_progress: OnProgress | None) -> Outcome:
    """Go on with a sweep that was interrupted. A finished one is left as it is."""
    study = Studies(experiments).open(name)
    config = study.config
    if study.state == "FINISHED" or (config.trials is not None and study.finished_count() >= config.trials):
        return Outcome(study.read(), "FINISHED", "There is nothing left to do.")
    return _go_on(study, config, experiments, address, on_progress)


def extend(
    name: str, trials: int, experiments: Experiments, address: str | None, on_progress: OnProgress | None
) -> Outcome:
    """Give a sweep `trials` more trials and run them. Raises ValueError when that is not at least one."""
    if trials < 1:
        raise ValueError(f"trials must be at least 1, but got {trials}.")
    study = Studies(experiments).open(name)
    config = replace(study.config, trials=(study.config.trials or study.finished_count()) + trials)
    if config.sampler == "grid":
        config = replace(config, trials=min(config.trials or 0, config.grid_trials()))
        if config.trials == study.config.trials:
            raise ValueError(f"All {config.trials} trials of the grid of sweep {name!r} are there already.")
    return _go_on(study, config, experiments, address, on_progress)


def _go_on(
    study: SweepStudy,
    config: SweepConfig,
    experiments: Experiments,
    address: str | None,
    on_progress: OnProgress | None,
) -> Outcome:
    load_data(config.data, on_progress)
    with connect(address) as nodes:
        plan = make_plan(config.shape, nodes, (config.trials or 1_000_000) - study.finished_count())
        study.save_config(config)  # not before: what is refused leaves the record as it is
        if config.sampler == "grid":
            study.enqueue_grid(config)
        return _run(study, config, plan, experiments)


def _run(study: SweepStudy, config: SweepConfig, plan: Plan, experiments: Experiments) -> Outcome:
    """Run trials until there are enough, the time is up or somebody stops it; the study tells the truth afterwards."""
    interrupted = threading.Event()
    with _interruptible(interrupted):
        return _run_until(interrupted, study, config, plan, experiments)


def _run_until(
    interrupted: threading.Event, study: SweepStudy, config: SweepConfig, plan: Plan, experiments: Experiments
) -> Outcome:
    from ray import tune

    from cluster.search import StudyScheduler, StudySearcher, SweepStopper, Trials, Watcher
    from cluster.worker_group import TrialReader, WorkerGroups

    keeper = _CheckpointKeeper(experiments.checkpoints(config.name), config.keep_checkpoints, study)
    hopeless = _Hopeless()
    progress = Progress(config, plan, study)
    watchers: list[Watcher] = [keeper, hopeless, progress]

    state = "INTERRUPTED"
    study.begin_run(config, plan.groups)
    groups = WorkerGroups(plan, experiments.groups_uri(config.name))
    mailbox = groups.mailbox
    trials = Trials(
        study,
        config,
        plan.groups,
        mailbox,
        experiments.checkpoints_uri(config.name),
        should_stop=lambda: interrupted.is_set() or hopeless.reason is not None,
        watchers=watchers,
    )

    def to_tune(trial: RunningTrial) -> dict[str, Any]:
        return {"trial": trial.number, "mailbox": mailbox}

    with tempfile.TemporaryDirectory(prefix="convsweep-") as tune_folder, progress:
        try:
            tuner = tune.Tuner(
                tune.with_resources(TrialReader, _ALMOST_NOTHING),
                tune_config=tune.TuneConfig(
                    search_alg=StudySearcher(trials, to_tune),
                    scheduler=StudyScheduler(trials),
                    num_samples=-1,
                    max_concurrent_trials=plan.groups,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=config.name, storage_path=tune_folder, verbose=0, stop=SweepStopper(trials)
                ),
            )
            with groups:
                trials.prepare()
                groups.wait_until_up(trials.should_stop)
                if not trials.should_stop():
                    tuner.fit()
            state = "FAILED" if hopeless.reason else "INTERRUPTED" if trials.left() else "FINISHED"
        except Exception:
            state = "FAILED"
            raise
        finally:
            study.end_run(state)
            keeper.tidy(study)
            experiments.remove_group_files(config.name)
    return Outcome(study.read(), state, hopeless.reason)


@contextlib.contextmanager
def _interruptible(event: threading.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) sets the event; a second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        event.set()
        # Not by sys.stderr: the signal may have come in the middle of a write to it.
        os.write(2, b"\nStopping: what is finished is kept. A second Ctrl-C stops at once.\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before: Mapping[int, Any] = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _CheckpointKeeper:
    """Keeps the checkpoints of the best few trials and removes the others as trials end."""

    def __init__(self, store: CheckpointStore, keep: int, study: SweepStudy) -> None:
        self._store, self._keep = store, keep
        present = set(store.trials())
        self._values = {t.number: t.value for t in study.read().trials if t.number in present and t.value is not None}

    def started(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def reported(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def ended(self, trial: RunningTrial, state: str) -> None:
        """A pruned or failed trial's weights go at once, a complete one's when others are better."""
        if state in ("PRUNED", "FAIL"):
            self._store.delete(trial.number)
        elif state == "COMPLETE":
            self._values[trial.number] = max(e.val_accuracy for e in trial.epochs)
            while len(self._values) > self._keep:
                worst = min(self._values, key=lambda number: (self._values[number] or 0.0, -number))
                del self._values[worst]
                self._store.delete(worst)

    def tidy(self, study: SweepStudy) -> None:
        """Once the groups are gone: a group may have saved a trial again after it was given up."""
        waiting = {t.number for t in study.read().trials if t.state == "WAITING"}
        for number in set(self._store.trials()) - set(self._values) - waiting:
            self._store.delete(number)


class _Hopeless:
    """Notices that the first trials all failed."""

    def __init__(self) -> None:
        self._errors: list[str] | None = []
        self.reason: str | None = None

    def started(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def reported(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def ended(self, trial: RunningTrial, state: str) -> None:
        """Count failures until the first trial that does not fail."""
        if state in ("COMPLETE", "PRUNED"):
            self._errors = None
        elif state == "FAIL" and self._errors is not None:
            self._errors.append(trial.error or "unknown")
            if len(self._errors) >= HOPELESS_AFTER:
                self.reason = f"The first {HOPELESS_AFTER} trials all failed, the last one with: {self._errors[-1].splitlines()[0]}"
