"""The Pareto front: which trials no other one is at least as good as in all objectives and better in one. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cluster.goals import Objectives

if TYPE_CHECKING:
    from cluster.record import TrialRecord


def front(trials: Iterable[TrialRecord], objectives: Objectives) -> frozenset[int]:
    """The numbers of the trials on the front: of those that ran to their end and keep to the constraints. Equal ones are all on it."""
    complete = [t for t in trials if t.state == "COMPLETE" and t.infeasible is None]
    points = {t.number: objectives.point(t.value, t.costs) for t in complete}
    return unbeaten({number: point for number, point in points.items() if point is not None})


def unbeaten(points: Mapping[int, Sequence[float]]) -> frozenset[int]:
    """The keys of the points, of which lower is better, that no other one is below in one coordinate and not above in another."""
    if not points:
        return frozenset()
    rows = on_front(np.array([*points.values()], dtype=np.float64))
    return frozenset(number for number, is_on in zip(points, rows.tolist(), strict=True) if is_on)


def on_front(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the points `(N, objectives)` are on their front, `(N,)`: lower is better, and none is NaN."""
    if not len(points):
        return np.zeros(0, dtype=bool)
    distinct, places = np.unique(points, axis=0, return_inverse=True)  # sorted: none is beaten by one that comes later
    found = np.zeros(len(distinct), dtype=bool)
    left = np.arange(len(distinct))
    while len(left):
        found[left[0]] = True
        left = left[(distinct[left] < distinct[left[0]]).any(axis=1)]
    on: NDArray[np.bool_] = found[places.reshape(-1)]
    return on


def layers(points: Mapping[int, Sequence[float]], enough: int) -> dict[int, int]:
    """For each point the front that it is on: 0, or, without those on the fronts before, 1, 2 ...

    Once `enough` points are on one, the rest is on the last together.
    """
    found: dict[int, int] = {}
    left = dict(points)
    layer = 0
    while left:
        on = unbeaten(left) if len(found) < enough else frozenset(left)
        found |= dict.fromkeys(on, layer)
        left = {number: point for number, point in left.items() if number not in on}
        layer += 1
    return found
