"""Run a sweep: start, resume and extend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import optuna
import sqlalchemy

from cluster.budget import Amounts, Ending, Spent
from cluster.config import SweepConfig
from cluster.connection import Cluster, connect
from cluster.expected_gain import GainWatch
from cluster.experiments import Experiments
from cluster.extension import More
from cluster.interrupts import Stop, interruptible
from cluster.lease import Lease
from cluster.plan import Plan
from cluster.progress import Progress, say_skipped
from cluster.record import SweepRecord
from cluster.studies import Studies
from cluster.study import SweepStudy
from cluster.watchers import CheckpointKeeper, Hopeless, Watcher
from cluster.winner import lacks_winner, train_winner
from trainer.data import OnProgress, load_data
from trainer.folds import check_folds


@dataclass(frozen=True)
class Outcome:
    """How a run ended: FINISHED, INTERRUPTED or FAILED, and if there is more to say about it, why."""

    sweep: SweepRecord
    state: str
    reason: str | None = None


def start(
    config: SweepConfig, experiments: Experiments, address: str | None, on_progress: OnProgress | None
) -> Outcome:
    """A new sweep. Everything is checked before anything is written; raises ValueError for what cannot be run."""
    if config.name in Studies(experiments).names():
        Studies(experiments, create=True).create(config, ())  # raises: the name is taken
    experiments.check()
    _check_tensorboard(config)
    data = load_data(config.data, on_progress)
    say_skipped(data.skipped)
    check_folds(data, config.folds)
    with connect(address) as cluster:
        plan = cluster.plan(config.shape, config.trials or 1_000_000)
        config.budget.check_for(plan.gpus_per_group)
        study, stop = Studies(experiments, create=True).create(config, data.classes, data.image_shape), Stop()
        with (
            study.lease(takeover=False, on_lost=stop.because) as lease,
            interruptible(stop.event),
            _database_may_go(config.name),
        ):
            return _run(study, lease, stop, config, cluster, plan, experiments)


def resume(
    name: str,
    experiments: Experiments,
    address: str | None,
    on_progress: OnProgress | None,
    takeover: bool = False,
) -> Outcome:
    """Go on with a sweep that was interrupted. A finished one is left as it is.

    Raises LeaseHeldError when another process runs it.
    """
    return _go_on(name, lambda study: study.config, experiments, address, on_progress, takeover)


def extend(
    name: str,
    more: More,
    experiments: Experiments,
    address: str | None,
    on_progress: OnProgress | None,
    takeover: bool = False,
) -> Outcome:
    """Give a sweep more trials, time or money, and run them. Raises ValueError for what makes no sense, LeaseHeldError as `resume`."""
    return _go_on(name, more.of, experiments, address, on_progress, takeover)


def _go_on(
    name: str,
    how: Callable[[SweepStudy], SweepConfig],
    experiments: Experiments,
    address: str | None,
    on_progress: OnProgress | None,
    takeover: bool,
) -> Outcome:
    study, stop = Studies(experiments).open(name), Stop()
    with study.lease(takeover, on_lost=stop.because) as lease:
        if lease.before is not None:
            study.close_lost_run(ended=lease.before.beat)
        config, experiments = how(study), experiments.of(study.read().storage_path)
        if _is_done(study, config) and lacks_winner(study.read(), experiments):
            load_data(config.data, on_progress)
            with connect(address) as cluster, interruptible(stop.event), _database_may_go(config.name):
                return _run_winner(study, lease, stop, config, cluster, experiments)
        if _is_done(study, config):
            if study.state != "FINISHED":  # whoever ran it was killed after its last trial
                study.note_ending(_ending(study, config, Spent(config.budget, study.spent())))
                _end_run(study, "FINISHED", _keeper(study, config, experiments), experiments)
            why = f" {study.ending.reason}" if study.ending else ""
            return Outcome(study.read(), "FINISHED", f"There is nothing left to do.{why}")
        _check_tensorboard(config)
        load_data(config.data, on_progress)
        with connect(address) as cluster:
            plan = cluster.plan(config.shape, (config.trials or 1_000_000) - study.finished_count())
            config.budget.check_for(plan.gpus_per_group)
            if config != study.config:  # not before: what is refused leaves the record as it is
                study.note_ending(None)
                study.save_config(config)
            if config.sampler == "grid":
                study.enqueue_grid(config)
            with interruptible(stop.event), _database_may_go(config.name):
                return _run(study, lease, stop, config, cluster, plan, experiments)


def _is_done(study: SweepStudy, config: SweepConfig) -> bool:
    """Whether the sweep has all that it was to have, or nothing new is to start and nothing that has begun is left."""
    has_all = config.trials is not None and study.finished_count() >= config.trials
    if has_all or config != study.config:
        return has_all
    is_over = study.ending is not None or Spent(config.budget, study.spent()).is_over()
    begun = (t for t in study.read().trials if t.state == "RUNNING" or (t.state == "WAITING" and t.epochs_done))
    return study.state == "FINISHED" or (is_over and next(begun, None) is None)


def _check_tensorboard(config: SweepConfig) -> None:
    """Raise ValueError when event files are wanted and what writes them is not there."""
    if config.tensorboard:
        try:
            import cluster.tensorboard  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"tensorboard needs a package that is not there ({error}): `pip install tensorboard`, or leave it out."
            ) from error


def _run(
    study: SweepStudy,
    lease: Lease,
    stop: Stop,
    config: SweepConfig,
    cluster: Cluster,
    plan: Plan,
    experiments: Experiments,
) -> Outcome:
    """Run trials until there are enough, the budget is spent or somebody stops it; the study tells the truth afterwards."""
    from ray import tune

    from cluster.lean_train import this_node
    from cluster.search import StudyScheduler, StudySearcher, SweepStopper, Trials
    from cluster.worker_group import TrialReader, WorkerGroups

    keeper, hopeless = _keeper(study, config, experiments), Hopeless()

    def record(amounts: Amounts) -> None:
        if lease.is_mine:
            study.note_spent(amounts)

    state = "INTERRUPTED"
    study.begin_run(config, plan.groups)
    spent = Spent(config.budget, study.spent(), plan.gpus_per_group, record)
    gain = None if config.min_gain is None else GainWatch(study, config.min_gain)
    progress = Progress(config, plan, study, spent=spent, gain=gain)
    watchers: list[Watcher] = [keeper, hopeless, *([gain] if gain else []), progress]
    if config.tensorboard:
        from cluster.tensorboard import EventFiles

        folder = experiments.tensorboard_folder(config.name)
        watchers.append(EventFiles(folder, config.name, study.read().trials, progress.say))
    groups = WorkerGroups(plan, experiments.groups_uri(config.name), cluster, progress.say, spent.hold)
    mailbox = groups.mailbox
    trials = Trials(
        study,
        config,
        groups.count,
        mailbox,
        experiments.checkpoints_uri(config.name),
        should_stop=lambda: stop.event.is_set() or hopeless.reason is not None,
        watchers=watchers,
        is_ours=lambda: lease.is_mine,
        is_over=lambda: spent.is_over() or (gain is not None and gain.ending is not None),
    )

    # One byte: a CPU of the actor that Tune sees would be missing to the ranks. Here: no node that goes takes it along.
    reader = tune.PlacementGroupFactory([{"memory": 1.0}], bundle_label_selector=[this_node()])
    try:
        with progress:
            tuner = tune.Tuner(
                # Not in the configurations: Tune copies those several times, and a handle takes 50 kB.
                tune.with_resources(tune.with_parameters(TrialReader, mailbox=mailbox), reader),
                tune_config=tune.TuneConfig(
                    search_alg=StudySearcher(trials),
                    scheduler=StudyScheduler(trials),
                    num_samples=-1,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=config.name,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a reader has nothing to save
                    storage_path=str(experiments.tune_folder(config.name)),
                    verbose=0,
                    stop=SweepStopper(trials),
                    failure_config=tune.FailureConfig(max_failures=config.max_retries),
                ),
            )
            with groups:
                trials.prepare()
                groups.wait_until_up(trials.should_stop)
                if not trials.should_stop():
                    tuner.fit()
        reason = hopeless.reason or trials.broken
        state = "FAILED" if reason else "INTERRUPTED" if trials.left() else "FINISHED"
        if state == "FINISHED" and config.folds > 1:
            state, reason = _crown(study, config, cluster, experiments, stop)
    except Exception:
        state = "FAILED"
        raise
    finally:
        spent.hold(0, 0)
        if lease.is_mine:  # else the trials are those of whoever has it
            record(spent.amounts())
            if state == "FINISHED":
                study.note_ending(_ending(study, config, spent))
            _end_run(study, state, keeper, experiments)
    ended = study.ending.reason if state == "FINISHED" and study.ending else None
    return Outcome(study.read(), state, reason or stop.reason or ended)


def _ending(study: SweepStudy, config: SweepConfig, spent: Spent) -> Ending | None:
    """Why the sweep is over, if it is not because it has all its trials; that it gained too little was recorded at once."""
    ended = study.finished_count()
    if config.trials is not None and ended >= config.trials:
        return None
    return study.ending or spent.ending(ended)


def _end_run(study: SweepStudy, state: str, keeper: CheckpointKeeper, experiments: Experiments) -> None:
    study.end_run(state)
    keeper.tidy(study)
    experiments.remove_ray_files(study.name)


def _run_winner(
    study: SweepStudy, lease: Lease, stop: Stop, config: SweepConfig, cluster: Cluster, experiments: Experiments
) -> Outcome:
    """A run of a sweep that has all its trials, but not yet the best configuration trained on everything."""
    state = "FAILED"
    study.begin_run(config, study.read().timing.groups)
    try:
        state, reason = _crown(study, config, cluster, experiments, stop)
    finally:
        if lease.is_mine:
            _end_run(study, state, _keeper(study, config, experiments), experiments)
    return Outcome(study.read(), state, reason or stop.reason)


def _crown(
    study: SweepStudy, config: SweepConfig, cluster: Cluster, experiments: Experiments, stop: Stop
) -> tuple[str, str | None]:
    """What the sweep still needs once its trials are over; its state then, and why if that is FAILED."""
    failure = train_winner(study.read(), config, cluster, experiments, stop.event.is_set)
    if failure:
        return "FAILED", failure
    return ("INTERRUPTED" if lacks_winner(study.read(), experiments) else "FINISHED"), None


@contextlib.contextmanager
def _database_may_go(sweep: str) -> Iterator[None]:
    """Raises OSError, with what to do then, when the study database cannot be used any more."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise OSError(
            f"The study database cannot be used any more: {cause}. What it has is safe; when it is back, go on with "
            f"`convsweep resume {sweep}`."
        ) from error


def _keeper(study: SweepStudy, config: SweepConfig, experiments: Experiments) -> CheckpointKeeper:
    return CheckpointKeeper(experiments.checkpoints(config.name), config.keep_checkpoints, study)
