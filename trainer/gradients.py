"""How large the layers' gradients are, and what is wrong where they vanish or explode. Imports no torch by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Row = tuple[float | None, ...]
Norms = list[list[float | None]]
"""Of one moment: the norms of the layers' gradients and those of their weights, None where they are not finite."""

VANISHED, ALIVE, VANISHING_EPOCHS = 1e-7, 1e-4, 3
"""A gradient below 1e-7 of its weights changes nothing: with a learning rate of 1 its step is lost in the rounding of float32, and of
what Adam divides by little is left but its epsilon. Where all gradients are small the training has converged; so another layer must
have one of 1e-4, a thousand times as much. One epoch's last step may be an exception, three are none."""

EXPLODED = 1e3
"""How often its first norm a gradient's is where it has exploded: in trainings that learn, norms change by a factor of ten to a
hundred. A first norm below ALIVE counts as that much: a layer that was asleep may wake up."""


@dataclass(frozen=True)
class Gradients:
    """The norms of the gradients and of the weights of a trial's `layers`, at the last step of each epoch, before any clipping.

    A layer is a tensor of weights with two dimensions or more, named as in the model. `norms` and `weights` have a row for each
    epoch, which is empty where nothing was measured; what is not finite is None.
    """

    layers: tuple[str, ...] = ()
    norms: tuple[Row, ...] = ()
    weights: tuple[Row, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, epochs: Sequence[Norms]) -> Gradients:
        """Those of a model by what was measured in each epoch, `[]` where nothing was."""
        measured = [norms or [[], []] for norms in epochs]
        return cls(tuple(_layers(model)), tuple(tuple(n) for n, _ in measured), tuple(tuple(w) for _, w in measured))

    def then(self, epoch: int, norms: Gradients) -> Gradients:
        """These up to that epoch, and for it the last row of others."""

        def rows(mine: tuple[Row, ...], theirs: tuple[Row, ...]) -> tuple[Row, ...]:
            return *mine[: epoch - 1], *[()] * (epoch - 1 - len(mine)), theirs[-1]

        return Gradients(norms.layers, rows(self.norms, norms.norms), rows(self.weights, norms.weights))

    def to_json(self) -> dict[str, Any]:
        """As plain values; `from_json` is the way back."""
        return {"layers": self.layers, "norms": self.norms, "weights": self.weights}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Gradients:
        """What `to_json` gave; nothing at all of a trial that was recorded without."""
        norms, weights = (tuple(tuple(row) for row in values.get(name, ())) for name in ("norms", "weights"))
        return cls(tuple(values.get("layers", ())), norms, weights)

    @classmethod
    def from_text(cls, text: str | None) -> Gradients:
        """As `from_json`, of JSON or of None."""
        return cls.from_json(json.loads(text) if text else {})


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the gradients of some `layers`, the worst first, in a sentence for people and what may help."""

    kind: str
    layers: tuple[str, ...]
    text: str


def _layers(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad}


def measure(model: nn.Module) -> Tensor:
    """The norms of the layers' gradients and of their weights, float32 `(2, layers)`, on the device: nobody waits for them here."""
    import torch

    layers = list(_layers(model).values())
    with torch.no_grad():
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in layers]
        norms = [torch.linalg.vector_norm(tensor) for tensor in [*gradients, *layers]]
        return torch.stack(norms).view(2, -1)


def read(measured: Tensor) -> Norms:
    """What `measure` gave, to three significant digits; waits for the device."""
    return [[float(f"{value:.3g}") if math.isfinite(value) else None for value in row] for row in measured.tolist()]


def note(epochs: list[Norms], epoch: int, norms: Norms) -> None:
    """Put the norms of that epoch behind those of the epochs before it, of which some may never have been measured."""
    epochs += [[] for _ in range(epoch - 1 - len(epochs))]
    epochs[epoch - 1 :] = [norms]


def troubles(gradients: Gradients) -> list[Trouble]:
    """What is wrong with a trial's gradients; nothing as a rule."""
    return [*_exploding(gradients), *_vanishing(gradients)]


def blame(gradients: Gradients) -> str:
    """Which layer's gradient exploded before a loss was not finite, as a sentence; empty where that cannot be told.

    In the end everything is not a number: that says nothing about where it began.
    """
    rows = [*gradients.norms]
    while rows and all(value is None for value in rows[-1]):
        rows.pop()
    known = Gradients(gradients.layers, tuple(rows), gradients.weights)
    return next((f" {trouble.text}" for trouble in _exploding(known)), "")


def _vanishing(gradients: Gradients) -> Iterator[Trouble]:
    last = [
        [norm / weight if norm is not None and weight else math.nan for norm, weight in zip(*rows, strict=True)]
        for rows in zip(gradients.norms[-VANISHING_EPOCHS:], gradients.weights[-VANISHING_EPOCHS:], strict=True)
    ]
    if len(last) < VANISHING_EPOCHS or not all(any(ratio >= ALIVE for ratio in ratios) for ratios in last):
        return
    by_layer = dict(zip(gradients.layers, zip(*last, strict=True), strict=True))
    gone = {layer: max(ratios) for layer, ratios in by_layer.items() if all(ratio < VANISHED for ratio in ratios)}
    if gone:
        layers = tuple(sorted(gone, key=lambda layer: gone[layer]))
        ratio, alive = max((ratios[-1], layer) for layer, ratios in by_layer.items() if ratios[-1] >= ALIVE)
        text = (
            f"{_of(layers)} vanished: in the last {VANISHING_EPOCHS} epochs {_whose(layers)} was at most {gone[layers[0]]:.1g} of that of "
            f"its weights, while for {alive} it was {ratio:.1g}. Batch normalisation, a shortcut (model.residual), fewer blocks or "
            "another activation lets it through."
        )
        yield Trouble("vanishing", layers, text)


def _exploding(gradients: Gradients) -> Iterator[Trouble]:
    worst: dict[str, tuple[float, str]] = {}
    for place, layer in enumerate(gradients.layers):
        first: tuple[int, float, float] | None = None  # the epoch, the norm, and what counts as the norm
        for epoch, (norms, weights) in enumerate(zip(gradients.norms, gradients.weights, strict=False), 1):
            if not norms:
                continue
            norm, weight = norms[place], weights[place]
            if first is None and norm is not None and weight is not None:
                first = epoch, norm, max(norm, ALIVE * weight)
            times = math.inf if norm is None else norm / first[2] if first and first[2] else 0.0
            if times > max(EXPLODED, worst.get(layer, (0.0, ""))[0]):
                before = f", after {first[1]:.3g} in epoch {first[0]}" if first else ""
                worst[layer] = times, f"{'not finite' if norm is None else f'{norm:.3g}'} in epoch {epoch}{before}"
    if worst:
        layers = tuple(sorted(worst, key=lambda layer: -worst[layer][0]))
        text = (
            f"{_of(layers)} exploded: {_whose(layers)} was {worst[layers[0]][1]}. A lower optimizer.learning_rate helps, or "
            "optimizer.clip_norm."
        )
        yield Trouble("exploding", layers, text)


def _of(layers: Sequence[str]) -> str:
    if len(layers) == 1:
        return f"The gradient of {layers[0]} has"
    return f"The gradients of {layers[0]} and {len(layers) - 1} other layer{'s' * (len(layers) > 2)} have"


def _whose(layers: Sequence[str]) -> str:
    return "its norm" if len(layers) == 1 else "the norm of the first"
