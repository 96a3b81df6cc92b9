"""The families of networks besides the convnet, what they compute and how they train: `python -m pytest tests/test_families.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.family_networks import BOTH_WAYS, EACH, RESNET, RNN, TRANSFORMER, Flat, build, images_of
from trainer.batches import ImageTensors
from trainer.data import ImageData
from trainer.hyperparameters import unflatten
from trainer.loop import create_model, train
from trainer.metrics import EpochMetrics
from trainer.model import Classifier, parameter_count
from trainer.objective import build_optimizers
from trainer.residual import Unit
from trainer.transformer import Attention, Cut, Positions

CPU = torch.device("cpu")


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
