"""Ray Tune with actors that stay, as many as trials ever ran at once, from the first trial to the last.

By itself, `reuse_actors` keeps one actor when no trial is waiting for it, and of a trial that waits for its own it ends that, half
started, when another comes free. Where trials are shorter than the start of a process, a second, every trial starts one. And of
an actor that dies while it waits, Tune hears when the next trial is to have it.

What is used here has no public name in Ray 2.60: should another release have changed it, this file is the place to look.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ray.tune.utils.object_cache import _ObjectCache

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


class _KeptActors(_ObjectCache):
    """Keeps all actors until the end. All trials of a sweep ask for the same resources."""

    def cache_object(self, key: Any, obj: Any) -> bool:
        self._cached_objects[key].append(obj)
        self._num_cached_objects += 1
        return True

    def flush_cached_objects(self, force_all: bool = False) -> Iterator[Any]:  # type: ignore[override]
        return super().flush_cached_objects(force_all=True) if force_all else iter(())


def keep_actors(controller: TuneController) -> None:
    """Keep the actors from one trial to the next. Called with the first trial, before it has one."""
    # A scheduler gets a wrapper around the controller.
    whole: Any = getattr(controller, "_tune_controller", controller)
    whole._actor_cache = _KeptActors()
    reuse = whole._maybe_reuse_cached_actor

    def reuse_unless_its_own_is_on_its_way(trial: Trial) -> bool:
        own = trial in whole._trial_to_actor and trial not in whole._resetting_trials
        return False if own else bool(reuse(trial))

    whole._maybe_reuse_cached_actor = reuse_unless_its_own_is_on_its_way
    failed = whole._trial_task_failure

    def fail_once(trial: Trial, exception: Exception) -> None:
        """A kept actor that has died fails the trial that was to have it: by itself Tune counts that twice, and gives the trial up."""
        if trial in whole._resetting_trials:
            whole._resetting_trials.remove(trial)
            whole._set_trial_status(trial, trial.RUNNING)
        elif trial.status == trial.PENDING:
            return
        failed(trial, exception=exception)

    whole._trial_task_failure = fail_once
