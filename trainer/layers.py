"""The network layer by layer, in the order of its forward pass: what a table or a drawing of it shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trainer.hyperparameters import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

_KINDS = {
    "Conv2d": "convolution",
    "MaxPool2d": "pooling",
    "AvgPool2d": "pooling",
    "BatchNorm2d": "batch normalisation",
    "Identity": "identity",
    "Flatten": "flatten",
    "GlobalPool": "global pooling",
    "Linear": "dense",
    "Dropout": "dropout",
}
"""What a module is called by its class; those of any other class are activations."""


@dataclass(frozen=True)
class Layer:
    """One layer. `name` is unique in its network, such as "block 2 convolution".

    `kind` is one of input, convolution, pooling, batch normalisation, activation, identity, addition, flatten, global
    pooling, dense, dropout, classifier. `output_shape` is that of one image: (F, H, W), or (units,) behind the feature
    maps. `parameters` is how many trained numbers it has, `settings` what else tells it from others, in words ("3x3
    kernels, padding 1"), or empty. `group` is input, whitening, block 1 to block 5, or head.

    Layers with `shortcut` lie beside the others of their block, from the block's input to its layer of the kind addition.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    settings: str
    group: str
    shortcut: bool = False


def describe_layers(config: ModelConfig, image_shape: tuple[int, int, int], classes: int) -> list[Layer]:
    """The layers of the network that `build_model` makes for images of `image_shape` = (C, H, W).

    The network is built without memory for its weights (torch's meta device) and run once: it takes milliseconds, and
    draws no random numbers. The layers' parameters add up to the network's. Raises ValueError where `build_model` does.
    """
    import torch

    from trainer.model import Block, Whitening, build_model

    channels = image_shape[0]
    with torch.device("meta"):
        config = replace(config, test_time_flip=False)  # which would run the same layers twice
        model = build_model(config, image_shape, classes, [0.0] * channels, [1.0] * channels).eval()
        images = torch.empty((1, *image_shape), dtype=torch.uint8)
    watch = _Watch(image_shape)
    watch.layers_of(model.classifier, "head", kind="classifier")
    block = 0
    for part in model.features.children():
        if isinstance(part, Block):
            block += 1
            watch.layers_of(part, f"block {block}")
            if part.shortcut is not None:
                watch.shortcut(part.shortcut, part.activation, f"block {block}")
        else:
            watch.layers_of(part, "whitening" if isinstance(part, Whitening) else "head")
    with torch.inference_mode():
        model(images)
    return _named(watch.layers)


class _Watch:
    """Writes down the layers of a network while it runs, by hooks on its modules."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self.layers = [Layer("input", "input", image_shape, 0, "values 0 to 255, normalised", "input")]
        self._in_shortcut = False

    def shortcut(self, shortcut: nn.Module, activation: nn.Module, group: str) -> None:
        """Watch when the network runs through a block's shortcut, and the addition before the block's `activation`.

        The block's pooling is one module for both branches: only the time tells which of them it works for.
        """

        def enter(*_: Any) -> None:
            self._in_shortcut = True

        def leave(*_: Any) -> None:
            self._in_shortcut = False

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.layers.append(Layer("", "addition", tuple(inputs[0].shape[1:]), 0, "of the shortcut", group))

        shortcut.register_forward_pre_hook(enter)
        shortcut.register_forward_hook(leave)
        activation.register_forward_pre_hook(add)

    def layers_of(self, part: nn.Module, group: str, kind: str | None = None) -> None:
        """Watch the modules in `part` that have none inside."""

        from trainer.model import parameter_count

        def write(module: nn.Module, _: Any, output: Tensor) -> None:
            name = type(module).__name__
            parameters = parameter_count(module)
            shape, what = tuple(output.shape[1:]), kind or _KINDS.get(name, "activation")
            self.layers.append(Layer("", what, shape, parameters, _settings(module), group, self._in_shortcut))

        for module in part.modules():
            if not any(module.children()):
                module.register_forward_hook(write)


def _settings(module: Any) -> str:
    match type(module).__name__:
        case "Conv2d":
            height, width = module.kernel_size
            fixed = "" if module.weight.requires_grad else ", fixed"
            return f"{height}x{width} kernels, padding {module.padding[0]}{fixed}"
        case "MaxPool2d":
            return f"maximum of {module.kernel_size}x{module.kernel_size}"
        case "AvgPool2d":
            return f"average of {module.kernel_size}x{module.kernel_size}"
        case "GlobalPool":
            return {"average": "average", "max": "maximum"}[module.kind] + " over all pixels"
        case "Linear":
            return f"{module.in_features:,} to {module.out_features:,}"
        case "Dropout":
            return f"{module.p:.2g} of the values, in training only"
        case name:
            return "" if name in _KINDS else name


def _named(layers: list[Layer]) -> list[Layer]:
    """With names, numbered where a group has several layers of a kind."""

    def base(layer: Layer) -> str:
        own = ("shortcut " if layer.shortcut else "") + layer.kind
        return own if layer.group in ("input", "head") else f"{layer.group} {own}"

    total, seen, named = Counter(map(base, layers)), Counter[str](), []
    for layer in layers:
        name = base(layer)
        seen[name] += 1
        named.append(replace(layer, name=f"{name} {seen[name]}" if total[name] > 1 else name))
    return named
