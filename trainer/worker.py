"""The loop on the ranks of a Ray Train worker group, trial after trial, fed by a `Mailbox`."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
import torch

from trainer import memory
from trainer.averaging import build_average, judged
from trainer.background import BackgroundSaver
from trainer.batches import ImageTensors
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.data import DataConfig, ImageData, load_data
from trainer.early_stopping import is_over
from trainer.failures import kind_of, says_that_a_rank_is_lost
from trainer.gradients import Gradients
from trainer.loop import NotFiniteError, create_model, train
from trainer.mailbox import Assignment, Report
from trainer.metrics import EpochMetrics
from trainer.model import parameter_count
from trainer.objective import build_optimizers
from trainer.training_state import Position, TrainingState


class _News:
    """Which trials are `stopped`, and whether the group `has_to_leave`.

    The first rank follows them in a thread, so that asking costs nothing inside the training loop; the others are told by it.
    """

    def __init__(self) -> None:
        self.stopped: set[int] = set()
        self.has_to_leave = False

    def follow(self, mailbox: Any, group: str) -> None:
        """Begin to follow the mailbox's."""
        threading.Thread(target=self._follow, args=(mailbox, group), daemon=True, name="news").start()

    def _follow(self, mailbox: Any, group: str) -> None:
        known = 0
        with contextlib.suppress(ray.exceptions.RayError):  # the mailbox is gone, and with it the reason to follow
            while True:
                new, self.has_to_leave = ray.get(mailbox.news.remote(group, known, self.has_to_leave))
                known += len(new)
                self.stopped.update(new)


class _LeavingError(Exception):
    """The group ends here, to be started again on another node."""


def take_assignments(mailbox: Any, group: str, threads: int) -> None:
    """Take assignments, with that many CPU threads, until there is None. Called by every rank of a Ray Train worker group."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(threads)
    memory.keep_freed()
    me = ray.get_runtime_context().current_actor
    index = ray.get(mailbox.join.remote(group, me, _log_file(), ray.get_runtime_context().get_node_id()))
    news = _News()
    if rank == 0:
        news.follow(mailbox, group)
    loaded = _Loaded(_device(world_size))
    while (assignment := ray.get(mailbox.take.remote(group, index))) is not None:
        _Trial(mailbox, group, index, assignment, rank, world_size).run(loaded, news)
        index += 1


def _device(world_size: int) -> torch.device:
    if world_size > 1:  # Ray shows a rank the devices of all ranks on its node
        from ray.train.torch import get_device

        return get_device()
    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


def _log_file() -> str | None:
    """The file that Ray has made of this process's standard error, as host:path; None where the system does not say."""
    try:
        return f"{socket.gethostname()}:{os.readlink('/proc/self/fd/2')}"  # noqa: PTH115 -- what it points to may be no path
    except OSError:
        return None


class _Loaded:
    """The data set that this process has in memory: the last one asked for, which in a sweep is the only one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._config: DataConfig | None = None

    def get(self, config: DataConfig) -> tuple[ImageData, ImageTensors, ImageTensors]:
        if config != self._config:
            self._data = load_data(config)
            self._training = ImageTensors.of(self._data.train, self.device)
            self._validation = ImageTensors.of(self._data.validation, self.device)
            self._config = config
            gc.collect()
            gc.freeze()  # what is here now stays: collecting after each trial then takes 1 ms instead of 150
        return self._data, self._training, self._validation


class _Trial:
    """One assignment on one rank. Rank 0 reports and keeps the weights of the best epoch on the storage path."""

    def __init__(
        self, mailbox: Any, group: str, index: int, assignment: Assignment, rank: int, world_size: int
    ) -> None:
        self._mailbox, self._group, self._index, self._assignment = mailbox, group, index, assignment
        self._rank, self._world_size = rank, world_size
        self._begun_at = time.time()
        self._parameters, self._earlier, self._epochs = 0, 0.0, 0

    def run(self, loaded: _Loaded, news: _News) -> None:
        """Train to the end, or until the trial is stopped. What goes wrong with it is reported, not raised.

        With several ranks, an error that only one of them may have had is raised after the report: the group has to
        start again, since the others wait for that rank. That another rank is lost, or that the group has to leave, is raised
        without a report.
        """
        try:
            deaths = ray.get(self._mailbox.begin.remote(self._group, self._index)) if self._rank == 0 else 0
            if deaths > self._assignment.max_retries:
                raise RuntimeError(f"Its worker processes died {deaths} times.")
            self._train(loaded, news)
        except _LeavingError:
            raise
        except (NotFiniteError, ValueError) as error:  # the same on every rank
            self._report(None, error=error)
        except Exception as error:
            if self._world_size > 1 and says_that_a_rank_is_lost(str(error)):
                raise  # the group starts again, and the trial goes on
            tail = "".join(traceback.format_exception(error)[-8:])
            self._report(None, error=error, tail=tail)
            if self._world_size > 1:
                self._finish()
                raise
        self._finish()
        gc.collect()  # networks hold reference cycles; a GPU's memory is not to wait for Python's own time
        memory.give_back()
        if loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _train(self, loaded: _Loaded, news: _News) -> None:
        config, number = self._assignment.config, self._assignment.trial
        data, training, validation = loaded.get(self._assignment.data)
        model = create_model(config, data, loaded.device)
        optimizers = build_optimizers(config.optimizer, model)
        average = build_average(config.training, model)
        kept = judged(model, average)
        store = CheckpointStore(self._assignment.checkpoints)
        history, position = list[EpochMetrics](), Position()
        state = self._earlier_state(store)
        if state is not None:
            state.restore(model, optimizers, average)
            history, self._earlier, position = [*state.history], state.seconds, state.position
        self._parameters = parameter_count(model)

        def tell(epochs: Sequence[EpochMetrics]) -> None:
            """Report the last of them."""
            gradients = Gradients.of(model, position.gradients[len(epochs) - 1 : len(epochs)])
            self._report(epochs[-1], is_over(config.training, epochs), gradients)

        for count in range(1, len(history) + 1):  # whoever was told of them may be gone
            tell(history[:count])
        epochs = train(
            model,
            config,
            training,
            validation,
            optimizers=optimizers,
            average=average,
            position=position,
            history=history,
            rank=self._rank,
            world_size=self._world_size,
            should_stop=lambda: news.has_to_leave or number in news.stopped,
        )

        def state_now() -> TrainingState:
            seconds = self._earlier + time.time() - self._begun_at
            return TrainingState.of(model, optimizers, config, history, seconds, position, average)

        with BackgroundSaver(store, number) as saver:
            for metrics in epochs:
                better = metrics.val_accuracy > max((e.val_accuracy for e in history), default=-1.0)
                history.append(metrics)
                if self._rank == 0:
                    best = Checkpoint(kept.state_dict(), config, metrics.epoch, metrics.val_accuracy)
                    saver.save(state_now(), best if better else None)
                if is_over(config.training, history):
                    saver.wait()  # who hears that a trial is complete finds its weights
                tell(history)
            if self._rank == 0 and number not in news.stopped and not is_over(config.training, history):
                saver.save(state_now(), None)
                saver.wait()
                ray.get(self._mailbox.hand_over.remote(self._group, self._index))
                raise _LeavingError("The node is taken away.")

    def _earlier_state(self, store: CheckpointStore) -> TrainingState | None:
        """The state that the trial's training got to, the same on every rank; None when it begins anew."""
        content = store.load_state(self._assignment.trial) if self._assignment.begun and self._rank == 0 else None
        if self._world_size > 1:  # another node may not see yet, or no more, what the first one does
            shared = [content]
            torch.distributed.broadcast_object_list(shared, src=0)
            content = shared[0]
        if content is None:
            return None
        try:
            state = TrainingState.from_bytes(content)
        except ValueError:  # then it is trained again, which is safe
            return None
        return state if state.config == self._assignment.config else None

    def _report(
        self,
        metrics: EpochMetrics | None,
        is_last: bool = True,
        gradients: Gradients | None = None,
        *,
        error: Exception | None = None,
        tail: str = "",
    ) -> None:
        """Sent and not waited for; the mailbox puts what overtakes in order."""
        if self._rank == 0:
            self._epochs = metrics.epoch if metrics else self._epochs
            report = Report(
                group=self._group,
                metrics=metrics,
                done=is_last,
                begun_at=self._begun_at,
                reported_at=time.time(),
                parameters=self._parameters,
                error=f"{type(error).__name__}: {error}{tail and chr(10) * 2 + tail}" if error else None,
                kind=kind_of(error) if error else None,
                log=_log_file() if error else None,
                earlier=self._earlier,
                after=self._epochs,
                gradients=gradients,
            )
            self._mailbox.report.remote(self._assignment.trial, report)

    def _finish(self) -> None:
        if self._rank == 0:
            self._mailbox.finish.remote(self._group, self._index)
