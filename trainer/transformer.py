"""The family `transformer`: attention between patches of the image (Dosovitskiy et al. 2021, arXiv:2010.11929).

Each layer normalises before its attention and before its MLP (Xiong et al. 2020, arXiv:2002.04745), and the patches' mean is classified.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model_config import ModelConfig

_MLP_RATIO = 4
"""Units of an MLP's hidden layer for each of its inputs', as in the paper."""


class Cut(nn.Module):
    """The image as a sequence of square patches, each with all of its pixels, row by row; the edges are padded with the mean."""

    def __init__(self, size: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.rows, self.columns = (-(-side // size) for side in image_size)
        below, right = self.rows * size - image_size[0], self.columns * size - image_size[1]
        self.padding = (right // 2, right - right // 2, below // 2, below - below // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Normalised images `(N, C, H, W)` to `(N, patches, C size size)`."""
        if any(self.padding):
            maps = F.pad(maps, self.padding)
        images, channels = maps.shape[:2]
        patches = maps.reshape(images, channels, self.rows, self.size, self.columns, self.size)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class Patches(nn.Sequential):
    """The image's patches, each as a vector of so many `units`: `(N, channels, H, W)` to `(N, patches, units)`."""

    def __init__(self, cut: Cut, channels: int, units: int) -> None:
        super().__init__(cut, nn.Linear(channels * cut.size**2, units))


class Positions(nn.Module):
    """Adds to each patch what tells its place: `learned`, or sines of its row and of its column, half of the units each.

    The sines are those of Vaswani et al. 2017 (arXiv:1706.03762): waves from 2 pi to 10,000 times 2 pi patches long.
    """

    positions: Tensor

    def __init__(self, kind: str, grid: tuple[int, int], units: int) -> None:
        super().__init__()
        self.kind = kind
        rows, columns = grid
        if kind == "learned":
            self.positions = nn.Parameter(torch.empty(rows * columns, units).normal_(std=0.02))
        else:
            down = _sinusoids(rows, units - units // 2)[:, None].expand(-1, columns, -1)
            across = _sinusoids(columns, units // 2)[None].expand(rows, -1, -1)
            self.register_buffer("positions", torch.cat([down, across], 2).flatten(0, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """`(N, patches, units)` to the same."""
        return patches + self.positions


def _sinusoids(places: int, units: int) -> Tensor:
    """`(places, units)`: sines at even units, cosines at odd ones."""
    unit = torch.arange(units)
    angles = torch.arange(places)[:, None] / 10_000 ** (2 * (unit // 2) / max(1, units))
    return torch.where(unit % 2 == 0, angles.sin(), angles.cos())


class Attention(nn.Module):
    """Multi-head attention: each patch gets a mean of all, weighted by softmax(Q K^T / sqrt(d)), in each head its own."""

    def __init__(self, heads: int, head_units: int) -> None:
        super().__init__()
        self.heads, self.head_units = heads, head_units
        units = heads * head_units
        self.queries_keys_values = nn.Linear(units, 3 * units)
        self.merge = nn.Linear(units, units)

    def forward(self, patches: Tensor) -> Tensor:
        """`(N, patches, units)` to the same."""
        split = self.queries_keys_values(patches).unflatten(2, (3, self.heads, self.head_units))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each (N, heads, patches, head_units)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return cast(Tensor, self.merge(attended.transpose(1, 2).flatten(2)))


class Residual(nn.Module):
    """What is `inside`, added to its input."""

    def __init__(self, *inside: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*inside)

    def forward(self, patches: Tensor) -> Tensor:
        """`(N, patches, units)` to the same."""
        return patches + cast(Tensor, self.inside(patches))


class Layer(nn.Sequential):
    """Attention, then an MLP for each patch, each normalised before it and added to its input."""

    def __init__(self, heads: int, head_units: int, dropout: float) -> None:
        units = heads * head_units
        hidden = _MLP_RATIO * units
        attention = [nn.LayerNorm(units), Attention(heads, head_units)]
        mlp = [nn.LayerNorm(units), nn.Linear(units, hidden), nn.GELU(), nn.Linear(hidden, units)]
        parts = (attention, mlp)
        super().__init__(*(Residual(*part, *([nn.Dropout(dropout)] if dropout else [])) for part in parts))


class MeanPatch(nn.Module):
    """The mean over all patches: `(N, patches, units)` to `(N, units)`."""

    def forward(self, patches: Tensor) -> Tensor:
        """`(N, patches, units)` to `(N, units)`."""
        return patches.mean(1)


def build(config: ModelConfig, image_shape: tuple[int, int, int]) -> tuple[list[nn.Module], int]:
    """The layers before the classifier for images of `image_shape` = (C, H, W), and the units that they end with."""
    channels, height, width = image_shape
    units = config.heads * config.head_units
    cut = Cut(config.patch_size, (height, width))
    layers: list[nn.Module] = [
        Patches(cut, channels, units),
        Positions(config.positions, (cut.rows, cut.columns), units),
        *(Layer(config.heads, config.head_units, config.dropout) for _ in range(config.layers)),
        nn.LayerNorm(units),
        MeanPatch(),
    ]
    return layers, units
