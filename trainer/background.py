"""Checkpoints are written while the training goes on: shared storage may take longer for one than an epoch takes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.training_state import TrainingState


class BackgroundSaver:
    """Saves one trial's checkpoints and state in a thread, one after the other. A context: after it nothing is being written."""

    def __init__(self, store: CheckpointStore, trial: int) -> None:
        self._store, self._trial = store, trial
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def __enter__(self) -> BackgroundSaver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)

    def save(self, state: TrainingState, best: Checkpoint | None) -> None:
        """Begin to write the training's state, and the best epoch's weights if they are new; both may change afterwards.

        Waits for what was given before, and raises what that raised.
        """
        self.wait()
        if best is not None:
            weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in best.weights.items()}
            best = replace(best, weights=weights)
        self._last = self._thread.submit(self._write, state.copied(), best)

    def _write(self, state: TrainingState, best: Checkpoint | None) -> None:
        if best is not None:  # first: a training that goes on from the state finds the best epoch so far
            self._store.save(self._trial, best)
        self._store.save_state(self._trial, state.to_bytes())

    def wait(self) -> None:
        """Wait until what was given to `save` is written. Raises OSError when the storage could not be written."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()
