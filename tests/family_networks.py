"""Small networks of every family besides the convnet, for the tests of what all of them must do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.domains import Value
from trainer.hyperparameters import unflatten
from trainer.model import Classifier, build_model

Flat = dict[str, Value]

RESNET: Flat = {"model.family": "resnet", "model.blocks": 2, "model.filters.1": 8, "model.filters.2": 16}
RNN: Flat = {"model.family": "rnn", "model.units": 32, "model.layers": 1}
TRANSFORMER: Flat = {
    "model.family": "transformer",
    "model.patch_size": 2,
    "model.layers": 2,
    "model.heads": 2,
    "model.head_units": 8,
}
BOTH_WAYS: Flat = {"model.cell": "gru", "model.bidirectional": True, "model.layers": 2, "model.dropout": 0.2}
OF_EACH: dict[str, Flat] = {
    "resnet": RESNET,
    "resnet, deep": RESNET
    | {"model.depth.1": 1, "model.depth.2": 3, "model.kernel_size": 5, "model.activation": "silu"},
    "rnn": RNN,
    "rnn, gru, both ways": RNN | BOTH_WAYS,
    "rnn, simple": RNN | {"model.cell": "simple", "model.units": 7},
    "transformer": TRANSFORMER,
    "transformer, sines": TRANSFORMER
    | {
        "model.positions": "sinusoidal",
        "model.patch_size": 3,
        "model.heads": 3,
        "model.head_units": 5,
        "model.dropout": 0.1,
    },
}
EACH = pytest.mark.parametrize("flat", OF_EACH.values(), ids=OF_EACH)


def build(flat: Mapping[str, Any], shape: tuple[int, int, int] = (3, 8, 8), classes: int = 5) -> Classifier:
    """With random weights, in eval mode."""
    torch.manual_seed(0)
    return build_model(unflatten(flat).model, shape, classes, [100.0] * shape[0], [50.0] * shape[0]).eval()


def images_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
