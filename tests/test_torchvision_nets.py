"""torchvision's classifiers as families of networks: `python -m pytest tests/test_torchvision_nets.py`."""

from __future__ import annotations

import json
import multiprocessing
import re
import socket
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from cluster.export import rebuild
from dashboard import pictures
from tests.written_bundles import ORIGIN
from trainer.attention import grad_cam
from trainer.batches import ImageTensors
from trainer.bundle import Bundle
from trainer.bundle_writing import write_bundle
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.data import DataConfig, ImageData, load_data
from trainer.hyperparameters import unflatten
from trainer.layers import describe_layers
from trainer.loop import create_model, train
from trainer.metrics import EpochMetrics
from trainer.model import Classifier, build_model, parameter_count
from trainer.objective import build_optimizers
from trainer.torchvision_names import FAMILIES, NAMES
from trainer.torchvision_nets import MEAN, STD, last_maps, load_pretrained, parts_of
from trainer.training_state import Position, TrainingState

CPU = torch.device("cpu")
SMALL = "shufflenet_v2_x0_5"
"""The smallest with batch normalisation: 350,000 parameters."""

ONE_OF_EACH_KIND = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "squeezenet1_1",
    "swin_t",
    "vgg11_bn",
    "vit_b_32",
)
OTHERS = sorted({*NAMES} - {*ONE_OF_EACH_KIND, SMALL})


def flat(name: str, **more: Any) -> dict[str, Any]:
    own = {f"model.{key}": value for key, value in more.items()}
    return {"model.family": f"torchvision:{name}", "training.precision": "float32"} | own


def build(name: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 5, **more: Any) -> Classifier:
    torch.manual_seed(0)
    config = unflatten(flat(name, **more)).model
    return build_model(config, shape, classes, [100.0] * shape[0], [50.0] * shape[0]).eval()


def images_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tensors(data: ImageData) -> tuple[ImageTensors, ImageTensors]:
    return ImageTensors.of(data.train, CPU), ImageTensors.of(data.validation, CPU)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


# ---- all of them ----


def test_the_names_are_those_of_torchvisions_classifiers() -> None:
    assert list(NAMES) == models.list_models(module=models)
    assert len(set(FAMILIES)) == len(NAMES)


def test_torchvision_is_imported_only_where_one_of_its_networks_is_built() -> None:
    program = "import sys, trainer.loop, trainer.layers, trainer.attention; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def check_on_meta(name: str) -> None:
    """Gray images of 6x5 pixels, on a device without numbers: the network gets from them what it needs."""
    described = describe_layers(unflatten(flat(name)).model, (1, 6, 5), 7)
    assert described[-1].output_shape == (7,)
    assert described[1].output_shape[0] == 3
    with torch.device("meta"):
        model = build_model(unflatten(flat(name)).model, (1, 6, 5), 7, [0.0], [1.0])
    assert sum(layer.parameters for layer in described) == parameter_count(model)
    assert len({layer.name for layer in described}) == len(described)
    assert model.classifier.weight.is_meta
    expected = models.get_model_weights(name).DEFAULT.meta["num_params"]
    bias = 0 if name == "maxvit_t" else 1
    in_features = model.classifier.in_features
    if name not in ("googlenet", "inception_v3", "vit_h_14"):  # which have other heads, or other images
        assert parameter_count(model) - 7 * (in_features + 1) == expected - 1000 * (in_features + bias)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_a_network_is_built_and_described_without_memory_for_its_weights(name: str) -> None:
    check_on_meta(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_so_is_every_other_one(name: str) -> None:
    check_on_meta(name)


@pytest.mark.parametrize("name", [SMALL, "squeezenet1_1", "mnasnet0_5", "resnet18", "mobilenet_v3_small"])
def test_a_network_trains_a_step_and_takes_its_weights_back_from_plain_tensors(name: str) -> None:
    model = build(name, (1, 9, 12)).train()
    torch.autograd.backward(model(images_of(4, 1, 9, 12)).square().sum())
    assert all(p.grad is not None for p in model.parameters())
    plain = dict(weights_of(model))  # as safetensors gives them
    again = build(name, (1, 9, 12))
    again.load_state_dict(plain)
    assert torch.equal(again(images_of(2, 1, 9, 12)), model.eval()(images_of(2, 1, 9, 12)))


# ---- what it computes ----


def test_a_network_computes_what_torchvisions_own_does_but_for_its_classifier() -> None:
    ours = build("resnet18")
    theirs = models.resnet18(num_classes=5).eval()
    theirs.load_state_dict(
        {f"fc.{name}": value for name, value in ours.classifier.state_dict().items()} | ours.features[1].state_dict()
    )
    images = images_of(4, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs((images - 100.0) / 50.0), atol=1e-5, rtol=1e-4)


def test_squeezing_takes_the_means_first() -> None:
    ours = build("squeezenet1_1", (3, 64, 64))
    theirs = models.squeezenet1_1(num_classes=5).eval()
    theirs.features.load_state_dict(ours.features[1].features.state_dict())
    kernel = ours.classifier.weight[:, :, None, None]
    maps = theirs.features((images_of(4, 3, 64, 64) - 100.0) / 50.0)
    expected = F.conv2d(maps, kernel, ours.classifier.bias).mean((2, 3))
    torch.testing.assert_close(ours(images_of(4, 3, 64, 64)), expected, atol=1e-5, rtol=1e-4)


def test_a_gray_image_is_one_whose_colours_are_the_same() -> None:
    gray, coloured = build(SMALL, (1, 32, 32)), build(SMALL, (3, 32, 32))
    images = images_of(4, 1, 32, 32)
    torch.testing.assert_close(gray(images), coloured(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(("side", "smaller"), [(64, False), (16, True)])
def test_images_are_resized_inside_the_network(side: int, smaller: bool) -> None:
    resized, plain = build(SMALL, (3, 32, 24), input_size=side), build(SMALL, (3, side, side))
    images = images_of(2, 3, 32, 24)
    pixels = F.interpolate((images - 100.0) / 50.0, (side, side), mode="bilinear", antialias=smaller)
    torch.testing.assert_close(resized(images), plain.classifier(plain.features(pixels)))


@pytest.mark.parametrize(
    ("name", "more", "size"),
    [
        ("resnet18", {}, (20, 12)),
        ("resnet18", {"input_size": 40}, (40, 40)),
        ("vgg11", {}, (32, 32)),
        ("densenet121", {}, (29, 29)),
        ("vit_b_32", {}, (224, 224)),
        ("vit_b_32", {"input_size": 64}, (64, 64)),
        ("vit_b_32", {"pretrained": True}, (224, 224)),
        ("vit_h_14", {"pretrained": True}, (518, 518)),
        ("maxvit_t", {}, (224, 224)),
    ],
)
def test_images_are_as_they_are_or_as_large_as_the_network_needs(
    name: str, more: dict[str, Any], size: tuple[int, int]
) -> None:
    with torch.device("meta"):
        pixels = build(name, (3, 20, 12), **more).features[0]
    assert (pixels.size or (20, 12)) == size


@pytest.mark.parametrize(
    ("name", "shape", "more", "message"),
    [
        ("resnet18", (2, 32, 32), {}, "takes gray or RGB images, with 1 or 3 channels, but they have 2"),
        ("vgg11", (3, 32, 32), {"input_size": 16}, "torchvision:vgg11 must be 0 or at least 32, but got 16"),
        ("vit_b_16", (3, 32, 32), {"input_size": 40}, "torchvision:vit_b_16 must be a multiple of 16, but got 40"),
        ("vit_b_16", (3, 32, 32), {"input_size": 64, "pretrained": True}, "must be 0 or 224, but got 64"),
        ("vit_b_16", (3, 32, 32), {"input_size": 448, "pretrained": True}, "must be 0 or 224, but got 448"),
        ("maxvit_t", (3, 32, 32), {"input_size": 64}, "must be a multiple of 224, but got 64"),
    ],
)
def test_images_that_a_network_does_not_take_are_answered_with_the_rule(
    name: str, shape: tuple[int, int, int], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, shape, **more)


def test_it_learns_the_digits(digits: ImageData) -> None:
    config = unflatten(
        flat(SMALL, input_size=32) | {"training.epochs": 3, "training.batch_size": 32, "optimizer.learning_rate": 0.01}
    )
    metrics = list(train(create_model(config, digits, CPU), config, *tensors(digits)))
    assert metrics[-1].val_accuracy > 0.6


# ---- its parts ----


def test_a_network_is_taken_apart_into_blocks() -> None:
    with torch.device("meta"):
        resnet, vit = models.resnet18(), models.vit_b_16()
    assert [*parts_of(resnet)][:6] == ["conv1", "bn1", "relu", "maxpool", "layer1.0", "layer1.1"]
    assert [*parts_of(vit)][:4] == [
        "conv_proj",
        "encoder.dropout",
        "encoder.layers.encoder_layer_0",
        "encoder.layers.encoder_layer_1",
    ]
    described = describe_layers(unflatten(flat("vit_b_32")).model, (3, 32, 32), 7)
    assert [layer.settings for layer in described if layer.kind == "tokens"] == ["class token and positions"]
    assert [layer.kind for layer in described].count("block") == 12


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet18", "layer4.1"),
        ("densenet121", "features.denseblock4"),
        ("googlenet", "inception5b"),
        ("vgg11", "features.18"),
        (SMALL, "conv5.0"),
    ],
)
def test_the_last_feature_maps_are_those_of_the_last_part_with_convolutions(name: str, last: str) -> None:
    with torch.device("meta"):
        network = build(name).features[1]
    assert last_maps(network) is network.get_submodule(last)


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_a_network_of_patches_has_no_feature_maps_to_look_at(name: str) -> None:
    with torch.device("meta"):
        network = build(name).features[1]
    with pytest.raises(ValueError, match="Transformer has none behind its patches"):
        last_maps(network)


def test_grad_cam_shows_where_a_network_looks() -> None:
    model = build("squeezenet1_1", (1, 64, 48))
    heats = [grad_cam(model, images_of(1, 64, 48).numpy(), label) for label in range(5)]
    assert {heat.shape for heat in heats} == {(64, 48)}
    assert max(heat.max() for heat in heats) == 1.0


def test_the_first_kernels_are_those_of_the_first_convolution(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    config = unflatten(flat(SMALL))
    model = build(SMALL, (1, 32, 32))
    store.save(0, Checkpoint(model.state_dict(), config, 1, 0.5))
    kernels = store.kernels(0)
    assert kernels is not None
    assert np.array_equal(kernels, model.features[1].conv1[0].weight.detach().numpy())
    assert pictures.response_pictures(kernels, images_of(1, 32, 32).numpy()).shape == (24, 32, 32, 3)
    stem, block = torch.zeros(4, 3, 3, 3), torch.ones(4, 4, 1, 1)
    weights = {"features.1.blocks.0.weight": block, "features.1.stem.0.0.weight": stem}
    store.save(1, Checkpoint(weights, config, 1, 0.5))
    assert np.array_equal(store.kernels(1), stem.numpy())
    store.save(2, Checkpoint({"features.1.weight_hh_l0": torch.zeros(4, 4)}, config, 1, 0.5))
    with pytest.raises(ValueError, match="no convolutions, so there are no kernels"):
        store.kernels(2)


# ---- pretrained ----


def planted_file(home: Path, name: str) -> Path:
    file = models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    return home / "hub" / "checkpoints" / file


def plant(home: Path, name: str, **more: Any) -> dict[str, Tensor]:
    """Weights, of a seed of their own, where torch looks for those that it has downloaded."""
    torch.manual_seed(5)
    weights: dict[str, Tensor] = models.get_model(name, weights=None, **more).state_dict()
    file = planted_file(home, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(old_names(weights) if name.startswith("densenet") else weights, file)
    return weights


def old_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the files of a DenseNet's weights have them, which are older than torchvision's names."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in weights.items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's, from a place without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def fail(url: str, *_: Any, **__: Any) -> None:
        raise urllib.error.URLError(f"there is no way to {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path / "torch"


@pytest.mark.parametrize(
    ("name", "more"), [(SMALL, {}), ("squeezenet1_1", {}), ("densenet121", {}), ("googlenet", {"init_weights": True})]
)
def test_pretrained_weights_come_from_torchs_cache(
    name: str, more: dict[str, Any], home: Path, digits: ImageData
) -> None:
    planted = plant(home, name, **more)
    model = create_model(unflatten(flat(name, pretrained=True)), digits, CPU)
    got = model.features[1].state_dict()
    assert len(got) > 20
    assert all(torch.equal(value, planted[key]) for key, value in got.items())
    plain = create_model(unflatten(flat(name)), digits, CPU)
    assert not equal(plain.features[1].state_dict(), got)
    assert torch.equal(plain.classifier.weight, model.classifier.weight)
    assert model.mean.flatten().tolist() == pytest.approx(MEAN)
    assert model.std.flatten().tolist() == pytest.approx(STD)
    assert torch.isfinite(model.eval()(torch.from_numpy(digits.train.images[:2]))).all()


def test_a_pretrained_network_takes_gray_images_with_imagenets_normalisation(home: Path, digits: ImageData) -> None:
    plant(home, SMALL)
    model = create_model(unflatten(flat(SMALL, pretrained=True)), digits, CPU).eval()
    images = torch.from_numpy(digits.train.images[:3])
    pixels = torch.cat(
        [(images / 255 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))], 1
    )
    torch.testing.assert_close(model(images), model.classifier(model.features(pixels)), atol=1e-5, rtol=1e-4)


def test_weights_that_can_be_neither_found_nor_downloaded_are_answered_with_what_to_do(
    home: Path, digits: ImageData
) -> None:
    with pytest.raises(RuntimeError, match="could not be downloaded") as error:
        create_model(unflatten(flat(SMALL, pretrained=True)), digits, CPU)
    for needed in (
        str(planted_file(home, SMALL)),
        "there is no way to https://",
        "TORCH_HOME",
        "model.pretrained=false",
    ):
        assert needed in str(error.value)


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04"])
def test_a_damaged_file_of_weights_is_named(content: bytes, home: Path, digits: ImageData) -> None:
    planted_file(home, SMALL).parent.mkdir(parents=True)
    planted_file(home, SMALL).write_bytes(content)
    with pytest.raises(RuntimeError, match="not found, whole, at ") as error:
        create_model(unflatten(flat(SMALL, pretrained=True)), digits, CPU)
    assert str(planted_file(home, SMALL)) in str(error.value)


def test_what_is_rebuilt_from_its_own_weights_downloads_nothing(home: Path, digits: ImageData, tmp_path: Path) -> None:
    planted = plant(home, SMALL)
    config = unflatten(flat(SMALL, pretrained=True))
    model = create_model(config, digits, CPU).eval()
    with torch.no_grad():
        model.features[1].conv1[0].weight.mul_(2)
    write_bundle(tmp_path / "bundle", model, config, digits, {}, ORIGIN)
    planted_file(home, SMALL).unlink()
    images = digits.train.images[:5]
    expected = model(torch.from_numpy(images))
    again = rebuild(Checkpoint(weights_of(model), config, 1, 0.5), digits)
    assert torch.equal(again(torch.from_numpy(images)), expected)
    assert torch.equal(again.features[1].conv1[0].weight, 2 * planted["conv1.0.weight"])
    probabilities = Bundle(tmp_path / "bundle").probabilities(np.array(images))
    np.testing.assert_allclose(probabilities, expected.softmax(1).detach().numpy(), atol=1e-5)


def test_processes_that_need_the_same_weights_download_them_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path / "elsewhere", SMALL)
    content = planted_file(tmp_path / "elsewhere", SMALL).read_bytes()
    downloads, both_are_here = [], threading.Barrier(2)

    def download(url: str, target: str, *_: Any, **__: Any) -> None:
        downloads.append(url)
        Path(f"{target}.part").write_bytes(content)
        Path(f"{target}.part").rename(target)  # as torch does it

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)

    def load(_: int) -> dict[str, Tensor]:
        model = build(SMALL, pretrained=True)
        both_are_here.wait()
        load_pretrained(model, unflatten(flat(SMALL, pretrained=True)).model)
        return model.features[1].state_dict()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load, range(2))
    assert len(downloads) == 1
    assert equal(first, second)
    assert capfd.readouterr().out == ""  # it is the command's own


# ---- frozen epochs ----

FROZEN = flat(SMALL, pretrained=True, frozen_epochs=1) | {"training.epochs": 2, "training.batch_size": 256}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "rmsprop"])
def test_frozen_epochs_train_the_classifier_alone(optimizer: str, home: Path, digits: ImageData) -> None:
    """Neither the gradient nor weight decay nor the counting of batch normalisation touches the rest."""
    plant(home, SMALL)
    config = unflatten(
        FROZEN | {"optimizer.name": optimizer, "optimizer.weight_decay": 0.1, "optimizer.learning_rate": 0.01}
    )
    model = create_model(config, digits, CPU)
    features, classifier = weights_of(model.features), weights_of(model.classifier)
    epochs = train(model, config, *tensors(digits))
    next(epochs)
    assert equal(weights_of(model.features), features)
    assert not equal(weights_of(model.classifier), classifier)
    next(epochs)
    changed = weights_of(model.features)
    assert not any(
        torch.equal(features[name], changed[name]) for name in changed if "weight" in name or "running" in name
    )


@pytest.mark.parametrize("more", [{}, {"pretrained": True}])
def test_without_frozen_epochs_all_is_trained_from_the_first(
    more: dict[str, Any], home: Path, digits: ImageData
) -> None:
    plant(home, SMALL)
    config = unflatten(flat(SMALL, **more) | {"training.epochs": 1, "training.batch_size": 1000})
    model = create_model(config, digits, CPU)
    before = weights_of(model.features)
    list(train(model, config, *tensors(digits)))
    assert not equal(weights_of(model.features), before)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop_at", [3, 7])
def test_training_goes_on_from_a_state_of_frozen_epochs_and_of_those_after_them(
    stop_at: int, optimizer: str, home: Path, digits: ImageData
) -> None:
    """An epoch has five steps."""
    plant(home, SMALL)
    config = unflatten(FROZEN | {"optimizer.name": optimizer})
    whole = create_model(config, digits, CPU)
    expected = list(train(whole, config, *tensors(digits)))
    calls = iter(range(100))
    model, position = create_model(config, digits, CPU), Position()
    optimizers = build_optimizers(config.optimizer, model)
    stop = lambda: next(calls) >= stop_at  # noqa: E731 -- counts its calls
    options: dict[str, Any] = {"optimizers": optimizers, "position": position}
    history = list(train(model, config, *tensors(digits), **options, should_stop=stop))
    assert len(history) == stop_at // 5
    written = TrainingState.of(model, optimizers, config, history, 1.0, position).to_bytes()
    planted_file(home, SMALL).unlink()
    state = TrainingState.from_bytes(written)
    fresh = create_model(config, digits, CPU, is_new=False)
    optimizers = build_optimizers(config.optimizer, fresh)
    state.restore(fresh, optimizers)
    rest = list(train(fresh, config, *tensors(digits), optimizers=optimizers, position=state.position))
    assert [m.train_loss for m in (*state.history, *rest)] == [m.train_loss for m in expected]
    assert equal(weights_of(fresh), weights_of(whole))


def test_two_ranks_freeze_together(home: Path, digits: ImageData, cache: Path, tmp_path: Path) -> None:
    """In the frozen epoch batch normalisation counts nothing, so that two ranks have the losses of one."""
    plant(home, SMALL)
    config = unflatten(FROZEN)
    (alone, _) = list(train(create_model(config, digits, CPU), config, *tensors(digits)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, port, str(cache), tmp_path)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for found in (first, second):
        frozen, trained = (EpochMetrics(**metrics) for metrics in found["metrics"])
        assert frozen.train_loss == pytest.approx(alone.train_loss, abs=1e-4)
        assert frozen.val_loss == pytest.approx(alone.val_loss, abs=1e-4)
        assert trained.epoch == 2
        assert found["features"][0] == found["features"][1] != found["features"][2]
    assert first["features"] == second["features"]


def _rank(rank: int, port: int, cache: str, folder: Path) -> None:
    """The sum of the features' weights before each of two epochs, and after them."""
    data = load_data(DataConfig(data="digits", cache=cache))
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    config = unflatten(FROZEN)
    model = create_model(config, data, CPU)

    def total() -> float:
        return sum(p.double().sum().item() for p in model.features.parameters())

    sums, metrics = [total()], []
    for epoch in train(model, config, *tensors(data), rank=rank, world_size=2):
        metrics.append(epoch.to_json())
        sums.append(total())
    (folder / f"{rank}.json").write_text(json.dumps({"metrics": metrics, "features": sums}))
    torch.distributed.destroy_process_group()
