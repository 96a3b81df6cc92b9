"""Warm Ray Train worker groups, and the Tune trainable that reads what they report.

The documented way, a `TorchTrainer` inside every Tune trial, starts eight actors per trial: 10 to 20 s on two cores. Here a
group starts once per sweep and takes trial after trial from the mailbox, whichever is next; for Tune, a trial is an actor
that reads the trial's reports there, whichever group trains it.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from types import TracebackType
from typing import Any

import ray
import ray.train
from ray import tune

from cluster.plan import Plan
from trainer.mailbox import Mailbox, Report, work

MAX_RESTARTS = 10
"""How often a group's processes are started again after a death before the group is given up."""


class WorkerGroups:
    """The worker groups of a plan and their `mailbox` actor. A context: they start with it and are gone after it.

    `storage` is a path or URI for the little that Ray Train writes about a group.
    """

    def __init__(self, plan: Plan, storage: str) -> None:
        names = [f"group-{uuid.uuid4().hex[:8]}" for _ in range(plan.groups)]
        actor: Any = ray.remote(Mailbox)
        # It takes no CPU from the ranks; as many calls may wait in it as there are ranks and readers.
        self.mailbox: Any = actor.options(num_cpus=0, max_concurrency=10_000).remote(names)
        self._controllers = _start_controllers(plan.groups)
        trainer = _trainer_class(plan, self._controllers)
        self._threads = {
            name: threading.Thread(
                target=_run_group, args=(self.mailbox, name, plan, storage, trainer), daemon=True, name=name
            )
            for name in names
        }

    def __enter__(self) -> WorkerGroups:
        self._made_coordinator = _coordinator() is None
        for thread in self._threads.values():
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the groups and the trials that they are at; waits until processes and placement groups are gone."""
        ray.get([self.mailbox.close.remote(name) for name in self._threads])
        for thread in self._threads.values():
            thread.join(timeout=60)
        ray.kill(self.mailbox)
        ray.kill(self._controllers)
        if self._made_coordinator and (left_behind := _coordinator()) is not None:
            ray.kill(left_behind)


def _coordinator() -> Any | None:
    """The actor that Ray Train makes once per cluster and leaves there when it ends."""
    try:
        return ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    except ValueError:
        return None


class TrialReader(tune.Trainable):
    """What Tune takes for a trial: reads its reports, one epoch a step. Reused for the next trial.

    The configuration is `{"trial": number, "mailbox": actor}`. Raises RuntimeError from `step` when no group is left.
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
                failure_config=ray.train.FailureConfig(max_failures=MAX_RESTARTS, controller_failure_limit=2),  # type: ignore[call-arg]
            ),
        ).fit()
    except Exception as error:
        ray.get(mailbox.fail.remote(group, f"The worker group was lost: {error}"))


class _Controllers:
    """An actor in which the controllers of all groups run, each in a thread."""

    def run(self, settings: dict[str, Any]) -> Any:
        """Run a Ray Train controller to its end; returns its result."""
        from ray.train.v2._internal.execution.controller import TrainController

        controller = TrainController(**settings)
        asyncio.run(controller.run())
        return controller.get_result()


def _start_controllers(groups: int) -> Any:
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}  # type: ignore[attr-defined]
    env = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"} | get_env_vars_to_propagate()
    actor: Any = ray.remote(_Controllers)
    return actor.options(
        num_cpus=0, max_concurrency=groups, label_selector=here, runtime_env={"env_vars": env}
    ).remote()


def _trainer_class(plan: Plan, controllers: Any) -> Any:
    """Ray Train's trainer, without the actors that nobody asks: each of them is a process that imports for seconds.

    By itself a trainer starts a controller, one to free the group's place should the controller die, and one for the data
    sets that it is given. Here all groups share a process for their controllers, which is gone with the driver, and with
    the driver Ray frees the places; data sets there are none.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    trainer_class: Any = DataParallelTrainer
    if plan.workers > 1:  # a rank alone needs no process group, and what starts it then needs no torch
        from ray.train.torch import TorchTrainer

        trainer_class = TorchTrainer

    class Trainer(trainer_class):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            unused = DatasetsCallback | PlacementGroupCleanerCallback
            return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            return ray.get(controllers.run.remote(settings))

    return Trainer
