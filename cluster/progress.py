"""What a sweep shows while it runs: a live display on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.budget import Spent, duration
from cluster.config import SweepConfig
from cluster.expected_gain import GainWatch
from cluster.plan import Plan
from cluster.running_trial import RunningTrial
from cluster.study import SweepStudy
from cluster.watchers import Watcher
from trainer.hyperparameters import flatten, in_short

SILENT_SECONDS = 20.0
BUDGET_SECONDS = 60.0
"""So often a plain line says what is spent, if trials end or epochs are reported."""


def say_skipped(files: Sequence[str]) -> None:
    """Say which files of a data set were left out because they are no images, if there are any."""
    if files:
        more = f", ..., {files[-1]}" if len(files) > 3 else ""
        word = "file that is no image" if len(files) == 1 else "files that are no images"
        sys.stderr.write(f"Left out {len(files)} {word}: {', '.join(files[:3])}{more}\n")


class Progress(Watcher):
    """Watches a sweep's trials, what is spent of its budget and what is still expected; a context, during which the display is up."""

    def __init__(
        self,
        config: SweepConfig,
        plan: Plan,
        study: SweepStudy,
        console: Console | None = None,
        spent: Spent | None = None,
        gain: GainWatch | None = None,
    ) -> None:
        self._config, self._plan = config, plan
        self._console = console or Console(stderr=True, highlight=False)
        self._spent, self._gain = spent or Spent(config.budget, study.spent()), gain
        self._spent_before = self._spent.limits()
        self._begun = self._last_line = self._budget_said = time.time()
        self._counts = study.counts()
        self._done_before = self._done
        self._running: dict[int, RunningTrial] = {}
        self._best: tuple[float, int, str] | None = None
        for trial in study.read().trials:
            if trial.state == "COMPLETE" and trial.value is not None:
                self._note_best(trial.value, trial.number, in_short(trial.config))
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._print(f"{self._config.name}: {self._plan} start; the first trial begins when they are up.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(self, trial: RunningTrial) -> None:
        """Show the trial among the running ones."""
        self._running[trial.number] = trial

    def reported(self, trial: RunningTrial) -> None:
        """The live display shows the epoch; without a terminal there is a line only when nothing was said for a while."""
        if not self._console.is_terminal and time.time() - self._last_line > SILENT_SECONDS:
            last = trial.epochs[-1]
            score = f"{self._config.goal.value_of(last):.4f}"
            self._print(f"trial {trial.number}: epoch {last.epoch}/{self._planned}  {score}")
        self._say_budget()

    def begun_again(self, trial: RunningTrial) -> None:
        """Say so, on a terminal above the live display."""
        after = f"after epoch {len(trial.epochs)}" if trial.epochs else "from the start"
        self._print(f"trial {trial.number}: the processes that trained it were lost; it goes on {after}")

    def ended(self, trial: RunningTrial, state: str) -> None:
        """Count it, and without a terminal print its line."""
        self._running.pop(trial.number, None)
        self._counts[state] += 1
        value = trial.last_value if state == "PRUNED" else trial.best_value  # as the study has it
        if state == "COMPLETE" and value is not None:
            self._note_best(value, trial.number, in_short(flatten(trial.config)))
        if not self._console.is_terminal and state != "WAITING":
            score = "" if value is None else f"  {value:.4f}"
            why = "" if trial.error is None else "  " + trial.error.splitlines()[0]
            best = f"  best {self._best[0]:.4f} (trial {self._best[1]})" if self._best else ""
            total = f"/{self._config.trials}" if self._config.trials else ""
            self._print(
                f"[{self._done}{total}] trial {trial.number} {state}{score} after {len(trial.epochs)} epochs{why}{best}{self._left()}"
            )
            self._say_budget()

    def _say_budget(self) -> None:
        """Without a terminal a line now and then; nothing without a budget."""
        known = [f"spent {', '.join(map(str, limits))}"] if (limits := self._spent.limits()) else []
        known += [str(self._gain)] if self._gain else []
        if known and not self._console.is_terminal and time.time() - self._budget_said > BUDGET_SECONDS:
            self._budget_said = time.time()
            self.say("; ".join(known))

    @property
    def _planned(self) -> int:
        """How many epochs a trial has at most, over all its folds."""
        return self._config.epochs * self._config.folds

    @property
    def _done(self) -> int:
        return self._counts["COMPLETE"] + self._counts["PRUNED"] + self._counts["FAIL"]

    def _note_best(self, value: float, number: int, config: str) -> None:
        if self._best is None or self._config.goal.is_better(value, self._best[0]):
            self._best = (value, number, config)

    def say(self, line: str) -> None:
        """A line that is not about one trial, on a terminal above the live display."""
        self._print(f"{self._config.name}: {line}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)
        self._last_line = time.time()

    def _seconds_left(self) -> float | None:
        """By the pace of this run's trials, or by what of the budget will be spent first at the pace of this run."""
        elapsed, done = time.time() - self._begun, self._done - self._done_before
        estimates = []
        if self._config.trials is not None and done:
            estimates.append(elapsed / done * (self._config.trials - self._done))
        for before, limit in zip(self._spent_before, self._spent.limits(), strict=True):
            if limit.spent > before.spent:
                rest = max(0.0, limit.allowed - limit.spent)
                estimates.append(elapsed * rest / (limit.spent - before.spent))
        return min(estimates, default=None)

    def _left(self) -> str:
        seconds = self._seconds_left()
        return "" if seconds is None or seconds < 1 else f"  about {duration(seconds)} left"

    def _render(self) -> Group:
        total = self._config.trials
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=total or 1, completed=self._done if total else 0, width=30, pulse=total is None)
        head.add_row(
            Text(self._config.name, style="bold"),
            bar,
            f"{self._done}{f'/{total}' if total else ''} trials",
            f"{duration(time.time() - self._begun)}{self._left()}",
        )
        counts = Text.assemble(
            (f"{self._counts['COMPLETE']} complete", "green"),
            "  ",
            (f"{len(self._running)} running", "cyan"),
            "  ",
            (f"{self._counts['PRUNED']} pruned", "yellow"),
            "  ",
            (f"{self._counts['FAIL']} failed", "red" if self._counts["FAIL"] else "dim"),
            f"  {self._speed():,.0f} images/s",
        )
        lines: list[Table | Text] = [head, counts, *self._budget()]
        if self._best:
            lines.append(
                Text.assemble(
                    "best ", (f"{self._best[0]:.4f}", "bold green"), f" trial {self._best[1]}: {self._best[2]}"
                )
            )
        running = Table.grid(padding=(0, 2))
        for number, trial in sorted(self._running.items()):
            done = len(trial.epochs)
            score = "starting" if trial.last_value is None else f"{trial.last_value:.4f}"
            running.add_row(
                f"trial {number}",
                f"epoch {done}/{self._planned}",
                score,
                Text(in_short(flatten(trial.config)), style="dim"),
            )
        return Group(*lines, running)

    def _budget(self) -> Iterator[Table | Text]:
        limits = self._spent.limits()
        if limits:
            rows = Table.grid(padding=(0, 2))
            for limit in limits:
                bar = ProgressBar(total=limit.allowed, completed=min(limit.spent, limit.allowed), width=30)
                rows.add_row("spent", bar, str(limit))
            yield rows
        if self._gain:
            yield Text(str(self._gain))

    def _speed(self) -> float:
        return sum(trial.epochs[-1].images_per_second for trial in list(self._running.values()) if trial.epochs)
