"""What several seeds of one configuration give on the test split, for a bundle and its card. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SeedFigures:
    """The mean of the `metric` over `n` seeds, its sample's standard deviation and the mean's 95 % interval (None for one seed).

    The model that goes with them is that of `seed`; so many configurations were `compared`.
    """

    metric: str
    n: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    seed: int
    compared: int

    def __str__(self) -> str:
        spread = f", 95 % interval {self.interval[0]:.4f} to {self.interval[1]:.4f}" if self.interval else ""
        seeds = "1 seed" if self.n == 1 else f"{self.n} seeds"
        return f"mean {self.metric.replace('_', ' ')} {self.mean:.4f}{spread}, {seeds}"
