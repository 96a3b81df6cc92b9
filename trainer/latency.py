"""How long a forward pass takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a pass: the median and the 95th percentile over `passes` of them."""

    median: float
    p95: float
    passes: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def measure(run: Callable[[], object], passes: int = 20, most_seconds: float = float("inf")) -> Latency:
    """The latency of `run()`, after three passes to warm up: so many passes, or fewer, at least three, where they take too long."""
    for _ in range(WARM_UP):
        run()
    seconds: list[float] = []
    while len(seconds) < passes and (len(seconds) < 3 or sum(seconds) < most_seconds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    median, p95 = np.percentile(seconds, (50, 95)) * 1000
    return Latency(float(median), float(p95), len(seconds))
