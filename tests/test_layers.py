"""The network layer by layer: `python -m pytest tests/test_layers.py`."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.convnet import Block
from trainer.hyperparameters import ModelConfig
from trainer.layers import Layer, describe_layers
from trainer.model import Classifier, build_model, parameter_count

KINDS = {
    "input",
    "convolution",
    "pooling",
    "batch normalisation",
    "activation",
    "identity",
    "addition",
    "flatten",
    "global pooling",
    "dense",
    "dropout",
    "classifier",
}


def small(**options: Any) -> ModelConfig:
    return ModelConfig(**({"blocks": 2, "filters": (4, 6), "kernel_size": (3, 5), "dense_units": 10} | options))


def real(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> Classifier:
    return build_model(config, shape, classes, [0.0] * shape[0], [1.0] * shape[0]).eval()


def family() -> list[Any]:
    heads = itertools.cycle(("flatten", "average", "max"))
    paddings = itertools.cycle(("same", "same", "valid"))
    return [
        pytest.param(
            small(
                convolutions=convolutions,
                residual=residual,
                batch_norm=batch_norm,
                pooling=pooling,
                head=next(heads),
                padding=(padding := next(paddings)),
                dropout=0.25 if batch_norm else 0.0,
                dense_units=0 if residual else 10,
            ),
            id=f"{convolutions}-{residual=}-{batch_norm=}-{pooling}-{padding}",
        )
        for convolutions, residual, batch_norm, pooling in itertools.product(
            (1, 2), (False, True), (False, True), ("max", "average")
        )
    ]


def test_a_small_network_is_described_layer_by_layer() -> None:
    described = describe_layers(small(dropout=0.25), (3, 8, 10), 5)
    assert described == [
        Layer("input", "input", (3, 8, 10), 0, "values 0 to 255, normalised", "input"),
        Layer("block 1 convolution", "convolution", (4, 8, 10), 108, "3x3 kernels, padding 1", "block 1"),
        Layer("block 1 pooling", "pooling", (4, 4, 5), 0, "maximum of 2x2", "block 1"),
        Layer("block 1 batch normalisation", "batch normalisation", (4, 4, 5), 8, "", "block 1"),
        Layer("block 1 activation", "activation", (4, 4, 5), 0, "ReLU", "block 1"),
        Layer("block 2 convolution", "convolution", (6, 4, 5), 600, "5x5 kernels, padding 2", "block 2"),
        Layer("block 2 pooling", "pooling", (6, 2, 2), 0, "maximum of 2x2", "block 2"),
        Layer("block 2 batch normalisation", "batch normalisation", (6, 2, 2), 12, "", "block 2"),
        Layer("block 2 activation", "activation", (6, 2, 2), 0, "ReLU", "block 2"),
        Layer("flatten", "flatten", (24,), 0, "", "head"),
        Layer("dense", "dense", (10,), 250, "24 to 10", "head"),
        Layer("activation", "activation", (10,), 0, "ReLU", "head"),
        Layer("dropout", "dropout", (10,), 0, "0.25 of the values, in training only", "head"),
        Layer("classifier", "classifier", (5,), 55, "10 to 5", "head"),
    ]


def test_a_shortcut_lies_between_the_blocks_input_and_its_addition() -> None:
    config = small(filters=(4, 4), kernel_size=(3, 3), convolutions=2, residual=True, batch_norm=False)
    described = describe_layers(config, (3, 8, 8), 5)
    by_block = {
        group: [(layer.name.removeprefix(f"{group} "), layer.shortcut, layer.output_shape) for layer in layers]
        for group, layers in itertools.groupby(described, lambda layer: layer.group)
    }
    assert by_block["block 1"] == [
        ("convolution 1", False, (4, 8, 8)),
        ("activation 1", False, (4, 8, 8)),
        ("convolution 2", False, (4, 8, 8)),
        ("pooling", False, (4, 4, 4)),
        ("shortcut convolution", True, (4, 8, 8)),
        ("shortcut pooling", True, (4, 4, 4)),
        ("addition", False, (4, 4, 4)),
        ("activation 2", False, (4, 4, 4)),
    ]
    assert by_block["block 2"][4:] == [
        ("shortcut identity", True, (4, 4, 4)),
        ("shortcut pooling", True, (4, 2, 2)),
        ("addition", False, (4, 2, 2)),
        ("activation 2", False, (4, 2, 2)),
    ]


def test_the_whitening_layer_is_described_and_a_test_time_flip_describes_no_layer_twice() -> None:
    config = small(whitening=True, test_time_flip=True)
    described = describe_layers(config, (3, 9, 9), 5)
    assert described[1:3] == [
        Layer("whitening convolution", "convolution", (24, 8, 8), 0, "2x2 kernels, padding 0, fixed", "whitening"),
        Layer("whitening activation", "activation", (24, 8, 8), 0, "ReLU", "whitening"),
    ]
    assert sum(layer.parameters for layer in described) == parameter_count(real(config, (3, 9, 9), 5))
    assert [layer.group for layer in described].count("input") == 1


def test_a_shortcut_without_pooling_is_described_too() -> None:
    """Images of one pixel are never pooled: the shortcut is a single module, which has none inside."""
    config = small(blocks=1, filters=(3,), kernel_size=(3,), residual=True, batch_norm=False, dense_units=0)
    for channels, shortcut in ((3, "identity"), (2, "convolution")):
        described = describe_layers(config, (channels, 1, 1), 5)
        assert [(layer.kind, layer.shortcut) for layer in described] == [
            ("input", False),
            ("convolution", False),
            (shortcut, True),
            ("addition", False),
            ("activation", False),
            ("flatten", False),
            ("classifier", False),
        ]


@pytest.mark.parametrize("config", family())
def test_the_parameters_add_up_to_those_of_the_network(config: ModelConfig) -> None:
    described = describe_layers(config, (3, 24, 24), 7)
    assert sum(layer.parameters for layer in described) == parameter_count(real(config, (3, 24, 24), 7))


@pytest.mark.parametrize("config", family())
def test_the_shapes_are_those_of_a_real_image_on_its_way(config: ModelConfig) -> None:
    """Outputs that the forward pass names, of blocks and of the head, on the CPU."""
    model, shapes = real(config, (3, 24, 24), 7), []

    def note(_: nn.Module, __: object, output: Tensor) -> None:
        shapes.append(tuple(output.shape[1:]))

    for part in (*model.features.children(), model.classifier):
        part.register_forward_hook(note)
    model(torch.zeros(1, 3, 24, 24, dtype=torch.uint8))
    described = describe_layers(config, (3, 24, 24), 7)
    groups = [list(layers) for _, layers in itertools.groupby(described, lambda layer: layer.group)]
    ends = [layers[-1].output_shape for layers in groups[1:-1]] + [layer.output_shape for layer in groups[-1]]
    assert ends == shapes
    blocks = sum(isinstance(part, Block) for part in model.features.children())
    assert [layers[0].group for layers in groups] == ["input", *(f"block {i + 1}" for i in range(blocks)), "head"]


@pytest.mark.parametrize("config", family())
def test_names_are_unique_and_kinds_are_those_that_are_documented(config: ModelConfig) -> None:
    described = describe_layers(config, (3, 24, 24), 7)
    assert len({layer.name for layer in described}) == len(described)
    assert {layer.kind for layer in described} <= KINDS


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        ("relu", "ReLU"),
        ("leaky_relu", "LeakyReLU"),
        ("gelu", "GELU"),
        ("silu", "SiLU"),
        ("tanh", "Tanh"),
        ("sigmoid", "Sigmoid"),
    ],
)
def test_every_activation_is_one_and_says_which(activation: str, name: str) -> None:
    described = describe_layers(small(activation=activation), (1, 8, 8), 3)
    assert [layer.settings for layer in described if layer.kind == "activation"] == [name] * 3


@pytest.mark.parametrize(
    ("options", "name", "settings"),
    [
        ({"head": "max"}, "global pooling", "maximum over all pixels"),
        ({"head": "average"}, "global pooling", "average over all pixels"),
        ({"pooling": "average"}, "block 1 pooling", "average of 2x2"),
        ({"padding": "valid", "kernel_size": (3, 3)}, "block 1 convolution", "3x3 kernels, padding 0"),
        ({"filters": (4, 2000)}, "dense", "8,000 to 10"),
    ],
)
def test_settings_tell_layers_of_a_kind_apart(options: dict[str, Any], name: str, settings: str) -> None:
    described = describe_layers(small(**options), (1, 8, 8), 3)
    assert [layer.settings for layer in described if layer.name == name] == [settings]


def test_a_network_that_cannot_be_built_is_refused_as_building_it_is() -> None:
    with pytest.raises(ValueError, match=r"model\.kernel_size\.2 = 5 with model\.padding = valid"):
        describe_layers(small(padding="valid"), (1, 8, 8), 3)


def test_describing_takes_no_memory_and_draws_no_random_numbers() -> None:
    """Two dense layers of together 200 GB: only a network without weights can be that large."""
    before = torch.get_rng_state()
    described = describe_layers(small(filters=(64, 2048), dense_units=4096), (3, 320, 320), 10)
    assert sum(layer.parameters for layer in described) > 5e10
    assert torch.equal(torch.get_rng_state(), before)
