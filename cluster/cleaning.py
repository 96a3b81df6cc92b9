"""What a sweep has on disk that nobody needs any more, and its removal."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.experiments import Experiments
from cluster.studies import Studies


@dataclass(frozen=True)
class Surplus:
    """Files of a sweep that nobody needs, with their sizes in bytes, and the trials whose weights stay."""

    files: dict[str, int]
    kept: tuple[int, ...]

    @property
    def size(self) -> int:
        """All of it, in bytes."""
        return sum(self.files.values())


def clean(name: str, where: Experiments, keep: int | None, remove: bool) -> Surplus:
    """What sweep `name` does not need when the weights of its `keep` best trials stay (None: as many as it was told); freed on request.

    With several goals those of the front stay too. Unfinished trials keep all that they have. Raises ValueError for an unknown sweep
    and a `keep` below 1, LeaseHeldError while it runs.
    """
    if keep is not None and keep < 1:
        raise ValueError(
            f"--keep must be at least 1, but got {keep}: a sweep whose best weights are gone is of no use."
        )
    study = Studies(where).open(name)
    with study.lease(takeover=False, on_lost=_ignore):
        sweep = study.read()
        where = where.of(sweep.storage_path)
        store = where.checkpoints(name)
        has = set(store.trials())
        complete = [t.number for t in sweep.trials if t.state == "COMPLETE" and t.number in has]
        best = complete[: keep or sweep.config.keep_checkpoints]
        on_front = sweep.front if sweep.config.goals else ()
        kept = [number for number in complete if number in best or number in on_front]
        unfinished = {t.number for t in sweep.trials if t.state in ("RUNNING", "WAITING")}
        files = store.surplus(set(kept), unfinished)
        surplus = Surplus(files | where.ray_files(name), tuple(kept))
        if remove:
            store.remove(files)
            where.remove_ray_files(name)
    return surplus


def _ignore(reason: str) -> None:
    """Cleaning is over before anybody could take over."""
