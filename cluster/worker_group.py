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

from cluster.lean_train import draining_nodes, lean_trainer, start_controllers, this_node
from cluster.plan import Plan
from trainer.failures import says_that_a_rank_is_lost
from trainer.mailbox import Mailbox, Report, work

MAX_RESTARTS = 100
"""How often a group's processes are started again after a death before the group is given up."""
SECONDS_BETWEEN_NOTICES = 2.0
"""How often Ray is asked which nodes will be taken away."""
MAX_FAILED_STARTS = 10
"""How often they may fail to start, before that."""


class WorkerGroups:
    """The worker groups of a plan and their `mailbox` actor. A context: they start with it and are gone after it.

    `storage` is a path or URI for the little that Ray Train writes about a group.
    """

    def __init__(self, plan: Plan, storage: str) -> None:
        names = [f"group-{uuid.uuid4().hex[:8]}" for _ in range(plan.groups)]
        actor: Any = ray.remote(Mailbox)
        # It takes no CPU from the ranks; as many calls may wait in it as there are ranks and readers.
        self._up = False
        options = {"num_cpus": 0, "max_concurrency": 10_000, "label_selector": this_node()}
        self.mailbox: Any = actor.options(**options).remote(names, ray.kill)
        self._controllers = start_controllers(plan.groups)
        trainer = lean_trainer(self._controllers, with_process_groups=plan.workers > 1)
        self._threads = {
            name: threading.Thread(
                target=_run_group, args=(self.mailbox, name, plan, storage, trainer), daemon=True, name=name
            )
            for name in names
        }
        self._over = threading.Event()
        self._notices = threading.Thread(target=self._pass_notices_on, daemon=True, name="notices")

    def __enter__(self) -> WorkerGroups:
        for thread in [*self._threads.values(), self._notices]:
            thread.start()
        return self

    def _pass_notices_on(self) -> None:
        known: frozenset[str] = frozenset()
        while not self._over.wait(SECONDS_BETWEEN_NOTICES):
            with contextlib.suppress(ray.exceptions.RayError, OSError):  # a head that is busy, or gone
                if (now := draining_nodes()) != known:
                    ray.get(self.mailbox.leave.remote(now))
                    known = now

    def wait_until_up(self, should_stop: Callable[[], bool]) -> None:
        """Wait until all groups are up, or cannot be, or `should_stop()` says so: those that are not up then are given up."""
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
        self._over.set()
        if not self._up:
            ray.kill(self._controllers)
        there = ray.get([self.mailbox.close.remote(name) for name in self._threads])
        for thread, has_ranks in zip(self._threads.values(), there, strict=True):
            if has_ranks:  # others wait for room on the cluster, or start again
                thread.join(timeout=60)
        self._notices.join(timeout=5)
        ray.kill(self.mailbox)
        ray.kill(self._controllers)


class TrialReader(tune.Trainable):
    """What Tune takes for a trial: reads its reports, one epoch a step. Reused for the next trial.

    The configuration is `{"trial": number, "mailbox": actor}`.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Begin with the first report."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with the reports of another trial."""
        self._mailbox = new_config["mailbox"]
        self._trial: int = new_config["trial"]
        self._position = 0
        return True

    def step(self) -> dict[str, Any]:
        """The trial's next report, under "report"."""
        report: Report = ray.get(self._mailbox.read.remote(self._trial, self._position))
        self._position += 1
        return {"report": report, "done": report.done, "value": report.metrics.val_accuracy if report.metrics else None}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the ranks write their own checkpoints."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing: the ranks write their own checkpoints."""


class _TellDeaths(ray.train.UserCallback):
    """Tells the mailbox when processes of the group have died, before they are started again."""

    def __init__(self, mailbox: Any, group: str) -> None:
        self._mailbox, self._group = mailbox, group

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Tell why: not by a rank that only lost another one."""
        told = [str(error).strip() or type(error).__name__ for _, error in sorted(worker_exceptions.items())]
        cause = min(told, key=says_that_a_rank_is_lost)
        ray.get(self._mailbox.died.remote(self._group, cause.splitlines()[0]))


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
