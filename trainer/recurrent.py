"""The family `rnn`: the image is read row by row, from the top, and classified by what is remembered at its end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.model_config import ModelConfig

_CELLS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {"lstm": nn.LSTM, "gru": nn.GRU, "simple": nn.RNN}


class Rows(nn.Module):
    """The image as a sequence of its rows: `(N, C, H, W)` to `(N, H, C W)`."""

    def forward(self, maps: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, H, C W)`."""
        return maps.transpose(1, 2).flatten(2)


class Recurrent(nn.Module):
    """torch's recurrent `layers`, in float32 on a GPU: autocast would have cuDNN's in float16, in which small gradients vanish."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, rows: Tensor) -> Any:
        """`(N, steps, values)` to what the layers give: the outputs `(N, steps, directions x units)`, and the last state."""
        if rows.is_cuda and torch.is_autocast_enabled("cuda"):
            with torch.autocast("cuda", enabled=False):
                return self.layers(rows.float())
        return self.layers(rows)


class LastStep(nn.Module):
    """What the last layer remembers after all rows; of two directions, what each does at its own end."""

    def __init__(self, directions: int) -> None:
        super().__init__()
        self.directions = directions

    def forward(self, output: tuple[Tensor, Tensor | tuple[Tensor, Tensor]]) -> Tensor:
        """What torch's recurrent layers give, to `(N, directions x units)`."""
        _, state = output
        hidden = state[0] if isinstance(state, tuple) else state  # an LSTM has its cells beside it
        return torch.cat(tuple(hidden[-self.directions :]), 1)


def build(config: ModelConfig, image_shape: tuple[int, int, int]) -> tuple[list[nn.Module], int]:
    """The layers before the classifier for images of `image_shape` = (C, H, W), and the units that they end with."""
    channels, _, width = image_shape
    directions = 2 if config.bidirectional else 1
    recurrent = _CELLS[config.cell](
        channels * width,
        config.units,
        config.layers,
        batch_first=True,
        dropout=config.dropout if config.layers > 1 else 0.0,  # it is between the layers
        bidirectional=config.bidirectional,
    )
    return [Rows(), Recurrent(recurrent), LastStep(directions)], directions * config.units
