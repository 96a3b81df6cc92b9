"""How far `convsweep predict` is: a bar on a terminal, a line now and then elsewhere, always on standard error."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cluster.budget import duration
from cluster.prediction_writers import printable
from trainer.predicting import Failure, Prediction

SILENT_SECONDS = 20.0
SHOWN_SECONDS = 0.1
MOST_TOLD = 20
"""Of so many files that cannot be read one is told why; the others are counted."""


class PredictionProgress:
    """Counts what was found; a context, during which the bar is up, if there is one.

    `total` may be unknown. A bar is only where nothing else is written onto the same terminal (`alone`).
    """

    def __init__(self, total: int | None, alone: bool, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._total = total
        self.done = self.failed = 0
        self._begun = self._said = self._shown = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if alone and self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[so_far]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._task = self._bar.add_task("classifying", total=total, so_far="")

    def __enter__(self) -> PredictionProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, total: int) -> None:
        """Now the classifying begins: the time before, in which they were counted, does not."""
        self._total = total
        self._begun = self._said = time.monotonic()

    def found(self, one: Prediction | Failure) -> None:
        """Count it, and tell of a failure."""
        self.done += 1
        if isinstance(one, Failure):
            self.failed += 1
            if self.failed <= MOST_TOLD:
                self.say(printable(one.error))
            if self.failed == MOST_TOLD:
                self.say("What else cannot be read is only counted.")
        now = time.monotonic()
        if self._bar is not None and now > self._shown + SHOWN_SECONDS:
            self._bar.update(self._task, completed=self.done, total=self._total, so_far=self._so_far(now))
            self._shown = now
        elif self._bar is None and now > self._said + SILENT_SECONDS:
            self.say(f"{self._so_far(now)}{self._left(now)}")
            self._said = now

    def say(self, sentence: str) -> None:
        """A line on standard error, above the bar."""
        self._console.print(sentence, markup=False, soft_wrap=True)

    def _so_far(self, now: float) -> str:
        of = "" if self._total is None else f" of {self._total:,}"
        return f"{self.done:,}{of} images  {self.done / max(now - self._begun, 1e-9):,.0f} images/s"

    def _left(self, now: float) -> str:
        if self._total is None or self._total < self.done:
            return ""
        return f"  about {duration((self._total - self.done) * (now - self._begun) / self.done)} left"
