"""The hyperparameters of the network, family by family: the first section of a trial's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trainer.domains import Between, Doc, OneOf, PerBlock, When
from trainer.torchvision_names import FAMILIES, NAMES, PREFIX

FLAG = OneOf((False, True))
MAX_BLOCKS = 5

_CONVNET = When("model.family", ("convnet",))
_BLOCKS = When("model.family", ("convnet", "resnet"))
_RNN = When("model.family", ("rnn",))
_LAYERS = When("model.family", ("rnn", "transformer"))
_TRANSFORMER = When("model.family", ("transformer",))
_TORCHVISION = When("model.family", FAMILIES, f"{PREFIX}NAME")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: its family, what networks of that family have, and the classifier."""

    family: Annotated[
        str,
        OneOf(
            ("convnet", "resnet", "rnn", "transformer", *FAMILIES),
            ("convnet",),
            f"convnet, resnet, rnn, transformer, {PREFIX}NAME with one of torchvision's {len(NAMES)} classifiers",
        ),
        Doc("kind of network"),
    ] = "convnet"
    blocks: Annotated[
        int, Between(1, MAX_BLOCKS, 1, search=(2, 3, 4)), _BLOCKS, Doc("blocks of convolutions, or stages of a resnet")
    ] = 3
    kernel_size: Annotated[
        tuple[int, ...],
        PerBlock(),
        Between(1, 15, 2, search=(3, 5, 7)),
        _BLOCKS,
        Doc("width and height of the kernels, pixels"),
    ] = (3, 3, 3)
    filters: Annotated[
        tuple[int, ...],
        PerBlock(),
        Between(1, 2048, 1, search=(16, 32, 64)),
        _BLOCKS,
        Doc("filters of each convolution"),
    ] = (32, 64, 64)
    depth: Annotated[
        tuple[int, ...],
        PerBlock(),
        Between(1, 48, 1, search=(1, 2, 3)),
        When("model.family", ("resnet",)),
        Doc("residual units of each stage, with two convolutions each"),
    ] = (2, 2, 2)
    convolutions: Annotated[int, OneOf((1, 2)), _CONVNET, Doc("convolutions in each block")] = 1
    padding: Annotated[
        str,
        OneOf(("same", "valid"), ("same",)),
        _CONVNET,
        Doc("pad so that the size stays, or use only whole windows"),
    ] = "same"
    activation: Annotated[
        str,
        OneOf(("relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid"), ("relu", "leaky_relu", "gelu", "silu")),
        _BLOCKS,
        Doc("activation function of all layers"),
    ] = "relu"
    pooling: Annotated[str, OneOf(("max", "average")), _CONVNET, Doc("2x2 pooling at the end of a block")] = "max"
    pool_position: Annotated[
        str,
        OneOf(("last", "first")),
        When("model.convolutions", (2,)),
        Doc("which of a block's two convolutions is pooled; after the first, the second one is four times as fast"),
    ] = "last"
    pool_last: Annotated[bool, OneOf((True, False), (True,)), _CONVNET, Doc("the last block pools too")] = True
    whitening: Annotated[
        bool, FLAG, _CONVNET, Doc("a first layer of fixed 2x2 kernels that decorrelate neighbouring pixels and colours")
    ] = False
    batch_norm: Annotated[bool, FLAG, _CONVNET, Doc("batch normalisation after each convolution")] = True
    residual: Annotated[
        bool, FLAG, When("model.padding", ("same",)), Doc("a shortcut around each block's convolutions")
    ] = False
    head: Annotated[
        str,
        OneOf(("flatten", "average", "max"), ("flatten", "max")),
        _CONVNET,
        Doc("how the last feature maps become a vector: flattened, or pooled over all pixels"),
    ] = "flatten"
    dense_units: Annotated[
        int, Between(0, 4096, 1, search=(0, 64, 128)), _CONVNET, Doc("units of the hidden dense layer; 0: none")
    ] = 64
    cell: Annotated[
        str, OneOf(("lstm", "gru", "simple")), _RNN, Doc("what remembers the rows above: LSTM, GRU or plain tanh units")
    ] = "lstm"
    units: Annotated[
        int, Between(1, 2048, 1, search=(64, 128, 256)), _RNN, Doc("units of each recurrent layer and direction")
    ] = 128
    bidirectional: Annotated[bool, FLAG, _RNN, Doc("read the rows from the bottom too")] = False
    layers: Annotated[
        int, Between(1, 32, 1, search=(1, 2, 3)), _LAYERS, Doc("recurrent layers, or layers of attention")
    ] = 2
    patch_size: Annotated[
        int,
        Between(1, 64, 1, search=(4, 8)),
        _TRANSFORMER,
        Doc("width and height of the patches, pixels; the image is padded to whole ones"),
    ] = 4
    heads: Annotated[int, Between(1, 32, 1, search=(2, 4, 8)), _TRANSFORMER, Doc("attention heads of each layer")] = 4
    head_units: Annotated[
        int, Between(1, 256, 1, search=(8, 16, 32)), _TRANSFORMER, Doc("units of a head; with all heads, of a patch")
    ] = 16
    positions: Annotated[
        str, OneOf(("learned", "sinusoidal")), _TRANSFORMER, Doc("how a patch is told its place in the image")
    ] = "learned"
    pretrained: Annotated[
        bool, OneOf((False, True), (False,)), _TORCHVISION, Doc("begin with torchvision's weights from ImageNet")
    ] = False
    frozen_epochs: Annotated[
        int,
        Between(0, 1000, 1, search=(0, 1, 2)),
        When("model.pretrained", (True,)),
        Doc("epochs at first that train the classifier alone"),
    ] = 0
    input_size: Annotated[
        int,
        Between(0, 1024, 1, search=()),
        _TORCHVISION,
        Doc("width and height that images are resized to; 0: as they are, or what the network needs"),
    ] = 0
    dropout: Annotated[
        float,
        Between(0.0, 0.9, search=Between(0.0, 0.5)),
        Doc("dropout before the classifier; in an rnn and a transformer after each layer too"),
    ] = 0.0
    test_time_flip: Annotated[
        bool,
        OneOf((False, True), (False,)),
        Doc("judge an image together with its mirror image: the mean of both logits"),
    ] = False

    @property
    def torchvision(self) -> str | None:
        """The name of torchvision's network, or None for a family of our own."""
        return self.family.removeprefix(PREFIX) if self.family.startswith(PREFIX) else None

    @property
    def is_pretrained(self) -> bool:
        """Whether it begins with weights from ImageNet."""
        return self.torchvision is not None and self.pretrained

    @property
    def frozen(self) -> int:
        """How many epochs train the classifier alone."""
        return self.frozen_epochs if self.is_pretrained else 0
