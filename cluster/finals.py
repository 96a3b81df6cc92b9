"""Final trainings: configurations trained on training and validation images together, side by side on worker groups, without Tune."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from cluster.config import SweepConfig
from cluster.connection import Cluster
from cluster.experiments import Experiments
from cluster.finals_progress import FinalsProgress
from cluster.plan import Plan
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.failures import NO_GROUP, STORAGE
from trainer.hyperparameters import TrialConfig
from trainer.mailbox import Assignment, Report


@dataclass(frozen=True)
class Final:
    """A final training: `key` is its number in the store that its weights go to, `title` what it is called on the screen."""

    key: int
    title: str
    config: TrialConfig

    @property
    def epochs(self) -> int:
        """How many it is trained for."""
        return self.config.training.epochs


@dataclass(frozen=True)
class Trained:
    """What became of final trainings, by key: those that are `done` have their weights in the `store`, others have failed, why.

    What is neither was stopped before its end, and goes on from there the next time.
    """

    store: CheckpointStore
    done: frozenset[int]
    failures: Mapping[int, str]

    def checkpoint(self, key: int) -> Checkpoint:
        """The weights after the last epoch. Raises as `CheckpointStore.load`."""
        return self.store.load(key)


def train_finals(
    finals: Sequence[Final],
    config: SweepConfig,
    store: CheckpointStore,
    experiments: Experiments,
    connected: Callable[[], AbstractContextManager[Cluster]],
    should_stop: Callable[[], bool],
) -> Trained:
    """Train what is not in the `store` yet, until `should_stop()` says so, with the data, the worker groups and the limits of `config`.

    A training that was stopped goes on after its last epoch, one that has failed begins anew. `connected` gives the cluster; it is not
    asked when there is nothing to train. For whoever runs the sweep, as its lease says. Raises ValueError when a group fits nowhere, and
    RuntimeError when no group or no storage is left, which no training is to blame for: what is finished is kept.
    """
    missing = [final for final in finals if store.configuration(final.key) != final.config]
    failures: dict[int, str] = {}
    if missing and not should_stop():
        with connected() as cluster:
            plan = cluster.plan(config.shape, len(missing))
            with FinalsProgress(config.name, plan, missing, len(finals)) as progress:
                try:
                    failures = _train(missing, config, store, experiments, cluster, plan, progress, should_stop)
                finally:
                    experiments.remove_ray_files(config.name)
    done = frozenset(final.key for final in finals if store.configuration(final.key) == final.config)
    unfinished = {final.key for final in finals} - done - failures.keys()
    store.remove(store.surplus(keep=set(store.trials()), unfinished=unfinished))
    return Trained(store, done, failures)


def _train(
    finals: Sequence[Final],
    config: SweepConfig,
    store: CheckpointStore,
    experiments: Experiments,
    cluster: Cluster,
    plan: Plan,
    progress: FinalsProgress,
    should_stop: Callable[[], bool],
) -> dict[int, str]:
    """Train them all; gives the causes of those that failed, by key."""
    import ray

    from cluster.worker_group import WorkerGroups

    with WorkerGroups(plan, experiments.groups_uri(config.name), cluster, progress.say) as groups:
        assignments = [
            Assignment(
                trial=final.key,
                config=final.config,
                data=config.data,
                checkpoints=store.uri,
                begun=True,  # there may be the state of a run before
                max_retries=config.max_retries,
                epoch_timeout=config.epoch_timeout,
                final=True,
            )
            for final in finals
        ]
        for assignment in assignments:
            ray.get(groups.mailbox.post.remote(assignment))  # one after the other: the actor takes calls as they come
        groups.mailbox.no_more.remote(len(assignments))
        groups.wait_until_up(should_stop)
        return _follow(finals, groups.mailbox, progress, should_stop)


def _follow(
    finals: Sequence[Final], mailbox: Any, progress: FinalsProgress, should_stop: Callable[[], bool]
) -> dict[int, str]:
    """Read all reports of all trainings; gives the causes of those that failed, by key."""
    import ray

    failures: dict[int, str] = {}
    next_reports = {mailbox.read.remote(final.key, 0): (final, 0) for final in finals}
    while next_reports and not should_stop():
        there, _ = ray.wait(list(next_reports), timeout=0.2)
        for reference in there:
            final, position = next_reports.pop(reference)
            report: Report = ray.get(reference)
            if report.kind in (STORAGE, NO_GROUP):
                cause = (report.error or "").partition("\n")[0].rstrip(".")
                raise RuntimeError(f"{cause}. What is finished is kept; when that is mended, run the command again.")
            progress.reported(final, report)
            if report.error is not None:
                failures[final.key] = report.error
            elif not report.done:
                next_reports[mailbox.read.remote(final.key, position + 1)] = (final, position + 1)
    return failures
