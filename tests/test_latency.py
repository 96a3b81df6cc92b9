"""How long something takes: `python -m pytest tests/test_latency.py`."""

from __future__ import annotations

import itertools

import pytest

from trainer import latency


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Durations in seconds that the next passes seem to take, beginning with the first that counts."""
    durations: list[float] = []
    times = itertools.count()
    now = 0.0

    def read() -> float:
        nonlocal now
        if next(times) % 2:
            now += durations.pop(0)
        return now

    monkeypatch.setattr(latency.time, "perf_counter", read)
    return durations


def test_median_and_95th_percentile_are_in_milliseconds(clock: list[float]) -> None:
    clock += [n / 1000 for n in range(1, 22)]
    found = latency.measure(lambda: None, passes=21)
    assert (found.median, found.p95, found.passes) == (pytest.approx(11), pytest.approx(20), 21)


def test_passes_before_are_not_counted(clock: list[float]) -> None:
    clock += [1.0, 1.0, 1.0]
    done: list[int] = []
    assert latency.measure(lambda: done.append(1), passes=3).passes == 3
    assert len(done) == 3 + latency.WARM_UP


def test_what_is_slow_is_passed_at_least_three_times(clock: list[float]) -> None:
    clock += [10.0] * 20
    assert latency.measure(lambda: None, passes=20, most_seconds=1).passes == 3
