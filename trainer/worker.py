"""The loop on the ranks of a Ray Train worker group, trial after trial, fed by a `Mailbox`."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
import ray.train
import torch

from trainer import memory
from trainer.averaging import build_average, judged
from trainer.background import BackgroundSaver
from trainer.batches import ImageTensors
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.costs import check, measure
from trainer.data import DataConfig, ImageData, load_data
from trainer.early_stopping import is_over
from trainer.failures import OverLimitError, kind_of, says_that_a_rank_is_lost
from trainer.fold_scores import epochs_of_fold
from trainer.folds import Division, divide
from trainer.gradients import Gradients
from trainer.hyperparameters import flatten
from trainer.joined import join
from trainer.loop import NotFiniteError, create_model, train
from trainer.mailbox import Assignment, Report
from trainer.measuring import metric_named
from trainer.metrics import EpochMetrics
from trainer.model import Classifier, parameter_count
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
    """The data set that this process has in memory: the last one asked for, which in a sweep is the only one.

    For `final` trainings it is not divided: there is no validation split. With folds it is divided once for each.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._asked: tuple[DataConfig, bool, int] | None = None
        self._divisions: list[Division] = []

    def get(self, assignment: Assignment, fold: int) -> Division:
        asked = assignment.data, assignment.final, assignment.folds
        if asked != self._asked:
            self._asked, self._divisions = None, []
            self._divisions = self._divide(load_data(assignment.data), assignment)
            self._asked = asked
            gc.collect()
            gc.freeze()  # what is here now stays: collecting after each trial then takes 1 ms instead of 150
        return self._divisions[assignment.fold_numbers.index(fold)]

    def _divide(self, data: ImageData, assignment: Assignment) -> list[Division]:
        if assignment.folds > 1:
            return divide(data, join(data, self.device), assignment.folds, assignment.data.split_seed)
        if assignment.final:
            return [Division(data, join(data, self.device), None)]
        training, validation = (ImageTensors.of(split, self.device) for split in (data.train, data.validation))
        return [Division(data, training, validation)]


class _Trial:
    """One assignment on one rank. Rank 0 reports and keeps the weights of the best epoch, or the last one's, on the storage path."""

    def __init__(
        self, mailbox: Any, group: str, index: int, assignment: Assignment, rank: int, world_size: int
    ) -> None:
        self._mailbox, self._group, self._index, self._assignment = mailbox, group, index, assignment
        self._rank, self._world_size = rank, world_size
        self._begun_at = time.time()
        self._parameters, self._earlier, self._epochs = 0, 0.0, 0
        self._history = list[EpochMetrics]()
        self._costs: dict[str, float] = {}

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
        _give_back_memory(loaded.device)

    def _train(self, loaded: _Loaded, news: _News) -> None:
        store = CheckpointStore(self._assignment.checkpoints)
        state, folds = self._earlier_state(store), self._assignment.fold_numbers
        done = 0 if state is None else folds.index(state.position.fold)
        with BackgroundSaver(store, self._assignment.trial) as saver:
            for fold in folds[done:]:
                if not self._train_fold(fold, state, loaded, news, saver):
                    break
                state = None
                if fold != folds[-1]:
                    _give_back_memory(loaded.device)

    def _train_fold(
        self, fold: int, state: TrainingState | None, loaded: _Loaded, news: _News, saver: BackgroundSaver
    ) -> bool:
        """Train on the division of the images that the fold is, as new or from where the state is; whether it came to its end."""
        config, number, goal = self._assignment.config, self._assignment.trial, metric_named(self._assignment.metric)
        images = loaded.get(self._assignment, fold)
        model = create_model(config, images.data, loaded.device, is_new=state is None)
        optimizers = build_optimizers(config.optimizer, model)
        average = build_average(config.training, model)
        position = Position(fold=fold)
        self._parameters = parameter_count(model)
        if not self._costs:
            self._costs = self._measure(model, images.data, loaded.device)
            if state is None:  # what has been trained keeps to the limits: a latency is never measured the same twice
                check(self._costs, self._assignment.costing.limits)
        if state is not None:
            state.restore(model, optimizers, average)
            self._history, self._earlier, position = [*state.history], state.seconds, state.position
        own = epochs_of_fold(self._history, fold)
        if state is not None:
            self._report_again(model, position, self._is_over(own))
        epochs = train(
            model,
            config,
            images.training,
            images.validation,
            optimizers=optimizers,
            average=average,
            position=position,
            history=own,
            goal=goal,
            rank=self._rank,
            world_size=self._world_size,
            should_stop=lambda: news.has_to_leave or number in news.stopped,
        )

        def state_now() -> TrainingState:
            seconds = self._earlier + time.time() - self._begun_at
            return TrainingState.of(model, optimizers, config, self._history, seconds, position, average)

        for metrics in epochs:
            better = goal.is_better(goal.value_of(metrics), goal.best_of(own))
            own.append(metrics)
            ends = self._is_over(own)
            if self._assignment.final:
                better = ends
            self._history.append(replace(metrics, epoch=len(self._history) + 1, fold=fold))
            if self._rank == 0:
                best = Checkpoint(judged(model, average).state_dict(), config, metrics.epoch, goal.value_of(metrics))
                is_kept = better and fold == self._assignment.fold_numbers[0]
                saver.save(state_now(), best if is_kept else None)
            if ends:
                saver.wait()  # who hears that a trial is complete finds its weights
            self._report(self._history[-1], ends, Gradients.of(model, position.gradients[-1:]))
        if self._rank == 0 and number not in news.stopped and not self._is_over(own):
            saver.save(state_now(), None)
            saver.wait()
            ray.get(self._mailbox.hand_over.remote(self._group, self._index))
            raise _LeavingError("The node is taken away.")
        return self._is_over(own)

    def _is_over(self, epochs: Sequence[EpochMetrics]) -> bool:
        """Whether nothing comes after these epochs of a fold, numbered from 1."""
        goal = None if self._assignment.final else metric_named(self._assignment.metric)
        return is_over(self._assignment.config.training, epochs, goal)

    def _measure(self, model: Classifier, data: ImageData, device: torch.device) -> dict[str, float]:
        """What the network costs, as the first rank measures it, the same on every rank; nothing where nobody asks."""
        if not self._assignment.costing.names:
            return {}
        measured = [measure(model, data.image_shape, device, self._assignment.costing) if self._rank == 0 else {}]
        if self._world_size > 1:
            torch.distributed.broadcast_object_list(measured, src=0)
        return measured[0]

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
        # What has no effect may differ: a state does not keep it.
        is_of_it = flatten(state.config) == flatten(self._assignment.config)
        return state if is_of_it and state.position.fold in self._assignment.fold_numbers else None

    def _report_again(self, model: Classifier, position: Position, is_over: bool) -> None:
        """Report the epochs of the history: whoever was told of them may be gone. `is_over` says whether its last one ends a fold."""
        before = len(self._history) - position.epochs
        for place, (metrics, following) in enumerate(itertools.zip_longest(self._history, self._history[1:]), -before):
            ends_fold = is_over if following is None else following.fold != metrics.fold
            rows = position.gradients[place : place + 1] if place >= 0 else []
            self._report(metrics, ends_fold, Gradients.of(model, rows))

    def _report(
        self,
        metrics: EpochMetrics | None,
        ends_fold: bool = False,
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
                done=metrics is None or (ends_fold and metrics.fold == self._assignment.fold_numbers[-1]),
                begun_at=self._begun_at,
                reported_at=time.time(),
                parameters=self._parameters,
                error=_words(error, tail) if error else None,
                kind=kind_of(error) if error else None,
                log=_log_file() if error else None,
                earlier=self._earlier,
                after=self._epochs,
                ends_fold=ends_fold,
                costs=self._costs,
                gradients=gradients,
            )
            self._mailbox.report.remote(self._assignment.trial, report)

    def _finish(self) -> None:
        if self._rank == 0:
            self._mailbox.finish.remote(self._group, self._index)


def _give_back_memory(device: torch.device) -> None:
    gc.collect()  # networks hold reference cycles; a GPU's memory is not to wait for Python's own time
    memory.give_back()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _words(error: Exception, tail: str) -> str:
    name = "" if isinstance(error, OverLimitError) else f"{type(error).__name__}: "
    return f"{name}{error}{tail and chr(10) * 2 + tail}"
