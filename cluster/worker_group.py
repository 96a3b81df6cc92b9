"""Warm Ray Train worker groups, and the Tune trainable that reads what they report.

The documented way, a `TorchTrainer` inside every Tune trial, starts eight actors per trial: 10 to 20 s on two cores. Here a
group starts once per sweep and takes trial after trial from the mailbox, whichever is next; for Tune, a trial is an actor
that reads the trial's reports there, whichever group trains it.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any

import ray
import ray.train
from ray import tune

from cluster.connection import Cluster
from cluster.lean_train import lean_trainer, start_controllers, this_node
from cluster.plan import Plan
from cluster.watch import ClusterWatch
from trainer.failures import says_that_a_rank_is_lost
from trainer.mailbox import Mailbox, Report, work

MAX_RESTARTS = 100
"""How often a group's processes are started again after a death before the group is given up."""
MAX_FAILED_STARTS = 10
"""How often they may fail to start, before that."""


class WorkerGroups:
    """The worker groups of a plan and their `mailbox` actor. A context: they start with it and are gone after it.

    On a `cluster` that can change, groups wait for the room that they have not yet, and nodes that join get groups, as many as the plan
    has at most; what they wait for is told to `say`. `storage` is a path or URI for the little that Ray Train writes about a group. How
    many groups are up, and on how many nodes their ranks are, is told to `hold` again and again.
    """

    def __init__(
        self,
        plan: Plan,
        storage: str,
        cluster: Cluster,
        say: Callable[[str], None],
        hold: Callable[[int, int], None] = lambda groups, nodes: None,
    ) -> None:
        self._plan, self._storage = plan, storage
        self._names = _names(plan.groups)
        self._up = False
        actor: Any = ray.remote(Mailbox)
        # It takes no CPU from the ranks; as many calls may wait in it as there are ranks and readers.
        options = {"num_cpus": 0, "max_concurrency": 1_000_000, "label_selector": this_node()}
        self.mailbox: Any = actor.options(**options).remote(self._names, ray.kill)
        self._controllers: list[Any] = []
        self._threads: dict[str, threading.Thread] = {}
        self._watch = ClusterWatch(plan, cluster, self.mailbox, self._add, say, hold)

    def __enter__(self) -> WorkerGroups:
        self._start(self._names, self._trainer(len(self._names)))
        self._watch.open()
        return self

    def _add(self, count: int) -> None:
        names, trainer = _names(count), self._trainer(count)
        ray.get(self.mailbox.add.remote(names))  # a group that is known there is one that is started
        self._start(names, trainer)

    def _trainer(self, groups: int) -> Any:
        """The class of trainers for so many groups, which have a process for their controllers together."""
        self._controllers.append(start_controllers(groups))
        return lean_trainer(self._controllers[-1], with_process_groups=self._plan.workers > 1)

    def _start(self, names: list[str], trainer: Any) -> None:
        for name in names:
            words = (self.mailbox, name, self._plan, self._storage, trainer)
            self._threads[name] = threading.Thread(target=_run_group, args=words, daemon=True, name=name)
            self._threads[name].start()

    def count(self) -> int:
        """How many groups there are to take trials, or soon are; one at least, since trials that nobody takes wait."""
        return max(1, self._watch.groups)

    def wait_until_up(self, should_stop: Callable[[], bool]) -> None:
        """Wait until a group is up, or none can be, or `should_stop()` says so: those that are not up then are given up."""
        up = self.mailbox.up.remote()
        while not should_stop():
            done, _ = ray.wait([up], timeout=0.2)
            if done:
                self._up = True
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the groups and the trials that they are at; waits until processes and placement groups are gone."""
        self._watch.close()
        if not self._up:
            self._kill_controllers()
        there = ray.get([self.mailbox.close.remote(name) for name in self._threads])
        for thread, has_ranks in zip(self._threads.values(), there, strict=True):
            if has_ranks:  # others wait for room on the cluster, or start again
                thread.join(timeout=60)
        ray.kill(self.mailbox)
        self._kill_controllers()

    def _kill_controllers(self) -> None:
        for controllers in self._controllers:
            ray.kill(controllers)


class TrialReader(tune.Trainable):
    """What Tune takes for a trial: reads its reports, one epoch a step. Reused for the next trial.

    The configuration is `{"trial": number}`.
    """

    def setup(self, config: dict[str, Any], mailbox: Any) -> None:  # type: ignore[override]
        """Begin with the first report in the mailbox."""
        self._mailbox = mailbox
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with the reports of another trial."""
        self._trial: int = new_config["trial"]
        self._position = 0
        return True

    def step(self) -> dict[str, Any]:
        """The trial's next report, under "report"."""
        report: Report = ray.get(self._mailbox.read.remote(self._trial, self._position))
        self._position += 1
        return {"report": report, "done": report.done}


class _TellDeaths(ray.train.UserCallback):
    """Tells the mailbox when processes of the group have died, before they are started again."""

    def __init__(self, mailbox: Any, group: str) -> None:
        self._mailbox, self._group = mailbox, group

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Tell why: not by a rank that only lost another one."""
        told = [str(error).strip() or type(error).__name__ for _, error in sorted(worker_exceptions.items())]
        cause = min(told, key=says_that_a_rank_is_lost)
        ray.get(self._mailbox.died.remote(self._group, cause.splitlines()[0]))


def _names(count: int) -> list[str]:
    return [f"group-{uuid.uuid4().hex[:8]}" for _ in range(count)]


def _run_group(mailbox: Any, group: str, plan: Plan, storage: str, trainer: Any) -> None:
    """Run a worker group until the mailbox closes it; whatever ends it otherwise is told to the mailbox."""
    resources = {"CPU": plan.cpus_per_worker} | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {})
    try:
        trainer(
            work,
            train_loop_config={"mailbox": mailbox, "group": group, "threads": plan.threads},
            scaling_config=ray.train.ScalingConfig(
                num_workers=plan.workers, use_gpu=plan.gpus_per_worker > 0, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=group,
                storage_path=storage,
                failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                    max_failures=MAX_RESTARTS, controller_failure_limit=MAX_FAILED_STARTS
                ),
                callbacks=[_TellDeaths(mailbox, group)],  # type: ignore[list-item]
            ),
        ).fit()
    except Exception as error:
        with contextlib.suppress(ray.exceptions.RayError):  # the sweep is over, and the mailbox gone
            ray.get(mailbox.fail.remote(group, f"The worker group was lost: {error}"))
