"""The families of networks besides the convnet: `python -m pytest tests/test_families.py`."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cluster.config import make_config
from cluster.export import training_command
from cluster.options import assignments
from cluster.record import TrialRecord
from cluster.space import Space
from dashboard import network_chart, trial_tables
from dashboard.network_layout import WIDTH
from trainer.attention import grad_cam
from trainer.batches import ImageTensors
from trainer.bundle import Bundle, Origin, write_bundle
from trainer.data import DataConfig, ImageData
from trainer.domains import Value
from trainer.evaluation import evaluate
from trainer.hyperparameters import TrialConfig, flatten, in_short, parameters, refuse_without_effect, unflatten
from trainer.layers import describe_layers
from trainer.loop import create_model, predict_split, train
from trainer.metrics import EpochMetrics
from trainer.model import Classifier, build_model, parameter_count
from trainer.model_card import model_card
from trainer.objective import build_optimizers
from trainer.presets import PRESETS
from trainer.residual import Unit
from trainer.transformer import Attention, Cut, Positions

CPU = torch.device("cpu")
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


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run(flat: Flat, data: ImageData, **options: Any) -> tuple[list[EpochMetrics], Classifier]:
    config = unflatten(flat)
    model = create_model(config, data, CPU)
    parts = ImageTensors.of(data.train, CPU), ImageTensors.of(data.validation, CPU)
    return list(train(model, config, *parts, **options)), model


# ---- what comes out ----


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 12), (1, 1, 1)])
@EACH
def test_images_of_any_size_and_channels_become_finite_logits(flat: Flat, shape: tuple[int, int, int]) -> None:
    logits = build(flat, shape)(images_of(3, *shape))
    assert logits.shape == (3, 5)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@EACH
def test_an_images_logits_do_not_depend_on_its_batch(flat: Flat) -> None:
    model, images = build(flat), images_of(6, 3, 8, 8)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-4)


@EACH
def test_every_parameter_has_a_gradient(flat: Flat) -> None:
    model = build(flat | {"model.activation": "gelu"}, (3, 16, 16)).train()
    torch.autograd.backward(model(images_of(8, 3, 16, 16)).square().sum())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_dropout_works_in_training_alone_in_every_family() -> None:
    for flat in (RESNET, RNN, RNN | {"model.layers": 2}, TRANSFORMER):
        model, images = build(flat | {"model.dropout": 0.5}), images_of(4, 3, 8, 8)
        assert torch.equal(model(images), model(images))
        assert not torch.equal(model.train()(images), model(images))


@pytest.mark.parametrize("flat", [RESNET, RNN, TRANSFORMER], ids=["resnet", "rnn", "transformer"])
def test_images_are_laid_out_for_convolutions_only_where_there_are_any(flat: Flat) -> None:
    model, seen = build(flat, (3, 8, 8)), []
    model.features.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images_of(2, 3, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == (flat is RESNET)


# ---- what it computes ----


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("filters", [3, 6])
def test_a_residual_unit_adds_its_input_and_then_activates(filters: int, stride: int) -> None:
    torch.manual_seed(0)
    unit = Unit(3, filters, 3, stride, nn.ReLU).eval()
    first, norm_1, _, second, norm_2 = unit.convolutions
    maps = noise(2, 3, 7, 7)
    hidden = norm_1(F.conv2d(maps, first.weight, stride=stride, padding=1)).relu()
    out = norm_2(F.conv2d(hidden, second.weight, padding=1))
    shape_stays = filters == 3 and stride == 1
    matched = maps if shape_stays else unit.shortcut[1](F.conv2d(maps, unit.shortcut[0].weight, stride=stride))
    torch.testing.assert_close(unit(maps), (out + matched).relu())
    assert isinstance(unit.shortcut, nn.Identity) == shape_stays


def test_each_stage_but_the_first_halves_the_image() -> None:
    flat = {"model.family": "resnet", "model.filters": [4, 6, 8], "model.depth": [1, 2, 1]}
    model, shapes = build(flat, (3, 32, 20)), []
    for part in model.features:
        part.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    model(images_of(1, 3, 32, 20))
    assert shapes == [(4, 32, 20), (4, 32, 20), (6, 16, 10), (8, 8, 5), (8,)]
    assert [len(stage) for stage in model.features[1:4]] == [1, 2, 1]


@pytest.mark.parametrize("both_ways", [False, True])
def test_an_lstm_reads_the_rows_from_the_top(both_ways: bool) -> None:
    """By the formula of torch's documentation, with its order of the gates."""
    model = build(RNN | {"model.units": 4, "model.bidirectional": both_ways}, (3, 6, 5))
    lstm, images = model.features[1].layers, images_of(2, 3, 6, 5)
    pixels = (images - 100.0) / 50.0

    def read(rows: list[int], suffix: str) -> Tensor:
        weights = [getattr(lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        hidden = cell = torch.zeros(2, 4)
        for row in rows:
            gates = pixels[:, :, row].flatten(1) @ weights[0].T + hidden @ weights[1].T + weights[2] + weights[3]
            enter, forget, new, out = gates.chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
        return hidden

    remembered = read([0, 1, 2, 3, 4, 5], "")
    if both_ways:
        remembered = torch.cat([remembered, read([5, 4, 3, 2, 1, 0], "_reverse")], 1)
    torch.testing.assert_close(model(images), model.classifier(remembered))


@pytest.mark.parametrize(("cell", "kind", "gates"), [("lstm", nn.LSTM, 4), ("gru", nn.GRU, 3), ("simple", nn.RNN, 1)])
def test_the_cell_is_that_of_the_configuration(cell: str, kind: type[nn.Module], gates: int) -> None:
    model = build(RNN | {"model.cell": cell, "model.layers": 3})
    assert isinstance(model.features[1].layers, kind)
    expected = gates * 32 * (24 + 32 + 2) + 2 * gates * 32 * (32 + 32 + 2) + 32 * 5 + 5
    assert parameter_count(model) == expected


def test_attention_is_the_softmax_of_the_queries_and_keys() -> None:
    torch.manual_seed(0)
    attention, patches = Attention(3, 5), noise(2, 7, 15)
    weight, bias = attention.queries_keys_values.weight, attention.queries_keys_values.bias
    queries, keys, values = (patches @ w.T + b for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
    heads = []
    for head in range(3):
        q, k, v = (t[..., 5 * head : 5 * head + 5] for t in (queries, keys, values))
        heads.append((q @ k.transpose(1, 2) / math.sqrt(5)).softmax(2) @ v)
    torch.testing.assert_close(attention(patches), attention.merge(torch.cat(heads, 2)))


def test_patches_are_cut_row_by_row_from_an_image_that_is_padded_around() -> None:
    image = torch.arange(1.0, 16.0).view(1, 1, 3, 5)
    left, right = Cut(4, (3, 5))(image)[0].view(2, 4, 4).tolist()
    assert left == [[0, 1, 2, 3], [0, 6, 7, 8], [0, 11, 12, 13], [0, 0, 0, 0]]
    assert right == [[4, 5, 0, 0], [9, 10, 0, 0], [14, 15, 0, 0], [0, 0, 0, 0]]
    colours = noise(2, 3, 4, 6)
    patches = Cut(2, (4, 6))(colours)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[1, 4], colours[1, :, 2:4, 2:4].flatten())


def test_sines_tell_the_row_with_half_of_the_units_and_the_column_with_the_others() -> None:
    added = Positions("sinusoidal", (3, 4), 10)(torch.zeros(1, 12, 10))[0].view(3, 4, 10)
    assert torch.equal(added[:, :1, :5].expand(-1, 4, -1), added[:, :, :5])
    assert torch.equal(added[:1, :, 5:].expand(3, -1, -1), added[:, :, 5:])
    expected = [
        math.sin(2),
        math.cos(2),
        math.sin(2 / 10_000**0.4),
        math.cos(2 / 10_000**0.4),
        math.sin(2 / 10_000**0.8),
    ]
    torch.testing.assert_close(added[2, 0, :5], torch.tensor(expected))


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_only_positions_tell_a_transformer_where_a_patch_is(kind: str) -> None:
    model, images = build(TRANSFORMER | {"model.positions": kind}), images_of(4, 3, 8, 8)
    swapped = torch.cat([images[:, :, 4:], images[:, :, :4]], 2)  # upper and lower half: whole patches
    assert not torch.allclose(model(images), model(swapped), atol=1e-4)
    with torch.no_grad():
        model.features[1].positions.zero_()
    torch.testing.assert_close(model(images), model(swapped), atol=1e-5, rtol=1e-4)


@given(st.integers(1, 32), st.integers(1, 12), st.integers(1, 9), st.sampled_from(["learned", "sinusoidal"]))
def test_any_number_of_heads_of_any_size_makes_a_transformer(heads: int, units: int, patch: int, kind: str) -> None:
    flat: Flat = {"model.heads": heads, "model.head_units": units, "model.patch_size": patch, "model.positions": kind}
    assert build(TRANSFORMER | {"model.layers": 1} | flat, (1, 6, 7))(images_of(2, 1, 6, 7)).shape == (2, 5)


# ---- training ----

LEARNING: Flat = {"training.epochs": 6, "training.batch_size": 32, "training.precision": "float32"}


@pytest.mark.parametrize(
    "flat",
    [RESNET, RNN, RNN | BOTH_WAYS, TRANSFORMER | {"model.heads": 4}],
    ids=["resnet", "rnn", "gru", "transformer"],
)
def test_every_family_learns_the_digits(flat: Flat, digits: ImageData) -> None:
    metrics, _ = run(LEARNING | flat | {"optimizer.learning_rate": 0.01}, digits)
    assert metrics[-1].val_accuracy > 0.85


@EACH
def test_the_same_seed_gives_the_same_losses(flat: Flat, digits: ImageData) -> None:
    short = flat | {"training.epochs": 1, "training.batch_size": 256}
    (first,), _ = run(short, digits)
    (again,), _ = run(short, digits)
    (other,), _ = run(short | {"training.seed": 1}, digits)
    assert (first.train_loss, first.val_loss) == (again.train_loss, again.val_loss)
    assert first.train_loss != other.train_loss


@pytest.mark.parametrize("flat", [RESNET, RNN | BOTH_WAYS, TRANSFORMER], ids=["resnet", "rnn", "transformer"])
def test_every_family_trains_in_bfloat16(flat: Flat, digits: ImageData) -> None:
    short: Flat = {"training.epochs": 1, "training.batch_size": 256}
    (exact,), _ = run(flat | short | {"training.precision": "float32"}, digits)
    (rounded,), _ = run(flat | short | {"training.precision": "bfloat16"}, digits)
    assert rounded.train_loss == pytest.approx(exact.train_loss, rel=0.05)
    assert rounded.train_loss != exact.train_loss


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
@EACH
def test_every_parameter_is_moved_once_and_decay_shrinks_what_multiplies(flat: Flat, optimizer: str) -> None:
    model = build(flat)
    config = unflatten({"optimizer.name": optimizer, "optimizer.weight_decay": 0.1}).optimizer
    optimizers = build_optimizers(config, model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    moved = [id(p) for group in groups for p in group["params"]]
    assert sorted(moved) == sorted(id(p) for p in model.parameters())
    shrunk = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in shrunk}
    assert all("weight" in name for name in names)
    assert not any("positions" in name or "bias" in name for name in names)
    assert {name for name, p in model.named_parameters() if "weight" in name and p.ndim > 1} == names
    if optimizer == "muon":
        first = {id(p) for group in optimizers[0].param_groups for p in group["params"]}
        assert {name for name, p in model.named_parameters() if id(p) in first} == names - {"classifier.weight"}


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


# ---- bundles and cards ----

ORIGIN = Origin(sweep=None, trial=None, epochs=1, command="convsweep train --data digits")


@EACH
def test_a_bundle_gives_the_live_models_probabilities_for_any_number_of_images(
    flat: Flat, digits: ImageData, tmp_path: Path
) -> None:
    config = unflatten(flat)
    model = create_model(config, digits, CPU).eval()
    assert digits.test is not None
    scores = {"test": evaluate(predict_split(model, ImageTensors.of(digits.test, CPU)))}
    folder = tmp_path / "bundle"
    assert write_bundle(folder, model, config, digits, scores, {"one image": 0.1}, ORIGIN) <= 1e-4
    images = np.array(digits.test.images[:50])
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).softmax(1).numpy()
    bundle, graph = Bundle(folder), torch.export.load(folder / "model.pt2").module()
    for count in (1, 3, 50):
        from_graph = graph(torch.from_numpy(images[:count])).detach().numpy()
        np.testing.assert_allclose(from_graph, expected[:count], atol=1e-5)
        np.testing.assert_allclose(bundle.probabilities(images[:count]), expected[:count], atol=1e-5)


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({}, "A convolutional network that tells 10 classes apart"),
        (RESNET, "A residual network that tells 10 classes apart"),
        (RNN, "A recurrent network, which reads the rows of an image, that tells 10 classes apart"),
        (TRANSFORMER, "A vision transformer that tells 10 classes apart"),
    ],
)
def test_the_card_says_what_kind_of_network_it_is(flat: Flat, words: str, digits: ImageData) -> None:
    config = unflatten(flat)
    model = create_model(config, digits, CPU)
    scores = {"validation": evaluate(predict_split(model, ImageTensors.of(digits.validation, CPU)))}
    assert words in model_card(model, config, digits, scores, {}, "convsweep train --data digits")


@pytest.mark.parametrize(
    "flat", [*OF_EACH.values(), {"model.family": "torchvision:resnet18", "model.pretrained": True}]
)
def test_the_command_that_trains_it_again_says_the_same_configuration(flat: Flat) -> None:
    config = unflatten(flat | {"optimizer.learning_rate": 0.01})
    words = shlex.split(training_command(config, DataConfig(data="digits")))
    given = [after for word, after in itertools.pairwise(words) if word == "--set"]
    assert flatten(unflatten(assignments(given))) == flatten(config)


# ---- the hyperparameters ----


def test_a_hyperparameter_belongs_to_the_families_that_use_it() -> None:
    def of(family: str) -> set[str]:
        names = flatten(unflatten({"model.family": family}))
        return {name.split(".")[1] for name in names if name.startswith("model.")}

    every = {"family", "dropout", "test_time_flip"}
    assert of("resnet") == every | {"blocks", "kernel_size", "filters", "depth", "activation"}
    assert of("rnn") == every | {"cell", "units", "layers", "bidirectional"}
    assert of("transformer") == every | {"patch_size", "heads", "head_units", "layers", "positions"}
    assert of("torchvision:vgg11") == every | {"pretrained", "input_size"}
    assert not of("convnet") & {"depth", "cell", "units", "layers", "heads", "pretrained"}
    frozen = flatten(unflatten({"model.family": "torchvision:vgg11", "model.pretrained": True}))
    assert "model.frozen_epochs" in frozen


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({}, "kernels 3-3-3, filters 32-64-64, relu, adamw 0.003, batch 128"),
        ({"model.family": "resnet"}, "resnet 2-2-2, kernels 3-3-3, filters 32-64-64, relu, adamw 0.003, batch 128"),
        ({"model.family": "rnn"}, "rnn lstm, 2 x 128 units, adamw 0.003, batch 128"),
        (RNN | BOTH_WAYS, "rnn gru, 2 x 32 units, both ways, adamw 0.003, batch 128"),
        (TRANSFORMER, "transformer, patches 2x2, layers 2, heads 2 x 8, learned, adamw 0.003, batch 128"),
        ({"model.family": "torchvision:resnet18"}, "torchvision:resnet18, adamw 0.003, batch 128"),
        (
            {"model.family": "torchvision:resnet18", "model.pretrained": True},
            "torchvision:resnet18, pretrained, adamw 0.003, batch 128",
        ),
    ],
)
def test_a_configuration_in_short_says_what_tells_its_family_apart(flat: Flat, words: str) -> None:
    assert in_short(flatten(unflatten(flat))) == words


def test_a_configuration_from_before_there_were_families_is_a_convnets() -> None:
    flat = flatten(TrialConfig())
    old = {name: value for name, value in flat.items() if name != "model.family"}
    assert unflatten(old) == TrialConfig()
    assert in_short(old) == in_short(flat)
    space = Space({"model.family": ["convnet", "rnn"]}, {"training.epochs": 10, "training.seed": 0})
    assert space.part_of(old)["model.family"] == "convnet"
    assert not Space({"model.family": "rnn"}, {}).contains(old)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        (
            {"model.family": "torchvision:resnet81"},
            r"torchvision:NAME with one of.*Did you mean 'torchvision:resnet1?.*'\?",
        ),
        (
            {"model.family": "cnn"},
            r"must be one of convnet, resnet, rnn, transformer, torchvision:NAME with one of torch",
        ),
    ],
)
def test_an_unknown_family_is_answered_without_all_of_torchvisions_names(flat: Flat, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        unflatten(flat)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"model.units": 64}, r"model\.units has an effect only with model\.family = rnn, but here that is convnet"),
        ({"model.family": "rnn", "model.filters": 8}, r"only with model\.family = convnet or resnet, but .* is rnn"),
        ({"model.pretrained": True}, r"only with model\.family = torchvision:NAME, but here that is convnet"),
        (
            {"model.family": "torchvision:vgg11", "model.frozen_epochs": 1},
            r"only with model\.pretrained = true, but here that is False",
        ),
    ],
)
def test_what_has_no_effect_in_a_family_is_refused(flat: Flat, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_without_effect(flat, unflatten(flat))


# ---- the search ----


def test_by_default_only_convnets_are_searched() -> None:
    searched = Space({}, {}).searched()
    assert "model.family" not in searched
    assert {"model.blocks", "model.kernel_size.4", "model.head"} <= searched.keys()
    assert not {"model.units", "model.depth.1", "model.heads", "model.frozen_epochs"} & searched.keys()


@pytest.mark.parametrize(
    ("families", "searched", "absent"),
    [
        (["convnet", "resnet"], {"model.family", "model.depth.1", "model.pooling"}, {"model.units"}),
        (
            ["rnn", "transformer"],
            {"model.layers", "model.cell", "model.patch_size"},
            {"model.blocks", "model.filters.1"},
        ),
        (
            ["rnn"],
            {"model.units", "model.cell", "model.layers", "model.bidirectional"},
            {"model.family", "model.heads"},
        ),
        (
            ["torchvision:resnet18", "torchvision:vit_b_16"],
            {"model.family"},
            {"model.pretrained", "model.frozen_epochs"},
        ),
    ],
)
def test_a_space_of_other_families_proposes_valid_configurations_of_them(
    families: list[str], searched: set[str], absent: set[str]
) -> None:
    space = Space({"model.family": families}, {"training.epochs": 3})
    assert searched <= space.searched().keys()
    assert not absent & space.searched().keys()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))
    seen = set()
    for _ in range(25):
        trial = study.ask()
        config = space.suggest(trial)
        flat = flatten(config)
        assert unflatten(flat) == config
        assert trial.params == space.part_of(flat)
        assert space.contains(flat)
        seen.add(config.model.family)
        study.tell(trial, float(flat["optimizer.learning_rate"]))
    assert seen == set(families)


def test_frozen_epochs_are_searched_with_pretrained_networks() -> None:
    space = Space({"model.family": "torchvision:resnet18", "model.pretrained": [False, True]}, {})
    assert "model.frozen_epochs" in space.searched()
    narrow = Space({"model.family": "torchvision:resnet18", "model.pretrained": True}, {})
    assert "model.frozen_epochs" in flatten(narrow.suggest(optuna.create_study().ask()))


def test_a_grid_over_families_has_each_ones_combinations() -> None:
    fixed = {p.name: p.default[0] if p.per_block else p.default for p in parameters()}
    wanted = {
        "model.family": ["convnet", "resnet", "rnn"],
        "model.blocks": [1, 2],
        "model.filters": [8, 16],
        "model.units": [4, 8],
    }
    grid = list(Space(fixed | wanted, {}).grid())
    assert len(grid) == 2 * (2 + 4) + 2
    assert all(flatten(unflatten(flat)) == flat for flat in grid)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"model.units": [64, 128]},
            r"model\.units has an effect only with model\.family = rnn, but here that is convnet",
        ),
        ({"model.units": 64}, r"model\.units has an effect only with model\.family = rnn"),
        (
            {"model.family": ["rnn", "transformer"], "model.filters.2": 8},
            r"= convnet or resnet, but .* is rnn, transformer",
        ),
    ],
)
def test_searching_what_belongs_to_another_family_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config({"name": "s", "data": "digits", "space": space})


def test_a_sweep_over_other_families_leaves_the_recipe_out_and_keeps_the_baseline() -> None:
    config = make_config({"name": "s", "data": "mnist", "space": {"model.family": ["resnet", "rnn"]}})
    assert config.recipe_trial() is None
    assert config.baseline == "mnist-3conv"
    both = make_config({"name": "s", "data": "mnist", "space": {"model.family": ["convnet", "rnn"]}})
    assert both.recipe_trial() is not None


def test_a_first_trial_may_be_of_another_family_than_the_preset() -> None:
    first: list[Any] = [{"model.family": "rnn", "model.units": 16}]
    (config,) = make_config({"name": "s", "data": "digits", "first": first}).first_trials()
    assert (config.model.family, config.model.units) == ("rnn", 16)
    assert flatten(unflatten(flatten(config))) == flatten(config)


def test_a_trials_page_says_of_any_family_what_it_is_in_short() -> None:
    summary = trial_tables.summary(TrialRecord(0, "COMPLETE", 0.5, config=flatten(unflatten(RNN))))
    assert summary == ["rnn lstm, 1 x 32 units, adamw 0.003, batch 128"]


# ---- presets ----


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("mnist-rnn", (1, 28, 28), 4 * 128 * (28 + 128 + 2) + 128 * 10 + 10),
        (
            "mnist-transformer",
            (1, 28, 28),
            (49 * 64 + 64)
            + 16 * 64
            + 3 * (2 * 128 + 64 * 192 + 192 + 64 * 64 + 64 + 2 * 64 * 256 + 256 + 64)
            + 128
            + 650,
        ),
        ("mnist-resnet18", (1, 28, 28), 11_689_512 - 513 * 1000 + 513 * 10),  # torchvision's, for ten classes
        ("faces-cnn", (1, 64, 64), 9 * (32 + 32 * 64 + 64 * 128 + 128 * 128) + 2 * 352 + 128 * 40 + 40),
        ("faces-cnn", (3, 64, 64), 9 * (96 + 32 * 64 + 64 * 128 + 128 * 128) + 2 * 352 + 128 * 40 + 40),
    ],
)
def test_the_new_presets_have_the_parameters_of_their_layers(
    name: str, shape: tuple[int, int, int], expected: int
) -> None:
    classes = 40 if name == "faces-cnn" else 10
    model = build_model(PRESETS[name].model, shape, classes, [0.0] * shape[0], [1.0] * shape[0])
    assert parameter_count(model) == expected
