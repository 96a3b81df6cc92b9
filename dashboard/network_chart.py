"""The network as a picture, SVG: feature maps as boxes from left to right, vectors as columns of cells, shortcuts above."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from trainer.layers import Layer

WIDTH = 1000
_SIDE = 26
_TALLEST = 150.0
_SKEW = (0.30, 0.22)
"""How far a box reaches to the right and up for each pixel of its depth."""
_GAPS = (10.0, 58.0)
_SLAB = 5.0
_COLUMN = 13.0
_MOST_CELLS = 24
_COLOURS = {
    "input": "#94a3b8",
    "convolution": "#3b82f6",
    "pooling": "#f97316",
    "batch normalisation": "#14b8a6",
    "activation": "#fcd34d",
    "flatten": "#a8a29e",
    "global pooling": "#a8a29e",
    "dense": "#8b5cf6",
    "dropout": "#ec4899",
    "classifier": "#22c55e",
}
_INK = {False: ("#1f2937", "#6b7280"), True: ("#f3f4f6", "#9ca3af")}


@dataclass
class _Stage:
    """What is drawn at one place: the output of `layers[0]`, and of the ones behind it that leave its shape as it is."""

    layers: list[Layer]
    added: bool = False
    x: float = 0.0

    @property
    def first(self) -> Layer:
        return self.layers[0]

    @property
    def is_box(self) -> bool:
        return len(self.first.output_shape) == 3


@dataclass
class _Drawing:
    """The stages with their measures. `squeeze`, 1 or less, narrows the boxes of a long network so that all of them fit."""

    stages: list[_Stage]
    image: tuple[int, ...]
    ink: tuple[str, str]
    squeeze: float = 1.0
    parts: list[str] = field(default_factory=list)

    def thickness(self, stage: _Stage) -> float:
        if not stage.is_box:
            return _COLUMN + _SLAB * (len(stage.layers) - 1)
        first = 0.0 if stage.added else (4 + 2.2 * math.sqrt(stage.first.output_shape[0])) * self.squeeze
        return first + _SLAB * (len(stage.layers) - (0 if stage.added else 1))

    def size(self, stage: _Stage) -> tuple[float, float]:
        """The height of the front, and the depth."""
        if stage.is_box:
            tall, deep = (
                _TALLEST * (pixels / max(self.image[1:])) ** 0.62 + 4 for pixels in stage.first.output_shape[1:]
            )
            return tall, deep
        return min(_TALLEST + 30, 26 + 3.2 * math.sqrt(stage.first.output_shape[0])), 0.0

    def reach(self, stage: _Stage) -> float:
        """How far it reaches to the right of its front."""
        return self.skewed(self.size(stage)[1])

    def skewed(self, depth: float) -> float:
        """How far that much of depth reaches to the right."""
        return depth * _SKEW[0] * self.squeeze

    def line(self, points: Sequence[tuple[float, float]], colour: str, more: str = "") -> None:
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" {more}/>')

    def shape(self, points: Sequence[tuple[float, float]], fill: str, edge: str, more: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{path}" fill="{fill}" stroke="{edge}" stroke-linejoin="round" {more}/>')

    def text(self, x: float, y: float, text: str, quiet: bool = False, more: str = "") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="{self.ink[quiet]}" {more}>{escape(text)}</text>')


def draw(layers: Sequence[Layer], dark: bool = False) -> str:
    """The picture, 1000 wide, of the layers that `describe_layers` gives; with light ink for a dark page."""
    drawing = _Drawing(list(_stages(layers)), layers[0].output_shape, _INK[dark])
    end = _place(drawing)
    shortcuts = _shortcuts(layers, drawing.stages)
    lift = max(drawing.size(s)[0] / 2 + drawing.size(s)[1] * _SKEW[1] for s in drawing.stages)
    middle = lift + (44 if shortcuts else 14)
    floor = middle + max(drawing.size(s)[0] for s in drawing.stages) / 2
    for stage, following in itertools.zip_longest(drawing.stages, drawing.stages[1:]):
        _draw_stage(drawing, stage, middle)
        if following is not None:
            _draw_step(drawing, stage, following, middle)
    for before, stage in zip([None, *drawing.stages], drawing.stages, strict=False):
        _label(drawing, before, stage, floor + 18)
    for begin, stop, text in shortcuts:
        _draw_shortcut(drawing, begin, stop, text, middle, middle - lift - 14)
    _label_groups(drawing, layers, end, floor + 50)
    height = floor + 136
    _legend(drawing, layers, height - 14)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="12.5">{"".join(drawing.parts)}</svg>'
    )


def _stages(layers: Sequence[Layer]) -> Iterator[_Stage]:
    stage: _Stage | None = None
    added = False
    for layer in layers:
        if layer.shortcut or layer.kind == "identity":
            continue
        if layer.kind == "addition":
            added = True
        elif added or stage is None or layer.kind not in ("batch normalisation", "activation", "dropout"):
            if stage is not None:
                yield stage
            stage, added = _Stage([layer], added), False
        else:
            stage.layers.append(layer)
    if stage is not None:
        yield stage


def _place(drawing: _Drawing) -> float:
    """Give the stages their places from left to right; returns where the last one ends."""
    stages, room = drawing.stages, WIDTH - 2 * _SIDE

    def needed() -> float:
        return sum(drawing.thickness(s) + drawing.reach(s) for s in stages)

    gaps = len(stages) - 1
    full = needed()
    drawing.squeeze = 0.0
    fixed = needed()
    drawing.squeeze = min(1.0, (room - gaps * _GAPS[0] - fixed) / (full - fixed))
    gap = min(_GAPS[1], max(_GAPS[0], (room - needed()) / max(1, gaps)))
    x = _SIDE + max(0.0, (room - needed() - gaps * gap) / 2)
    for stage in stages:
        stage.x = x
        x += drawing.thickness(stage) + drawing.reach(stage) + gap
    return x - gap


def _draw_stage(drawing: _Drawing, stage: _Stage, middle: float) -> None:
    tall, deep = drawing.size(stage)
    x, right = stage.x, stage.x + drawing.thickness(stage)
    top = middle - tall / 2
    for i, layer in enumerate(stage.layers):
        slab = i > 0 or stage.added
        end = min(right, x + _SLAB) if slab else right - _SLAB * (len(stage.layers) - 1)
        if stage.is_box:
            _draw_box(drawing, x, end, top, tall, deep, _COLOURS.get(layer.kind, _COLOURS["activation"]))
        else:
            _draw_column(drawing, x, end, top, tall, layer, slab)
        x = end


def _draw_box(drawing: _Drawing, x: float, end: float, top: float, tall: float, deep: float, colour: str) -> None:
    dx, dy, edge = drawing.skewed(deep), deep * _SKEW[1], _mixed(colour, "#000000", 0.35)
    thin = 'stroke-width="0.7"'
    drawing.shape([(x, top), (end, top), (end, top + tall), (x, top + tall)], colour, edge, thin)
    lid = [(x, top), (end, top), (end + dx, top - dy), (x + dx, top - dy)]
    drawing.shape(lid, _mixed(colour, "#ffffff", 0.45), edge, thin)
    side = [(end, top), (end + dx, top - dy), (end + dx, top - dy + tall), (end, top + tall)]
    drawing.shape(side, _mixed(colour, "#000000", 0.18), edge, thin)


def _draw_column(drawing: _Drawing, x: float, end: float, top: float, tall: float, layer: Layer, slab: bool) -> None:
    colour = _COLOURS.get(layer.kind, _COLOURS["activation"])
    if slab:
        edge = _mixed(colour, "#000000", 0.35)
        drawing.shape([(x, top), (end, top), (end, top + tall), (x, top + tall)], colour, edge, 'stroke-width="0.7"')
        return
    cells = min(layer.output_shape[0], _MOST_CELLS)
    each = tall / cells
    for i in range(cells):
        drawing.parts.append(
            f'<rect x="{x:.1f}" y="{top + i * each + 0.5:.1f}" width="{end - x:.1f}" height="{each - 1:.1f}" rx="2" '
            f'fill="{colour}"/>'
        )


def _draw_step(drawing: _Drawing, stage: _Stage, following: _Stage, middle: float) -> None:
    """What leads to the next stage: a kernel's window that becomes one pixel, or the lines between two columns."""
    tall, deep = drawing.size(stage)
    right, quiet = stage.x + drawing.thickness(stage), drawing.ink[1]
    if following.is_box and not following.added:
        _, rows, columns = stage.first.output_shape
        window = _window(following.first)
        u, v = (min(0.7, window / pixels) for pixels in (columns, rows))
        left, up = 0.5 - u / 2, 0.45 - v / 2

        def on_side(across: float, down: float) -> tuple[float, float]:
            return right + drawing.skewed(across * deep), middle - tall / 2 + down * tall - across * deep * _SKEW[1]

        corners = [on_side(left, up), on_side(left + u, up), on_side(left + u, up + v), on_side(left, up + v)]
        target = (following.x, middle - 0.05 * tall)
        for corner in corners[1:3]:
            drawing.line([corner, target], quiet, 'stroke-width="0.7" stroke-opacity="0.8"')
        drawing.shape(corners, "#ffffff", "#ffffff", 'fill-opacity="0.35" stroke-width="0.9"')
        drawing.parts.append(f'<circle cx="{target[0]:.1f}" cy="{target[1]:.1f}" r="1.8" fill="{quiet}"/>')
    elif following.added:
        drawing.line([(right + drawing.reach(stage), middle), (following.x, middle)], quiet, 'stroke-width="1"')
    else:
        begin = right + drawing.reach(stage)
        lift = deep * _SKEW[1] / 2
        height = drawing.size(following)[0]
        for side in (-1, 1):
            ends = [(begin + 2, middle - lift + side * (tall / 2 - (lift if stage.is_box else 0)))]
            ends.append((following.x - 2, middle + side * height / 2))
            drawing.line(ends, quiet, 'stroke-width="0.7" stroke-opacity="0.7" stroke-dasharray="3 2"')


def _window(layer: Layer) -> int:
    """The width of what becomes one pixel: of a convolution's kernel; pooling takes 2x2."""
    size = layer.settings.split("x", 1)[0]
    return int(size) if layer.kind == "convolution" and size.isdigit() else 2


def _label(drawing: _Drawing, before: _Stage | None, stage: _Stage, y: float) -> None:
    if stage.added:
        return
    x = stage.x + drawing.thickness(stage) / 2
    shape = stage.first.output_shape
    drawing.text(x, y, f"{shape[0]:,}", more='text-anchor="middle" font-weight="600"')
    crowded = drawing.squeeze < 1 and before is not None and before.first.output_shape[1:] == shape[1:]
    if stage.is_box and not crowded:
        drawing.text(x, y + 14, f"{shape[1]}×{shape[2]}", quiet=True, more='text-anchor="middle" font-size="11"')


def _shortcuts(layers: Sequence[Layer], stages: Sequence[_Stage]) -> list[tuple[_Stage, _Stage, str]]:
    """From which stage to which one, and through what."""
    found = []
    for i, stage in enumerate(stages):
        if stage.added:
            group = stage.first.group
            begin = next(j for j, s in enumerate(stages) if s.first.group == group) - 1
            inside = [layer for layer in layers if layer.shortcut and layer.group == group]
            steps = [f"{_window(x)}×{_window(x)} {x.kind}" for x in inside if x.kind != "identity"]
            found.append((stages[begin], stages[i], ", ".join(steps) or "identity"))
    return found


def _draw_shortcut(drawing: _Drawing, begin: _Stage, stop: _Stage, text: str, middle: float, y: float) -> None:
    tall, deep = drawing.size(begin)
    x = begin.x + (drawing.thickness(begin) + drawing.reach(begin)) / 2
    start = middle - tall / 2 - deep * _SKEW[1]
    end = stop.x - 9
    colour, bend = _COLOURS["convolution"], 10
    path = (
        f"M{x:.1f} {start:.1f} V{y + bend:.1f} Q{x:.1f} {y:.1f} {x + bend:.1f} {y:.1f} H{end - bend:.1f} "
        f"Q{end:.1f} {y:.1f} {end:.1f} {y + bend:.1f} V{middle - 8:.1f}"
    )
    drawing.parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.4" stroke-dasharray="5 3"/>')
    drawing.parts.append(f'<circle cx="{end:.1f}" cy="{middle:.1f}" r="8" fill="{colour}"/>')
    for across, down in ((4, 0), (0, 4)):
        ends = [(end - across, middle - down), (end + across, middle + down)]
        drawing.line(ends, "#ffffff", 'stroke-width="1.6"')
    drawing.text((x + end) / 2, y - 6, text, quiet=True, more='text-anchor="middle" font-size="11"')


def _label_groups(drawing: _Drawing, layers: Sequence[Layer], end: float, y: float) -> None:
    for group, found in itertools.groupby(drawing.stages, key=lambda stage: stage.first.group):
        if group == "input":
            continue
        stages = list(found)
        following = drawing.stages.index(stages[-1]) + 1
        stop = drawing.stages[following].x - 8 if following < len(drawing.stages) else end
        x, middle = stages[0].x, (stages[0].x + stop) / 2
        quiet = drawing.ink[1]
        drawing.line([(x, y - 5), (x, y), (stop, y), (stop, y - 5)], quiet, 'stroke-width="0.8" stroke-opacity="0.6"')
        inside = [layer for layer in layers if layer.group == group]
        parameters = sum(layer.parameters for layer in inside)
        drawing.text(middle, y + 17, group.capitalize(), more='text-anchor="middle" font-weight="600"')
        for i, text in enumerate((_summary(inside), f"{parameters:,} parameters")):
            drawing.text(middle, y + 33 + 15 * i, text, quiet=True, more='text-anchor="middle" font-size="11.5"')


def _summary(layers: Sequence[Layer]) -> str:
    kernels = [layer for layer in layers if layer.kind == "convolution" and not layer.shortcut]
    if kernels:
        size = _window(kernels[0])
        return f"{len(kernels)} × {size}×{size}" if len(kernels) > 1 else f"{size}×{size} kernels"
    dense = [layer for layer in layers if layer.kind == "dense"]
    return f"{dense[0].output_shape[0]:,} dense units" if dense else layers[0].kind


def _legend(drawing: _Drawing, layers: Sequence[Layer], y: float) -> None:
    kinds = [kind for kind in _COLOURS if any(layer.kind == kind and not layer.shortcut for layer in layers)]
    names = {layer.kind: layer.settings for layer in layers if layer.kind == "activation"}
    texts = [f"{kind} ({names[kind]})" if names.get(kind) else kind for kind in kinds]
    widths = [30 + 6.3 * len(text) for text in texts]
    x = (WIDTH - sum(widths)) / 2
    for kind, text, width in zip(kinds, texts, widths, strict=True):
        drawing.parts.append(
            f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="11" height="11" rx="2.5" fill="{_COLOURS[kind]}"/>'
        )
        drawing.text(x + 16, y, text, quiet=True, more='font-size="11.5"')
        x += width


def _mixed(colour: str, other: str, share: float) -> str:
    """A colour with that share of another one."""
    pairs = [(int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
