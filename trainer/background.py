"""Checkpoints are written while the training goes on: shared storage may take longer for one than an epoch takes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

from trainer.checkpoint import Checkpoint, CheckpointStore


class BackgroundSaver:
    """Saves one trial's checkpoints in a thread, one after the other. A context: after it nothing is being written any more."""

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

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write it; the weights may change afterwards. Waits for the one before it, and raises what that raised."""
        self.wait()
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in checkpoint.weights.items()}
        self._last = self._thread.submit(self._store.save, self._trial, replace(checkpoint, weights=weights))

    def wait(self) -> None:
        """Wait until what was given to `save` is written. Raises OSError when the storage could not be written."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()
