"""Ray Train without the actors that a sweep has no use for: each is a process that imports for seconds.

By itself a trainer starts seven of them beside the ranks: its controller; one that frees its place on the cluster should
the controller die; one for data sets; one that asks the cloud about preemption; one that bargains with Ray Data for
resources; one by which the ranks meet; one that keeps the state for Ray's dashboard. Here all groups share one process for
their controllers, which ends with the driver, and with the driver Ray frees the places.

What is used here has no public name in Ray 2.60: should another release have changed it, this file is the place to look.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from typing import Any

import ray


class _Controllers:
    """An actor in which the controllers of all groups run, each in a thread. `settings` are Ray Train's environment variables.

    They are set here: a runtime environment would need a process of its own, which starts after the actor is asked for.
    """

    def __init__(self, settings: dict[str, str]) -> None:
        os.environ.update(settings)
        state: Any = importlib.import_module("ray.train.v2._internal.execution.worker_group.state")
        worker_group: Any = importlib.import_module("ray.train.v2._internal.execution.worker_group.worker_group")
        worker_group.SynchronizationActor = _NoMeetingPlace()
        state._shutdown_sync_actor = lambda place: None

    def run(self, settings: dict[str, Any]) -> Any:
        """Run a Ray Train controller to its end; returns its result."""
        from ray.train.v2._internal.execution.controller import TrainController

        policy = _fixed_size(settings.pop("scaling_config"))
        controller: Any = TrainController(**settings, scaling_policy=policy)
        asyncio.run(controller.run())
        return controller.get_result()


class _NoMeetingPlace:
    """In place of the class of actors, one per group, where ranks meet that report to Ray Train: here they report to the mailbox."""

    def options(self, **_: object) -> _NoMeetingPlace:
        return self

    def remote(self, **_: object) -> _NoMeetingPlace:
        return self


def this_node() -> dict[str, str]:
    """The label selector of the node that this process is on: what the whole sweep hangs on is not to be lost with another."""
    return {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}  # type: ignore[attr-defined]


def draining_nodes() -> frozenset[str]:
    """The ids of the nodes that will be taken away soon: of spot machines with notice, or by the autoscaler."""
    return frozenset(ray._private.state.state.get_draining_nodes())


def start_controllers(groups: int) -> Any:
    """The actor for the controllers of that many groups, on this node."""
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    env = get_env_vars_to_propagate() | {
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
        # A group that has no room yet waits: what it asks for tells the autoscaler what is missing.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1e7",
        # Each controller would configure the process's logging; beside one that writes to its log, both wait for ever.
        "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    }
    actor: Any = ray.remote(_Controllers)
    options = {"num_cpus": 0, "max_concurrency": groups, "label_selector": this_node()}
    return actor.options(**options).remote(env)


def lean_trainer(controllers: Any, with_process_groups: bool) -> Any:
    """The class of Ray Train's trainers that have their controller among the `controllers`.

    Ranks that train together need a process group of torch; what starts a rank that trains alone needs no torch.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    trainer_class: Any = DataParallelTrainer
    if with_process_groups:
        from ray.train.torch import TorchTrainer

        trainer_class = TorchTrainer

    class Trainer(trainer_class):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            unused = DatasetsCallback | PlacementGroupCleanerCallback
            return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]

        def _initialize_and_run_controller(self, scaling_policy: Any, **settings: Any) -> Any:
            return ray.get(controllers.run.remote(settings | {"scaling_config": scaling_policy.scaling_config}))

    return Trainer


def _fixed_size(scaling_config: Any) -> Any:
    """A group keeps its size. Its placement group alone asks the cluster's autoscaler for room."""
    from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

    class FixedSize(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return FixedSize(scaling_config)
