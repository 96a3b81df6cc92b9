"""A trial's network, built from a `ModelConfig`: the features that its family makes of images, and a linear classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from trainer import convnet, recurrent, residual, torchvision_nets, transformer
from trainer.model_config import ModelConfig

_FAMILIES: dict[str, Callable[[ModelConfig, tuple[int, int, int]], tuple[list[nn.Module], int]]] = {
    "convnet": convnet.build,
    "resnet": residual.build,
    "rnn": recurrent.build,
    "transformer": transformer.build,
}
"""The layers before the classifier, for images (C, H, W), and the units that they end with. All others are torchvision's."""


class Classifier(nn.Module):
    """A network that takes raw images and gives logits.

    In: uint8 `(N, C, H, W)`, 0 to 255. Out: float `(N, classes)`. The normalisation by the data's `mean` and `std` (per
    channel, in units of 0 to 255) is part of the network, so that a model cannot be used without it. With
    `test_time_flip`, out of training, the logits are the mean of those of the image and of its mirror image.
    `has_maps` says whether it has convolutions, which are faster with the channels last in memory.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Linear,
        mean: Sequence[float],
        std: Sequence[float],
        test_time_flip: bool = False,
    ) -> None:
        super().__init__()
        self.test_time_flip = test_time_flip
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.features = features
        self.classifier = classifier
        self.has_maps = any(isinstance(part, nn.Conv2d) for part in features.modules())
        self._frozen = False

    def freeze(self, frozen: bool) -> None:
        """Train the classifier alone from now on, and leave the features as in evaluation, or train all of them again."""
        if frozen != self._frozen:
            self.features.requires_grad_(not frozen)
            self._frozen = frozen

    def train(self, mode: bool = True) -> Self:
        """As of every module; what is frozen stays in evaluation, so that batch normalisation counts nothing there."""
        super().train(mode)
        if self._frozen:
            self.features.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, classes)` of uint8 images `(N, C, H, W)`."""
        logits = self._logits(images)
        if self.test_time_flip and not self.training:
            logits = (logits + self._logits(images.flip(-1))) / 2
        return logits

    def _logits(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.classifier(self.features(self._normalized(images))))

    def _normalized(self, images: Tensor) -> Tensor:
        order = torch.channels_last if self.has_maps else torch.contiguous_format
        pixels = images.to(torch.float32, memory_format=order)
        return (pixels - self.mean) / self.std

    def fit_whitening(self, images: Tensor) -> None:
        """Set the kernels of the whitening layer, which the network must have, by uint8 `images` `(N, C, H, W)`."""
        [layer] = [part for part in self.features.children() if isinstance(part, convnet.Whitening)]
        layer.fit(self._normalized(images))


def build_model(
    config: ModelConfig, image_shape: tuple[int, int, int], classes: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """The network for images of `image_shape` = (C, H, W) and that many classes, with random weights.

    One that is to be pretrained is normalised by ImageNet's mean and deviation instead. Raises ValueError when the images are too
    small for the network.
    """
    layers, units = _FAMILIES.get(config.family, torchvision_nets.build)(config, image_shape)
    if config.dropout:
        layers.append(nn.Dropout(config.dropout))
    if config.is_pretrained:
        mean, std = torchvision_nets.MEAN, torchvision_nets.STD
    model = Classifier(nn.Sequential(*layers), nn.Linear(units, classes), mean, std, config.test_time_flip)
    return model.to(memory_format=torch.channels_last) if model.has_maps else model


def parameter_count(model: nn.Module) -> int:
    """How many trained numbers the network has."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
