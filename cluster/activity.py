"""What a command shows of its work while it is at it, on standard error: bars, spinners, a line for each epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from trainer.data import OnProgress
from trainer.measuring import ACCURACY, Metric
from trainer.metrics import EpochMetrics

SHOWN = ("val_loss", "val_accuracy")
"""What is shown of every epoch, whatever is optimised."""


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def decoding() -> Iterator[OnProgress]:
    """A progress bar for the decoding of images, which appears when there is something to decode."""
    console = errors()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    tasks: dict[str, Any] = {}

    def on_progress(what: str, done: int, total: int) -> None:
        if not console.is_terminal:
            if done == 0:
                console.print(f"{what} ...", soft_wrap=True)
            return
        if not tasks:
            bar.start()
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)
        if done >= total:  # off the screen before the next display comes
            bar.remove_task(tasks.pop(what))
            bar.stop()

    try:
        yield on_progress
    finally:
        if tasks:
            bar.stop()


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere."""
    console = errors()
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what)
        yield


@contextlib.contextmanager
def stepping(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner on a terminal with the step that is under way, of which the caller tells; a line for each step elsewhere."""
    console = errors()
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what)

        def on_step(step: str) -> None:
            progress.update(task, description=f"{what}: {step}")
            if not console.is_terminal:
                console.print(f"{step} ...", markup=False, soft_wrap=True)

        yield on_step


def follow(epochs: Iterator[EpochMetrics], total: int, goal: Metric = ACCURACY) -> None:
    """Print a line for each epoch, as it ends, on standard error."""
    console = errors()
    for e in epochs:
        own = "" if goal.field in SHOWN else f"  {goal.label} {goal.value_of(e):.4f}"
        console.print(
            f"epoch {e.epoch}/{total}  train loss {e.train_loss:.4f}  validation loss {e.val_loss:.4f}  "
            f"accuracy {e.val_accuracy:.4f}{own}  {e.images_per_second:,.0f} images/s  {e.seconds:.1f} s",
            soft_wrap=True,
        )
