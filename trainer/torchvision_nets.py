"""The families `torchvision:NAME`: torchvision's classifiers, with a classifier of our own, and their weights from ImageNet."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainer.convnet import GlobalPool
from trainer.model_config import ModelConfig

if TYPE_CHECKING:
    from trainer.model import Classifier

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's, in units of 0 to 255: what torchvision's weights were trained with."""

_LEAST = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception": 75,
    "squeezenet": 21,
    "swin": 4,
    "vgg": 32,
}
"""The smallest images, pixels, of networks whose names begin so; all others take any."""

_PRETRAINED_VIT = {"vit_h_14": 518}
"""The images of those weights that are not for 224x224 pixels."""

_MOST_PARTS = 64


class Pixels(nn.Module):
    """Normalised images with three channels, gray ones three times, resized bilinearly to `size` = (H, W) if it is given."""

    def __init__(self, size: tuple[int, int] | None, smaller: bool) -> None:
        super().__init__()
        self.size, self.smaller = size, smaller

    def forward(self, maps: Tensor) -> Tensor:
        """`(N, 1 or 3, H, W)` to `(N, 3, H', W')`."""
        maps = maps.expand(-1, 3, -1, -1)
        if self.size is None:
            return maps
        return F.interpolate(maps, self.size, mode="bilinear", align_corners=False, antialias=self.smaller)


def build(config: ModelConfig, image_shape: tuple[int, int, int]) -> tuple[list[nn.Module], int]:
    """The layers before the classifier for images of `image_shape` = (C, H, W), and the units that they end with.

    Raises ValueError for images that are neither gray nor RGB, and for an `input_size` that the network does not take.
    """
    from torchvision import models

    name, (channels, *sides) = str(config.torchvision), image_shape
    if channels not in (1, 3):
        raise ValueError(f"{config.family} takes gray or RGB images, with 1 or 3 channels, but they have {channels}.")
    size = _size(config, name, (sides[0], sides[1]))
    arguments: dict[str, Any] = {}
    if name.startswith(("googlenet", "inception")):
        # Their weights are for another normalisation, which they do themselves after ImageNet's.
        arguments = {"aux_logits": False, "init_weights": True, "transform_input": config.pretrained}
    elif name.startswith("vit"):
        arguments = {"image_size": size[0]}
    elif name.startswith("maxvit"):
        arguments = {"input_size": size}
    with _WithNumbers() if name.startswith("regnet") else contextlib.nullcontext():
        network = models.get_model(name, weights=None, **arguments)
    network, units = _without_classifier(network)
    resized = None if [*size] == sides else size
    return [Pixels(resized, smaller=min(size) < min(sides)), network], units


class _WithNumbers(TorchFunctionMode):
    """torchvision counts a RegNet's widths and depths in tensors and reads them, which on the meta device have no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        more = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **{**(kwargs or {}), **more})


def _size(config: ModelConfig, name: str, sides: tuple[int, int]) -> tuple[int, int]:
    """The (H, W) of the images that the network gets."""
    wanted = config.input_size
    if name.startswith(("vit", "maxvit")):  # each patch has a place
        own = _PRETRAINED_VIT.get(name, 224) if config.pretrained else 224
        step = own if config.pretrained or name.startswith("maxvit") else int(name.rpartition("_")[2])
        if wanted % step or (config.pretrained and wanted > own):
            rule = f"0 or {own}" if config.pretrained else f"a multiple of {step}"
            raise ValueError(f"model.input_size of {config.family} must be {rule}, but got {wanted}.")
        side = wanted or own
        return side, side
    least = next((pixels for beginning, pixels in _LEAST.items() if name.startswith(beginning)), 1)
    if 0 < wanted < least:
        raise ValueError(f"model.input_size of {config.family} must be 0 or at least {least}, but got {wanted}.")
    return (wanted, wanted) if wanted else (max(sides[0], least), max(sides[1], least))


def _without_classifier(network: nn.Module) -> tuple[nn.Module, int]:
    """The network up to its last linear layer, and the units that this one has got."""
    kind, own = type(network).__name__, dict(network.named_children())
    if kind == "SqueezeNet":  # it convolves to maps of the classes and takes their means; ours takes the means first
        dropout, *_ = own["classifier"].children()
        network.classifier = nn.Sequential(dropout, nn.AdaptiveAvgPool2d(1))
        return network, 512
    if kind == "MNASNet":  # it refuses weights that do not come from a file of torch's own
        parts = OrderedDict(layers=own["layers"], pool=GlobalPool("average"), classifier=own["classifier"])
        network = nn.Sequential(parts)
    [*_, (name, last)] = [(n, part) for n, part in network.named_modules() if isinstance(part, nn.Linear)]
    network.set_submodule(name, nn.Identity())
    return network, last.in_features


def load_pretrained(model: Classifier, config: ModelConfig) -> None:
    """Give the network, but for its classifier, torchvision's weights from ImageNet.

    They are looked for in torch's cache (`TORCH_HOME`, or ~/.cache/torch) and downloaded if they are not there. Several processes
    of a node may call it at once. Raises RuntimeError when they can be neither found nor downloaded.
    """
    from torchvision import models

    name = str(config.torchvision)
    weights: Any = models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    try:
        with _download_alone(file), contextlib.redirect_stdout(sys.stderr):  # torch prints where it downloads to
            whole = models.get_model(name, weights=weights, progress=sys.stderr.isatty()).state_dict()
    except (OSError, HTTPException, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise RuntimeError(
            f"The pretrained weights of {config.family} were not found, whole, at {str(file)!r} and could not be downloaded "
            f"({str(error)[:300]}). Put {weights.url} there, say with TORCH_HOME where torch's cache is, or use model.pretrained=false."
        ) from error
    network = model.features[1]  # type: ignore[index]
    network.load_state_dict({key: whole[key] for key in network.state_dict()})


@contextlib.contextmanager
def _download_alone(file: Path) -> Iterator[None]:
    """One process of a node downloads the file; the others wait for it."""
    if file.exists():  # torch renames it when it is whole
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        yield


def parts_of(network: nn.Module) -> dict[str, nn.Module]:
    """What the network consists of, by name, in the order of its forward pass: blocks, or layers where 64 of them are enough."""
    found = dict(network.named_children())
    while True:
        finer = {name: part for whole in found.items() for name, part in _opened(*whole)}
        if len(finer) > _MOST_PARTS or finer.keys() == found.keys():
            return found
        found = finer


def _opened(name: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of one that only runs them one after the other, as a VisionTransformer's encoder does too; or itself."""
    if isinstance(part, nn.Sequential | nn.ModuleList) or type(part).__name__ == "Encoder":
        yield from ((f"{name}.{inner}", child) for inner, child in part.named_children())
    else:
        yield name, part


def last_maps(network: nn.Module) -> nn.Module:
    """The last part with convolutions, whose output is the last feature maps.

    Raises ValueError for a network of patches, which has none behind them.
    """
    kind = type(network).__name__
    if kind in ("VisionTransformer", "SwinTransformer"):
        raise ValueError(
            f"Grad-CAM shows where the last convolution of a network answers, and a {kind} has none behind its patches."
        )
    parts = parts_of(network).values()
    return [part for part in parts if any(isinstance(inner, nn.Conv2d) for inner in part.modules())][-1]
