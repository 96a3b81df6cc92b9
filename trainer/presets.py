"""Named configurations: fixed points of the space, to start from and to compare with.

Four recipes answer to well-known tutorials: `mnist-3conv`, `mnist-1conv` and `cifar-3conv` are the Keras ones (Adam
0.001, valid padding, the last of three convolutions without pooling), `cifar-2conv` a PyTorch one. `mnist-fast` and
`cifar10-fast` are made for much accuracy in little time, after airbench (Jordan 2024, arXiv:2404.00498): a whitening layer,
convolution - pooling - batch normalisation - GELU, label smoothing, Muon, a learning rate that rises and falls, shifted images;
objects are mirrored too, every other epoch and when they are judged. `mnist-rnn`, `mnist-transformer` and `mnist-resnet18` are
networks of other families on the same digits, and `faces-cnn` is for folders of faces, of which there are few images of each person.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trainer.domains import Value
from trainer.hyperparameters import TrialConfig, nearest, unflatten

_KERAS: dict[str, Value] = {
    "model.padding": "valid",
    "model.kernel_size": 3,
    "model.batch_norm": False,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 0.001,
    "schedule.name": "constant",
}
_THREE_CONVOLUTIONS = _KERAS | {
    "model.blocks": 3,
    "model.filters.1": 32,
    "model.filters.2": 64,
    "model.filters.3": 64,
    "model.pool_last": False,
    "model.dense_units": 64,
    "training.batch_size": 32,
}
_FAST: dict[str, Value] = {
    "model.blocks": 3,
    "model.kernel_size": 3,
    "model.convolutions": 2,
    "model.pool_position": "first",
    "model.whitening": True,
    "model.activation": "gelu",
    "model.head": "max",
    "model.dense_units": 0,
    "augmentation.shift": 2,
    "loss.label_smoothing": 0.1,
    "optimizer.name": "muon",
    "optimizer.learning_rate": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.1,
    "schedule.name": "one_cycle",
    "schedule.warmup_fraction": 0.2,
    "training.batch_size": 256,
}

PRESETS: Mapping[str, TrialConfig] = MappingProxyType(
    {
        "default": TrialConfig(),
        "mnist-3conv": unflatten(_THREE_CONVOLUTIONS | {"training.epochs": 5}),
        "mnist-1conv": unflatten(
            _KERAS
            | {
                "model.blocks": 1,
                "model.filters": 32,
                "model.dense_units": 128,
                "training.batch_size": 128,
                "training.epochs": 10,
            }
        ),
        "cifar-3conv": unflatten(_THREE_CONVOLUTIONS | {"training.epochs": 10}),
        "cifar-2conv": unflatten(
            {
                "model.blocks": 2,
                "model.kernel_size": 3,
                "model.filters.1": 32,
                "model.filters.2": 64,
                "model.padding": "same",
                "model.batch_norm": False,
                "model.dense_units": 128,
                "optimizer.name": "sgd",
                "optimizer.learning_rate": 0.001,
                "optimizer.momentum": 0.9,
                "optimizer.nesterov": False,
                "schedule.name": "constant",
                "training.batch_size": 32,
                "training.epochs": 10,
            }
        ),
        "mnist-fast": unflatten(_FAST | {"model.filters": [16, 32, 64], "training.epochs": 6}),
        "cifar10-fast": unflatten(
            _FAST
            | {
                "model.filters": [24, 48, 96],
                "model.test_time_flip": True,
                "augmentation.flip": True,
                "augmentation.alternating_flip": True,
                "training.epochs": 8,
            }
        ),
        "mnist-rnn": unflatten(
            {
                "model.family": "rnn",
                "model.cell": "lstm",
                "model.units": 128,
                "model.layers": 1,
                "augmentation.shift": 1,
                "optimizer.learning_rate": 0.003,
                "training.epochs": 5,
            }
        ),
        "mnist-transformer": unflatten(
            {
                "model.family": "transformer",
                "model.patch_size": 7,
                "model.layers": 3,
                "model.heads": 4,
                "model.head_units": 16,
                "optimizer.name": "muon",
                "optimizer.learning_rate": 0.01,
                "training.epochs": 5,
            }
        ),
        "mnist-resnet18": unflatten(
            {
                "model.family": "torchvision:resnet18",
                "augmentation.shift": 2,
                "optimizer.learning_rate": 0.002,
                "training.epochs": 5,
            }
        ),
        "faces-cnn": unflatten(
            {
                "model.blocks": 4,
                "model.filters": [32, 64, 128, 128],
                "model.head": "average",
                "model.dense_units": 0,
                "model.dropout": 0.3,
                "augmentation.flip": True,
                "augmentation.shift": 4,
                "loss.label_smoothing": 0.1,
                "optimizer.weight_decay": 0.01,
                "training.batch_size": 32,
                "training.epochs": 40,
            }
        ),
    }
)


def preset(name: str) -> TrialConfig:
    """The preset called `name`; raises ValueError with the known names when there is none."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}.{nearest(name, PRESETS)} Presets: {', '.join(PRESETS)}.")
    return PRESETS[name]
