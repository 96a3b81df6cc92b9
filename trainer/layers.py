"""The network layer by layer, in the order of its forward pass: what a table or a drawing of it shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trainer.model_config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

_KINDS = {
    "Conv2d": "convolution",
    "MaxPool2d": "pooling",
    "AvgPool2d": "pooling",
    "AdaptiveAvgPool2d": "pooling",
    "BatchNorm2d": "batch normalisation",
    "LayerNorm": "layer normalisation",
    "Identity": "identity",
    "Permute": "identity",
    "Flatten": "flatten",
    "GlobalPool": "global pooling",
    "MeanPatch": "global pooling",
    "Linear": "dense",
    "Dropout": "dropout",
    "Rows": "rows",
    "LSTM": "recurrent",
    "GRU": "recurrent",
    "RNN": "recurrent",
    "LastStep": "last step",
    "Cut": "patches",
    "Positions": "positions",
    "Attention": "attention",
    "Pixels": "resizing",
}
"""What a module is called by its class. Of other classes those that have modules inside are blocks, the rest activations."""

_WHOLE = ("Attention",)
"""What is one layer though it has modules inside."""

_GROUPS = {"Whitening": "whitening", "Stem": "stem", "Patches": "patches", "Positions": "patches"}
_COUNTED = {"Block": "block", "Stage": "stage", "Layer": "layer"}
"""The groups of a network's parts by their classes; these have a number as well. Others are in the head."""


@dataclass(frozen=True)
class Layer:
    """One layer. `name` is unique in its network, such as "block 2 convolution".

    `kind` is one of input, convolution, pooling, batch normalisation, activation, identity, addition, flatten, global
    pooling, dense, dropout, classifier; for sequences there are rows, recurrent, last step, patches, positions, layer
    normalisation and attention; for torchvision's networks resizing, tokens, and block, which is not taken apart.
    `output_shape` is that of one image: (F, H, W), (steps, units), or (units,). `parameters` is how many trained numbers it
    has, `settings` what else tells it from others, in words ("3x3 kernels, padding 1"), or empty. `group` is input,
    whitening, stem, patches, block 1, stage 1 or layer 1 and so on, the name of torchvision's network, or head.

    Layers with `shortcut` lie beside the others of their block, from the block's input to its layer of the kind addition.
    In a group of several such blocks, `unit` is the block's number, from 1.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    settings: str
    group: str
    shortcut: bool = False
    unit: int = 0


def describe_layers(config: ModelConfig, image_shape: tuple[int, int, int], classes: int) -> list[Layer]:
    """The layers of the network that `build_model` makes for images of `image_shape` = (C, H, W).

    The network is built without memory for its weights (torch's meta device) and run once: it takes milliseconds, for
    torchvision's up to seconds, and draws no random numbers. The layers' parameters add up to the network's. Raises ValueError
    where `build_model` does.
    """
    import torch

    from trainer.model import build_model, parameter_count

    channels = image_shape[0]
    with torch.device("meta"):
        config = replace(config, test_time_flip=False)  # which would run the same layers twice
        model = build_model(config, image_shape, classes, [0.0] * channels, [1.0] * channels).eval()
        images = torch.empty((1, *image_shape), dtype=torch.uint8)
    watch = _Watch(image_shape)
    watch.layers_of(model.classifier, "head", kind="classifier")
    if config.torchvision is None:
        watch.features(model.features)
    else:
        watch.torchvision(model.features, config.torchvision)
    with torch.inference_mode():
        model(images)
    missing = parameter_count(model) - sum(layer.parameters for layer in watch.layers)
    if missing:  # a VisionTransformer has some that belong to none of its parts
        tokens = Layer("", "tokens", (missing,), missing, "class token and positions", str(config.torchvision))
        watch.layers.insert(2, tokens)
    return _named(watch.layers)


class _Watch:
    """Writes down the layers of a network while it runs, by hooks on its modules."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self.layers = [Layer("input", "input", image_shape, 0, "values 0 to 255, normalised", "input")]
        self._in_shortcut = False

    def features(self, features: nn.Module) -> None:
        """Watch a network of our own."""
        seen = Counter[str]()
        for part in features.children():
            kind = type(part).__name__
            seen[kind] += 1
            group = f"{_COUNTED[kind]} {seen[kind]}" if kind in _COUNTED else _GROUPS.get(kind, "head")
            if kind in ("Stage", "Layer"):
                for unit, block in enumerate(part.children(), 1):
                    self._block(block, group, unit)
            else:
                self._block(part, group)

    def torchvision(self, features: nn.Module, name: str) -> None:
        """Watch torchvision's network of that name, which is taken apart as far as it is one part after the other."""
        from trainer.torchvision_nets import parts_of

        pixels, network, *dropout = features.children()
        self.layers_of(pixels, name)
        for path, part in parts_of(network).items():
            # A SwinTransformer has the channels last almost to its end.
            self._layer(part, name, path=path, last=name.startswith("swin") and path.startswith(("features", "norm")))
        for layer in dropout:
            self.layers_of(layer, "head")

    def layers_of(self, part: nn.Module, group: str, unit: int = 0, kind: str | None = None) -> None:
        """Watch the modules in `part` that have none inside, or are one layer with them."""
        whole = [module for module in part.modules() if type(module).__name__ in _WHOLE]
        inside = {inner for module in whole for inner in module.modules()}.difference(whole)
        for module in part.modules():
            if module in whole or not (module in inside or any(module.children())):
                self._layer(module, group, unit, kind)

    def _block(self, block: nn.Module, group: str, unit: int = 0) -> None:
        """Watch the layers of a block, its shortcut and its addition, if it has them.

        The block's pooling is one module for both branches: only the time tells which of them it works for.
        """

        def enter(*_: Any) -> None:
            self._in_shortcut = True

        def leave(*_: Any) -> None:
            self._in_shortcut = False

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
            total = inputs[0] if output is None else output
            self.layers.append(Layer("", "addition", tuple(total.shape[1:]), 0, "of the shortcut", group, unit=unit))

        self.layers_of(block, group, unit)
        shortcut = getattr(block, "shortcut", None)
        if shortcut is not None:
            shortcut.register_forward_pre_hook(enter)
            shortcut.register_forward_hook(leave)
            block.activation.register_forward_pre_hook(add)  # type: ignore[union-attr]
        elif type(block).__name__ == "Residual":
            block.register_forward_hook(add)

    def _layer(
        self,
        module: nn.Module,
        group: str,
        unit: int = 0,
        kind: str | None = None,
        path: str = "",
        last: bool = False,
    ) -> None:
        """Watch a module. `path` is its name in torchvision's network, `last` whether its channels come last."""
        from trainer.model import parameter_count

        name = type(module).__name__
        what = kind or _KINDS.get(name, "block" if any(module.children()) else "activation")

        def write(_: nn.Module, __: Any, output: Any) -> None:
            result: Tensor = output[0] if isinstance(output, tuple) else output
            shape = tuple(result.shape[1:])
            shape = (*shape[-1:], *shape[:-1]) if last else shape
            called = f"{group} {path}" if path else ""
            parameters = parameter_count(module)
            self.layers.append(
                Layer(called, what, shape, parameters, _settings(module), group, self._in_shortcut, unit)
            )

        module.register_forward_hook(write)


def _settings(module: Any) -> str:
    match type(module).__name__:
        case "Conv2d":
            height, width = module.kernel_size
            stride = f", stride {module.stride[0]}" if module.stride[0] > 1 else ""
            fixed = "" if module.weight.requires_grad else ", fixed"
            return f"{height}x{width} kernels, padding {module.padding[0]}{stride}{fixed}"
        case "MaxPool2d":
            return f"maximum of {module.kernel_size}x{module.kernel_size}"
        case "AvgPool2d":
            return f"average of {module.kernel_size}x{module.kernel_size}"
        case "GlobalPool":
            return {"average": "average", "max": "maximum"}[module.kind] + " over all pixels"
        case "MeanPatch":
            return "average over all patches"
        case "Linear":
            return f"{module.in_features:,} to {module.out_features:,}"
        case "Dropout":
            return f"{module.p:.2g} of the values, in training only"
        case "LSTM" | "GRU" | "RNN" as name:
            layers = f", {module.num_layers} layers" if module.num_layers > 1 else ""
            return name + layers + (", both ways" if module.bidirectional else "")
        case "Cut":
            return f"{module.size}x{module.size} pixels"
        case "Positions":
            return str(module.kind)
        case "Attention":
            return f"{module.heads} heads of {module.head_units} units"
        case "Pixels":
            return "three channels" + ("" if module.size is None else ", bilinear")
        case name:
            return "" if name in _KINDS else name


def _named(layers: list[Layer]) -> list[Layer]:
    """With names, numbered where a group has several layers of a kind. Those of torchvision's networks have theirs."""

    def base(layer: Layer) -> str:
        own = ("shortcut " if layer.shortcut else "") + layer.kind
        return layer.name or (own if layer.group in ("input", "head") else f"{layer.group} {own}")

    total, seen, named = Counter(map(base, layers)), Counter[str](), []
    for layer in layers:
        name = base(layer)
        seen[name] += 1
        named.append(replace(layer, name=f"{name} {seen[name]}" if total[name] > 1 else name))
    return named
