"""A sweep on a cluster of the lab, as its record on the head tells of it while it runs."""

from __future__ import annotations

from types import TracebackType

from cluster.experiments import Experiments
from cluster.record import SweepRecord
from cluster.studies import Studies
from tests.lab.hosts import quoted
from tests.lab.user import User

SMALL = quoted(
    *("--pruner", "none", "--preset", "none", "--set", "model.blocks=2", "--set", "model.filters=[8, 16]"),
    *("--set", "model.kernel_size=3", "--set", "model.convolutions=1", "--set", "training.batch_size=256"),
)
"""Options for small networks, all of which are trained to their end."""


class Sweep:
    """A sweep that there may not be yet. A context: the database is closed after it."""

    def __init__(self, user: User, name: str) -> None:
        self._folder, self._name = user.experiments, name
        self._studies: Studies | None = None

    def __enter__(self) -> Sweep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._studies is not None:
            self._studies.close()

    def record(self) -> SweepRecord | None:
        """What there is of it; None before there is anything."""
        if self._studies is None and (self._folder / "studies.db").exists():
            self._studies = Studies(Experiments(self._folder))
        if self._studies is None or self._name not in self._studies.names():
            return None
        return self._studies.read(self._name)

    def is_amid_a_trial(self, after: int, epochs: int) -> bool:
        """Whether a trial, not one of the first `after`, has had an epoch and will have more than another one."""
        found = self.record()
        running = [t for t in found.trials if t.state == "RUNNING" and t.number >= after] if found else []
        return any(0 < t.epochs_done < epochs - 1 for t in running)

    def is_finished(self) -> bool:
        """Whether it has all its trials."""
        found = self.record()
        return found is not None and found.state == "FINISHED"

    def told(self) -> object:
        """Its state, for who waits in vain."""
        found = self.record()
        return found and (found.state, found.counts, [(t.number, t.error) for t in found.trials if t.error])
