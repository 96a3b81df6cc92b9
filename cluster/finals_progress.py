"""What final trainings show while they run: bars on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from cluster.plan import Plan
from cluster.progress import SILENT_SECONDS
from trainer.mailbox import Report

if TYPE_CHECKING:
    from cluster.finals import Final


class FinalsProgress:
    """Follows the `missing` ones of `total` final trainings; a context, during which the display is up."""

    def __init__(
        self, name: str, plan: Plan, missing: Sequence[Final], total: int, console: Console | None = None
    ) -> None:
        self._name, self._plan = name, plan
        self._total, self._over = total, total - len(missing)
        self._console = console or Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
        self._all = self._bars.add_task(f"{name}: final trainings", total=total, completed=self._over, note="")
        self._running: dict[int, TaskID] = {}
        self._last_line = time.time()

    def __enter__(self) -> FinalsProgress:
        if self._console.is_terminal:
            self._bars.start()
        else:
            before = f" {self._over} of {self._total} are there already." if self._over else ""
            self.say(f"{self._plan} start; the final trainings begin when they are up.{before}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:  # elsewhere rich would end with an empty line
            self._bars.stop()

    def reported(self, final: Final, report: Report) -> None:
        """Show the epoch, or the end; without a terminal an epoch has a line only when nothing was said for a while."""
        metrics = report.metrics
        if report.error is not None:
            self._ended(final, f"FAILED: {report.error.splitlines()[0]}", is_news=True)
        elif metrics is not None and report.done:
            self._ended(
                final, f"train loss {metrics.train_loss:.4f} after {metrics.epoch} epochs, {report.seconds:.1f} s"
            )
        elif metrics is not None and self._console.is_terminal:
            if final.key not in self._running:
                self._running[final.key] = self._bars.add_task(final.title, total=final.epochs, note="")
            note = f"train loss {metrics.train_loss:.4f}  {metrics.images_per_second:,.0f} images/s"
            self._bars.update(self._running[final.key], completed=metrics.epoch, note=note)
        elif metrics is not None and time.time() - self._last_line > SILENT_SECONDS:
            self._print(f"{final.title}: epoch {metrics.epoch}/{final.epochs}  train loss {metrics.train_loss:.4f}")

    def _ended(self, final: Final, how: str, is_news: bool = False) -> None:
        self._over += 1
        self._bars.update(self._all, completed=self._over)
        if final.key in self._running:
            self._bars.remove_task(self._running.pop(final.key))
        if is_news or not self._console.is_terminal:
            self._print(f"[{self._over}/{self._total}] {final.title}: {how}")

    def say(self, line: str) -> None:
        """A line that is not about one training, on a terminal above the bars."""
        self._print(f"{self._name}: {line}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)
        self._last_line = time.time()
