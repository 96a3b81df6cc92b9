"""Event files for TensorBoard: of each trial its hyperparameters and what its epochs gave, written as they are recorded.

Ray Tune's own callback for it does not serve: what Tune takes for a trial is a reader of reports, whose configuration is a number.
These files are written with the package `tensorboard` itself, which imports neither torch nor TensorFlow for that, starts no thread,
and says at once when the disk is full.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from cluster.record import TrialRecord
from cluster.running_trial import RunningTrial
from cluster.watchers import Watcher
from trainer.domains import Value
from trainer.hyperparameters import flatten
from trainer.metrics import EpochMetrics

_NUMBERS = itertools.count()


class EventFiles(Watcher):
    """Keeps a folder for each trial below `folder`, by its number, with one event file in it.

    A file has all epochs of its trial. One that goes on after an interruption gets another, whose beginning takes back what the one
    before says: TensorBoard may be reading that. Finished ones of the sweep's `trials` so far that have no folder get one, as after a
    resume on another machine. When a file cannot be written that is told to `say`, once; the sweep goes on, and the trial's next epoch
    tries again.
    """

    def __init__(self, folder: Path, sweep: str, trials: Iterable[TrialRecord], say: Callable[[str], None]) -> None:
        self._folder, self._sweep, self._say = folder, sweep, say
        self._has_failed = False
        self._files: dict[int, Path] = {}
        self._last_epoch: dict[int, int] = {}
        for trial in trials:
            if trial.ended is not None and trial.epochs_done and not (folder / str(trial.number)).exists():
                with self._if_possible(trial.number):
                    ended = trial.ended.timestamp()
                    self._create(trial.number, trial.config, trial.epochs, ended)
                    self._end(trial.number, trial.state, trial.value, trial.epochs_done, ended)

    def started(self, trial: RunningTrial) -> None:
        """Write its hyperparameters, and the epochs that it has from before."""
        with self._if_possible(trial.number):
            self._create(trial.number, flatten(trial.config), trial.epochs, time.time())

    def reported(self, trial: RunningTrial) -> None:
        """Write the epoch. One that was trained again, after a loss, takes the place of those from there on."""
        now, last = time.time(), trial.epochs[-1]
        with self._if_possible(trial.number):
            if trial.number not in self._files:
                self._create(trial.number, flatten(trial.config), trial.epochs, now)
                return
            again = [_restart(last.epoch)] if last.epoch <= self._last_epoch[trial.number] else []
            self._append(trial.number, [*again, _scalars(last, now)])
            self._last_epoch[trial.number] = last.epoch

    def ended(self, trial: RunningTrial, state: str) -> None:
        """Write its value; one that waits goes on in another file."""
        now = time.time()
        with self._if_possible(trial.number):
            if state != "WAITING":
                if trial.number not in self._files:
                    self._create(trial.number, flatten(trial.config), trial.epochs, now)
                self._end(trial.number, state, trial.value, len(trial.epochs), now)
        self._files.pop(trial.number, None)

    @contextlib.contextmanager
    def _if_possible(self, number: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            file = self._files.pop(number, None)  # it may end in the middle of a record: the next one has all again
            with contextlib.suppress(OSError):
                if file is not None and file.stat().st_size == 0:
                    file.unlink()
            if not self._has_failed:
                self._has_failed = True
                self._say(f"event files for TensorBoard cannot be written ({error}); the sweep goes on without them")

    def _create(self, number: int, config: Mapping[str, Value], epochs: Sequence[EpochMetrics], last: float) -> None:
        """A file with what is known of the trial, whose last epoch ended at `last`."""
        folder = self._folder / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        # As TensorBoard's own writers name them: it reads a folder's files in the order of their names.
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS):06d}"
        times = _times(epochs, last)
        begun = times[0] - epochs[0].seconds if epochs else last
        hyperparameters = hparams_pb(dict(config), trial_id=f"{self._sweep} {number}", start_time_secs=begun)
        head = Event(wall_time=begun, file_version="brain.Event:2")
        scalars = [_scalars(metrics, at) for metrics, at in zip(epochs, times, strict=True)]
        self._files[number], self._last_epoch[number] = folder / name, len(epochs)
        self._append(number, [head, _restart(0), Event(wall_time=begun, summary=hyperparameters), *scalars])

    def _end(self, number: int, state: str, value: float | None, step: int, at: float) -> None:
        """The value, if it has one, under the name `value`; for the page of hyperparameters, whether the trial failed."""
        summaries = [Summary(value=[Summary.Value(tag="value", simple_value=value)])] if value is not None else []
        status = api_pb2.STATUS_FAILURE if state == "FAIL" else api_pb2.STATUS_SUCCESS
        data = HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=at))
        about = metadata.create_summary_metadata(data)
        end = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
        self._append(number, [Event(wall_time=at, step=step, summary=s) for s in (*summaries, Summary(value=[end]))])

    def _append(self, number: int, events: Iterable[Event]) -> None:
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(event.SerializeToString())
        with self._files[number].open("ab") as file:
            file.write(records.getvalue())


def _times(epochs: Sequence[EpochMetrics], last: float) -> list[float]:
    """When the epochs ended, if the last did at `last` and there was no time between them."""
    backwards = itertools.accumulate((-e.seconds for e in reversed(epochs[1:])), initial=last)
    return list(backwards)[::-1] if epochs else []


def _scalars(metrics: EpochMetrics, at: float) -> Event:
    """All numbers of an epoch, under their own names."""
    named = ((name, value) for name, value in metrics.to_json().items() if name != "epoch")
    numbers = [Summary.Value(tag=name, simple_value=value) for name, value in named if isinstance(value, int | float)]
    return Event(wall_time=at, step=metrics.epoch, summary=Summary(value=numbers))


def _restart(step: int) -> Event:
    """What there is of this step and later ones does not count."""
    return Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))
