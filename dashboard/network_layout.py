"""Where the parts of a network's picture are: one stage after another from left to right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.layers import Layer

WIDTH = 1000
SKEW = (0.30, 0.22)
"""How far a box reaches to the right and up for each pixel of its depth."""

TALLEST = 150.0
SLAB = 5.0
_COLUMN = 13.0
_SIDE = 26
_GAPS = (10.0, 58.0)
_THIN = ("batch normalisation", "layer normalisation", "positions", "activation", "dropout")

_MOST_STAGES = 40
"""A network with more of them is drawn by its groups: they would not fit."""


@dataclass
class Stage:
    """What is drawn at one place: the output of `layers[0]`, and of the ones behind it that leave its shape as it is.

    With an `addition` a shortcut ends before it, and it has no layer but those. `x` is where its front begins.
    """

    layers: list[Layer]
    addition: Layer | None = None
    x: float = 0.0

    @property
    def added(self) -> bool:
        """Whether a shortcut ends before it."""
        return self.addition is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its output's: (F, H, W), (steps, units) or (units,)."""
        return self.layers[0].output_shape

    @property
    def group(self) -> str:
        """The group of its layers."""
        return self.layers[0].group

    @property
    def is_box(self) -> bool:
        """Whether it is feature maps and no vector."""
        return len(self.shape) == 3


class Layout:
    """The stages of a network with their measures. `squeeze`, 1 or less, narrows a long network's boxes so that all fit."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.stages = list(_stages(layers))
        if len(self.stages) > _MOST_STAGES:
            self.layers = list(_by_group(layers))
            self.stages = list(_stages(self.layers))
        self.squeeze = 1.0
        self.end = self._place()

    def thickness(self, stage: Stage) -> float:
        """The width of its front."""
        slabs = SLAB * (len(stage.layers) - 1)
        if stage.added:
            return slabs + SLAB
        return slabs + (self.squeeze * (4 + 2.2 * math.sqrt(stage.shape[0])) if stage.is_box else _COLUMN)

    def size(self, stage: Stage) -> tuple[float, float]:
        """The height of its front, and its depth."""
        if not stage.is_box:
            return min(TALLEST + 30, 26 + 3.2 * math.sqrt(stage.shape[0])), 0.0
        largest = max(self.layers[0].output_shape[1:])
        tall, deep = (TALLEST * (pixels / largest) ** 0.62 + 4 for pixels in stage.shape[1:])
        return tall, deep

    def right(self, stage: Stage) -> float:
        """Where its front ends."""
        return stage.x + self.thickness(stage)

    def reach(self, stage: Stage) -> float:
        """How far its side reaches to the right of its front."""
        return self.skewed(self.size(stage)[1])

    def skewed(self, depth: float) -> float:
        """How far that much of depth reaches to the right."""
        return depth * SKEW[0] * self.squeeze

    def is_crowded(self, i: int) -> bool:
        """Whether there is no room to say the size of stage `i`'s maps where it is that of the stage before."""
        return self.squeeze < 1 and i > 0 and self.stages[i - 1].shape[1:] == self.stages[i].shape[1:]

    def shortcuts(self) -> list[tuple[Stage, Stage, list[Layer]]]:
        """From which stage to which one, and the layers on the way."""
        found = []
        for stage in self.stages:
            if stage.addition is not None:
                place = stage.addition.group, stage.addition.unit
                own = [i for i, layer in enumerate(self.layers) if (layer.group, layer.unit) == place]
                inside = [self.layers[i] for i in own if self.layers[i].shortcut]
                found.append((self._before(own[0]), stage, inside))
        return found

    def _before(self, first: int) -> Stage:
        """The stage that has, or is the sum that is, the last thing before layer number `first`."""
        layer = next(
            layer for layer in reversed(self.layers[:first]) if not layer.shortcut and layer.kind != "identity"
        )
        return next(stage for stage in self.stages if layer is stage.addition or any(x is layer for x in stage.layers))

    def _place(self) -> float:
        """Give the stages their places; returns where the last one ends."""
        room, gaps = WIDTH - 2 * _SIDE, len(self.stages) - 1
        full = self._needed()
        self.squeeze = 0.0
        fixed = self._needed()
        self.squeeze = min(1.0, (room - gaps * _GAPS[0] - fixed) / (full - fixed))
        gap = min(_GAPS[1], (room - self._needed()) / gaps)
        x = _SIDE + max(0.0, (room - self._needed() - gaps * gap) / 2)
        for stage in self.stages:
            stage.x = x
            x += self.thickness(stage) + self.reach(stage) + gap
        return x - gap

    def _needed(self) -> float:
        return sum(self.thickness(stage) + self.reach(stage) for stage in self.stages)


def window(layer: Layer) -> int:
    """The width of what becomes one pixel: of a convolution's kernel; pooling takes 2x2."""
    size = layer.settings.partition("x")[0]
    return int(size) if layer.kind == "convolution" and size.isdigit() else 2


def _by_group(layers: Sequence[Layer]) -> Iterator[Layer]:
    """The layers, those of each group that has several blocks as a single one."""
    for group, members in itertools.groupby(layers, lambda layer: layer.group):
        inside = list(members)
        if not inside[-1].unit:
            yield from inside
            continue
        parameters = sum(layer.parameters for layer in inside)
        yield Layer(group, "block", inside[-1].output_shape, parameters, f"{inside[-1].unit} units", group)


def _stages(layers: Sequence[Layer]) -> Iterator[Stage]:
    stage: Stage | None = None
    addition: Layer | None = None
    for layer in layers:
        if layer.shortcut or layer.kind in ("identity", "tokens"):
            continue
        if layer.kind == "addition":
            addition = layer
        elif stage is not None and layer.kind in _THIN and addition is None:
            stage.layers.append(layer)
        else:
            if stage is not None:
                yield stage
            stage, addition = Stage([layer], addition), None
    if stage is not None:
        yield stage
