"""Networks of every family layer by layer, drawn, and where they look: `python -m pytest tests/test_family_layers.py`."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dashboard import network_chart
from dashboard.network_layout import WIDTH
from tests.family_networks import BOTH_WAYS, EACH, OF_EACH, RESNET, RNN, TRANSFORMER, Flat, build, images_of
from trainer.attention import grad_cam
from trainer.hyperparameters import unflatten
from trainer.layers import describe_layers
from trainer.model import parameter_count

# ---- layer by layer ----


@EACH
def test_the_layers_parameters_add_up_and_their_names_are_unique(flat: Flat) -> None:
    described = describe_layers(unflatten(flat).model, (3, 9, 12), 7)
    assert sum(layer.parameters for layer in described) == parameter_count(build(flat, (3, 9, 12), 7))
    assert len({layer.name for layer in described}) == len(described)
    assert described[-1].output_shape == (7,)
    assert {layer.kind for layer in described} <= network_chart._COLOURS.keys() | {"addition", "identity"}


def test_a_resnet_is_described_unit_by_unit() -> None:
    flat = RESNET | {"model.depth.1": 1, "model.depth.2": 2}
    described = describe_layers(unflatten(flat).model, (3, 8, 8), 5)
    second = [layer for layer in described if layer.group == "stage 2"]
    assert [(layer.kind, layer.unit, layer.shortcut, layer.output_shape) for layer in second if layer.unit == 1] == [
        ("convolution", 1, False, (16, 4, 4)),
        ("batch normalisation", 1, False, (16, 4, 4)),
        ("activation", 1, False, (16, 4, 4)),
        ("convolution", 1, False, (16, 4, 4)),
        ("batch normalisation", 1, False, (16, 4, 4)),
        ("convolution", 1, True, (16, 4, 4)),
        ("batch normalisation", 1, True, (16, 4, 4)),
        ("addition", 1, False, (16, 4, 4)),
        ("activation", 1, False, (16, 4, 4)),
    ]
    assert [layer.kind for layer in second if layer.unit == 2 and layer.shortcut] == ["identity"]
    assert second[0].name == "stage 2 convolution 1"
    assert second[0].settings == "3x3 kernels, padding 1, stride 2"


def test_an_rnn_is_described() -> None:
    described = describe_layers(unflatten(RNN | BOTH_WAYS).model, (3, 8, 6), 5)
    assert [(layer.name, layer.output_shape, layer.settings) for layer in described[1:]] == [
        ("rows", (8, 18), ""),
        ("recurrent", (8, 64), "GRU, 2 layers, both ways"),
        ("last step", (64,), ""),
        ("dropout", (64,), "0.2 of the values, in training only"),
        ("classifier", (5,), "64 to 5"),
    ]


def test_a_transformer_is_described_layer_by_layer() -> None:
    described = describe_layers(unflatten(TRANSFORMER | {"model.layers": 1}).model, (3, 8, 6), 5)
    assert [(layer.name, layer.output_shape, layer.settings) for layer in described[1:]] == [
        ("patches patches", (12, 12), "2x2 pixels"),
        ("patches dense", (12, 16), "12 to 16"),
        ("patches positions", (12, 16), "learned"),
        ("layer 1 layer normalisation 1", (12, 16), ""),
        ("layer 1 attention", (12, 16), "2 heads of 8 units"),
        ("layer 1 addition 1", (12, 16), "of the shortcut"),
        ("layer 1 layer normalisation 2", (12, 16), ""),
        ("layer 1 dense 1", (12, 64), "16 to 64"),
        ("layer 1 activation", (12, 64), "GELU"),
        ("layer 1 dense 2", (12, 16), "64 to 16"),
        ("layer 1 addition 2", (12, 16), "of the shortcut"),
        ("layer normalisation", (12, 16), ""),
        ("global pooling", (16,), "average over all patches"),
        ("classifier", (5,), "16 to 5"),
    ]


DEEP: dict[str, Flat] = {
    "resnet, very deep": RESNET | {"model.blocks": 5, "model.depth": 48},
    "transformer, very deep": TRANSFORMER | {"model.layers": 32},
    "transformer, as deep as is drawn in parts": TRANSFORMER | {"model.layers": 7},
    "torchvision": {"model.family": "torchvision:resnet50"},
    "torchvision, patches": {"model.family": "torchvision:vit_b_32"},
}


@pytest.mark.parametrize("flat", [*OF_EACH.values(), *DEEP.values()], ids=[*OF_EACH, *DEEP])
def test_every_network_fits_into_its_drawing(flat: Flat) -> None:
    layers = describe_layers(unflatten(flat).model, (3, 32, 32), 10)
    root = ET.fromstring(network_chart.draw(layers))
    height = int(root.attrib["height"])
    for element in root.iter():
        points = element.attrib.get("points") or element.attrib.get("d", "")
        numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", points)]
        assert all(-0.01 <= n <= WIDTH for n in numbers)
        assert 0 <= float(element.attrib.get("x", 0)) <= WIDTH
        assert 0 <= float(element.attrib.get("y", 0)) <= height


@pytest.mark.parametrize(("flat", "signs"), [(RESNET, 4), (TRANSFORMER, 4), (RNN, 0)])
def test_a_drawing_has_a_sign_for_each_addition(flat: Flat, signs: int) -> None:
    root = ET.fromstring(network_chart.draw(describe_layers(unflatten(flat).model, (3, 32, 32), 10)))
    circles = [element for element in root.iter() if element.tag.endswith("circle") and element.attrib["r"] == "8"]
    assert len(circles) == signs


# ---- where it looks ----


def test_grad_cam_looks_at_the_last_residual_unit() -> None:
    model, image = build(RESNET), images_of(3, 8, 8).numpy()
    last = model.features[2][-1].convolutions[3]
    kept: list[Tensor] = []
    handle = last.register_forward_hook(lambda _, __, output: kept.append(output))
    score = model(torch.tensor(image)[None])[0, 2]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    heat = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu().detach()
    heat = F.interpolate(heat, (8, 8), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(grad_cam(model, image, 2), heat / heat.max(), atol=1e-5)


@pytest.mark.parametrize("flat", [RNN, TRANSFORMER], ids=["rnn", "transformer"])
def test_grad_cam_of_a_network_without_convolutions_is_refused(flat: Flat) -> None:
    with pytest.raises(ValueError, match="this network has no convolutions"):
        grad_cam(build(flat), images_of(3, 8, 8).numpy(), 0)
