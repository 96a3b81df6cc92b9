"""What a network costs besides its errors: parameters, size and latency, measured before a trial's first epoch. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.failures import OverLimitError

if TYPE_CHECKING:
    import torch

    from trainer.model import Classifier


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Something that a good network has little of: its `name` as users write it, its `label` in tables, and its `unit` if it has one."""

    name: str
    label: str
    unit: str
    meaning: str


COSTS = {
    known.name: known
    for known in (
        Cost(name="parameters", label="parameters", unit="", meaning="trained numbers of the network"),
        Cost(
            name="size_mb",
            label="size",
            unit="MB",
            meaning="size of the weights as they are stored, in 10^6 bytes",
        ),
        Cost(
            name="latency_ms",
            label="latency",
            unit="ms",
            meaning="median time of a forward pass in float32, on the machine that trains the trial",
        ),
    )
}
"""By name."""


@dataclass(frozen=True)
class Limit:
    """What a trial must keep to: a cost or the metric, by `name`, is at most `bound`, or where `is_least` at least that."""

    name: str
    bound: float
    is_least: bool = False

    def __str__(self) -> str:
        """As users write it, such as latency_ms <= 5."""
        return f"{self.name} {'>=' if self.is_least else '<='} {self.bound:.12g}"

    def excess(self, value: float) -> float:
        """By what share of the bound the value lies beyond it: above 0 where the limit is not kept."""
        beyond = self.bound - value if self.is_least else value - self.bound
        return beyond / abs(self.bound) if self.bound else beyond

    def verdict(self, value: float) -> str:
        """Why a value is beyond the limit, such as 'latency_ms 7.3 > 5'."""
        return f"{self.name} {_written(value)} {'<' if self.is_least else '>'} {_written(self.bound)}"


@dataclass(frozen=True)
class Costing:
    """Which costs of a trial are measured, what they may be, and how many images a batch has of which the latency is measured.

    Without names nothing is.
    """

    names: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    latency_batch: int = 1


def measure(
    model: Classifier, image_shape: tuple[int, int, int], device: torch.device, costing: Costing
) -> dict[str, float]:
    """The costs of the network on the device, for images (C, H, W); leaves it in evaluation mode.

    The latency, which takes time, only where it is asked for: with the threads that this process has, in float32 as a bundle runs.
    """
    import torch

    from trainer import latency
    from trainer.model import parameter_count

    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    costs: dict[str, float] = {"parameters": parameter_count(model), "size_mb": size / 1e6}
    if "latency_ms" in costing.names:
        batch = torch.zeros(costing.latency_batch, *image_shape, dtype=torch.uint8, device=device)
        model.eval()

        def run() -> None:
            model(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        with torch.inference_mode():
            costs["latency_ms"] = latency.measure(run).median
    return costs


def check(costs: Mapping[str, float], limits: Iterable[Limit]) -> None:
    """Raise OverLimitError, with every limit that is not kept, where there is one."""
    broken = [limit.verdict(costs[limit.name]) for limit in limits if limit.excess(costs[limit.name]) > 0]
    if broken:
        raise OverLimitError(", ".join(broken))


def _written(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"
