"""Where a sweep on a well-known data set begins: near the best known recipe rather than anywhere.

A recipe is a preset that such a sweep tries among its first trials, and the space around it that it searches unless the user
says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NEAR: dict[str, Any] = {
    "model.blocks": 3,
    "model.kernel_size": [3, 5],
    "model.convolutions": [1, 2],
    "model.pool_position": "first",
    "model.activation": ["relu", "gelu", "silu"],
    "model.pooling": "max",
    "model.whitening": True,
    "model.batch_norm": True,
    "model.head": ["average", "max"],
    "model.dense_units": 0,
    "model.dropout": {"low": 0.0, "high": 0.3},
    "augmentation.shift": [1, 2, 3, 4],
    "augmentation.cutout": [0, 4, 8],
    "loss.name": ["cross_entropy", "focal"],
    "optimizer.name": ["sgd", "adamw", "muon"],
    "optimizer.weight_decay": {"low": 1e-5, "high": 0.2, "log": True},
    "schedule.name": ["cosine", "one_cycle"],
    "training.batch_size": [128, 256, 512],
}

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "mnist-fast": _NEAR
        | {
            "model.filters.1": [16, 24],
            "model.filters.2": [32, 48],
            "model.filters.3": [64, 96],
        },
        "cifar10-fast": _NEAR
        | {
            "model.filters.1": [24, 32],
            "model.filters.2": [48, 64],
            "model.filters.3": [96, 128],
            "model.test_time_flip": True,
            "augmentation.flip": True,
        },
    }
)
"""By the preset's name, the space in the words of a sweep file's `space:`."""

UNMIRRORED: Mapping[str, Any] = MappingProxyType({"augmentation.flip": False, "model.test_time_flip": False})
"""Where a mirrored image shows something else: a mirrored 2 is no 2."""
