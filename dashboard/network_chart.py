"""The network as a picture, SVG: feature maps as boxes from left to right, vectors as columns of cells, shortcuts above."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from xml.sax.saxutils import escape

from dashboard.network_layout import SKEW, SLAB, WIDTH, Layout, Stage, window
from trainer.layers import Layer

_MOST_CELLS = 24
_COLOURS = {
    "input": "#94a3b8",
    "convolution": "#3b82f6",
    "pooling": "#f97316",
    "batch normalisation": "#14b8a6",
    "layer normalisation": "#14b8a6",
    "activation": "#fcd34d",
    "block": "#3b82f6",
    "attention": "#6366f1",
    "recurrent": "#6366f1",
    "resizing": "#94a3b8",
    "rows": "#a8a29e",
    "patches": "#a8a29e",
    "positions": "#0ea5e9",
    "last step": "#a8a29e",
    "flatten": "#a8a29e",
    "global pooling": "#a8a29e",
    "dense": "#8b5cf6",
    "dropout": "#ec4899",
    "classifier": "#22c55e",
}
_MOST_GROUPS = 8
"""With more of them there is no room to say more of a group than its name."""

_INK = {False: ("#1f2937", "#6b7280"), True: ("#f3f4f6", "#9ca3af")}

Point = tuple[float, float]


def draw(layers: Sequence[Layer], dark: bool = False) -> str:
    """The picture, 1000 wide, of the layers that `describe_layers` gives; with light ink for a dark page."""
    layout = Layout(layers)
    sizes = [layout.size(stage) for stage in layout.stages]
    lift = max(tall / 2 + deep * SKEW[1] for tall, deep in sizes)
    middle = lift + (44 if layout.shortcuts() else 14)
    floor = middle + max(tall for tall, _ in sizes) / 2
    picture = _Picture(layout, _INK[dark], middle)
    for stage, following in itertools.zip_longest(layout.stages, layout.stages[1:]):
        picture.stage(stage)
        if following is not None:
            picture.step(stage, following)
    for begin, end, inside in layout.shortcuts():
        picture.shortcut(begin, end, inside, middle - lift - 14)
    picture.sizes(floor + 18)
    picture.groups(floor + 50)
    picture.legend(floor + 122)
    height = round(floor + 136)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12.5">{"".join(picture.parts)}</svg>'
    )


class _Picture:
    """The elements of the drawing. `ink` is the colour of what matters and of the rest, `middle` the axis of all stages."""

    def __init__(self, layout: Layout, ink: tuple[str, str], middle: float) -> None:
        self.layout, self.ink, self.middle = layout, ink, middle
        self.parts: list[str] = []

    def stage(self, stage: Stage) -> None:
        """The boxes of feature maps, or a column of cells; thin slabs for what leaves the shape as it is."""
        tall, deep = self.layout.size(stage)
        x, top = stage.x, self.middle - tall / 2
        first = self.layout.right(stage) - SLAB * (len(stage.layers) - 1)
        for i, layer in enumerate(stage.layers):
            end = first + SLAB * i
            colour = _COLOURS[layer.kind]
            if stage.is_box:
                self._box((x, top), end, tall, deep, colour)
            elif i == 0:
                self._cells((x, top), end, tall, min(stage.shape[0], _MOST_CELLS), colour)
            else:
                self._box((x, top), end, tall, 0.0, colour)
            x = end

    def _box(self, corner: Point, end: float, tall: float, deep: float, colour: str) -> None:
        x, top = corner
        dx, dy, edge = self.layout.skewed(deep), deep * SKEW[1], _mixed(colour, "#000000", 0.35)
        thin = f'stroke="{edge}" stroke-width="0.7"'
        front = [(x, top), (end, top), (end, top + tall), (x, top + tall)]
        lid = [(x, top), (end, top), (end + dx, top - dy), (x + dx, top - dy)]
        side = [(end, top), (end + dx, top - dy), (end + dx, top - dy + tall), (end, top + tall)]
        self._polygon(front, colour, thin)
        if deep:
            self._polygon(lid, _mixed(colour, "#ffffff", 0.45), thin)
            self._polygon(side, _mixed(colour, "#000000", 0.18), thin)

    def _cells(self, corner: Point, end: float, tall: float, cells: int, colour: str) -> None:
        (x, top), each = corner, tall / cells
        gap = min(1.0, each / 4)
        for i in range(cells):
            self.parts.append(
                f'<rect x="{x:.1f}" y="{top + i * each:.1f}" width="{end - x:.1f}" height="{each - gap:.1f}" rx="1.5" '
                f'fill="{colour}"/>'
            )

    def step(self, stage: Stage, following: Stage) -> None:
        """What leads to the next stage: a kernel's window that becomes one pixel, or lines between the ends of two columns."""
        tall, deep = self.layout.size(stage)
        right, reach = self.layout.right(stage), self.layout.reach(stage)
        if following.added:
            self._line([(right + reach, self.middle), (following.x, self.middle)], self.ink[1], 'stroke-width="1"')
        elif following.is_box and stage.is_box:
            self._window(stage, following)
        else:
            lift = deep * SKEW[1] / 2
            far = self.layout.size(following)[0] / 2
            for side in (-1, 1):
                near = self.middle - lift + side * (tall / 2 - lift)
                ends = [(right + reach + 2, near), (following.x - 2, self.middle + side * far)]
                self._line(ends, self.ink[1], 'stroke-width="0.7" stroke-opacity="0.7" stroke-dasharray="3 2"')

    def _window(self, stage: Stage, following: Stage) -> None:
        (tall, deep), right = self.layout.size(stage), self.layout.right(stage)
        across, down = (min(0.7, window(following.layers[0]) / pixels) for pixels in (stage.shape[2], stage.shape[1]))

        def on_side(u: float, v: float) -> Point:
            return right + self.layout.skewed(u * deep), self.middle + (v - 0.5) * tall - u * deep * SKEW[1]

        left, top = 0.5 - across / 2, 0.45 - down / 2
        corners = [
            on_side(u, v)
            for u, v in ((left, top), (left + across, top), (left + across, top + down), (left, top + down))
        ]
        target = (following.x, self.middle - 0.05 * tall)
        for corner in corners[1:3]:
            self._line([corner, target], self.ink[1], 'stroke-width="0.7" stroke-opacity="0.8"')
        self._polygon(corners, "#ffffff", 'fill-opacity="0.35" stroke="#ffffff" stroke-width="0.9"')
        self.parts.append(f'<circle cx="{target[0]:.1f}" cy="{target[1]:.1f}" r="1.8" fill="{self.ink[1]}"/>')

    def shortcut(self, begin: Stage, end: Stage, inside: Sequence[Layer], y: float) -> None:
        """The way around a block, over it at height `y`, to the sign of the addition."""
        tall, deep = self.layout.size(begin)
        start = begin.x + (self.layout.thickness(begin) + self.layout.reach(begin)) / 2
        stop, bend, colour = end.x - 9, 10, _COLOURS["convolution"]
        path = (
            f"M{start:.1f} {self.middle - tall / 2 - deep * SKEW[1]:.1f} V{y + bend:.1f} "
            f"Q{start:.1f} {y:.1f} {start + bend:.1f} {y:.1f} H{stop - bend:.1f} "
            f"Q{stop:.1f} {y:.1f} {stop:.1f} {y + bend:.1f} V{self.middle - 8:.1f}"
        )
        self.parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.4" stroke-dasharray="5 3"/>')
        self.parts.append(f'<circle cx="{stop:.1f}" cy="{self.middle:.1f}" r="8" fill="{colour}"/>')
        for dx, dy in ((4, 0), (0, 4)):
            ends = [(stop - dx, self.middle - dy), (stop + dx, self.middle + dy)]
            self._line(ends, "#ffffff", 'stroke-width="1.6"')
        steps = [f"{window(x)}×{window(x)} {x.kind}" for x in inside if x.kind != "identity"]
        self._text((start + stop) / 2, y - 6, ", ".join(steps) or "identity", quiet=True, size=11)

    def sizes(self, y: float) -> None:
        """Under each stage its filters or units, and the size of its maps; of sequences, where there is room, steps and units."""
        free = 0.0
        for i, stage in enumerate(self.layout.stages):
            if stage.added:
                continue
            x = (stage.x + self.layout.right(stage)) / 2
            if len(stage.shape) == 2:
                text = "×".join(map(str, stage.shape))
                if x - 4 * len(text) > free:
                    self._text(x, y, text, bold=True)
                    free = x + 4 * len(text)
                continue
            self._text(x, y, f"{stage.shape[0]:,}", bold=True)
            if stage.is_box and not self.layout.is_crowded(i):
                self._text(x, y + 14, f"{stage.shape[1]}×{stage.shape[2]}", quiet=True, size=11)

    def groups(self, y: float) -> None:
        """Under each block, and under the head, a brace with its name, its kernels and its parameters."""
        begins = [
            i for i, stage in enumerate(self.layout.stages) if i > 0 and stage.group != self.layout.stages[i - 1].group
        ]
        ends = [self.layout.stages[i].x - 8 for i in begins[1:]] + [self.layout.end]
        for i, end in zip(begins, ends, strict=True):
            x, group = self.layout.stages[i].x, self.layout.stages[i].group
            brace = [(x, y - 5), (x, y), (end, y), (end, y - 5)]
            self._line(brace, self.ink[1], 'stroke-width="0.8" stroke-opacity="0.6"')
            inside = [layer for layer in self.layout.layers if layer.group == group]
            if len(begins) > _MOST_GROUPS:
                self._text((x + end) / 2, y + 17, group.rpartition(" ")[2].capitalize(), bold=True)
                continue
            self._text((x + end) / 2, y + 17, group.capitalize(), bold=True)
            self._text((x + end) / 2, y + 33, _in_short(inside), quiet=True, size=11.5)
            parameters = sum(layer.parameters for layer in inside)
            self._text((x + end) / 2, y + 48, f"{parameters:,} parameters", quiet=True, size=11.5)

    def legend(self, y: float) -> None:
        """What the colours mean."""
        shown = {layer.kind: layer for stage in self.layout.stages for layer in stage.layers}
        texts = {k: f"{k} ({shown[k].settings})" if k == "activation" else k for k in _COLOURS if k in shown}
        widths = {kind: 30 + 6.3 * len(text) for kind, text in texts.items()}
        x = (WIDTH - sum(widths.values())) / 2
        for kind, text in texts.items():
            colour = _COLOURS[kind]
            self.parts.append(f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="11" height="11" rx="2.5" fill="{colour}"/>')
            self._text(x + 16, y, text, quiet=True, size=11.5, anchor="start")
            x += widths[kind]

    def _line(self, points: Sequence[Point], colour: str, more: str) -> None:
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" {more}/>')

    def _polygon(self, points: Sequence[Point], fill: str, more: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{path}" fill="{fill}" stroke-linejoin="round" {more}/>')

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        quiet: bool = False,
        bold: bool = False,
        size: float = 12.5,
        anchor: str = "middle",
    ) -> None:
        width = 0.58 * size * len(text)  # about; nothing is to reach beyond the edges
        x = min(max(x, width / 2 + 2), WIDTH - width / 2 - 2) if anchor == "middle" else x
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{self.ink[quiet]}" font-size="{size}" text-anchor="{anchor}"{weight}>'
            f"{escape(text)}</text>"
        )


def _in_short(layers: Sequence[Layer]) -> str:
    by_kind = {layer.kind: layer for layer in layers}
    if "block" in by_kind:
        blocks = [layer for layer in layers if layer.kind == "block"]
        return f"{len(blocks)} blocks" if len(blocks) > 1 else blocks[0].settings
    for kind in ("attention", "recurrent", "patches"):
        if kind in by_kind:
            return by_kind[kind].settings
    convolutions = [layer for layer in layers if layer.kind == "convolution" and not layer.shortcut]
    dense = [layer for layer in layers if layer.kind == "dense"]
    if convolutions:
        size = f"{window(convolutions[0])}×{window(convolutions[0])}"
        return f"{len(convolutions)} × {size} kernels" if len(convolutions) > 1 else f"{size} kernels"
    return f"{dense[0].output_shape[0]:,} dense units" if dense else layers[0].kind


def _mixed(colour: str, other: str, share: float) -> str:
    """A colour with that share of another one."""
    pairs = [(int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
