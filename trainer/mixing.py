"""Images of a batch that are mixed in pairs: mixup (Zhang et al. 2018, arXiv:1710.09412), CutMix (Yun et al. 2019, arXiv:1905.04899)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.hyperparameters import AugmentationConfig


@dataclass(frozen=True)
class Mixture:
    """How each image of a batch is mixed with the one before it: `share` of it stays.

    Without a `box` the two are blended; the box (top, left, bottom, right, in pixels) is what is replaced by the other's.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def draw(cls, config: AugmentationConfig, height: int, width: int, generator: torch.Generator) -> Mixture | None:
        """One for all images of a batch; None without mixup and CutMix. Where both are asked for, each batch draws one of them."""
        if not config.mixup and not config.cutmix:
            return None
        # torch draws from a Beta distribution by its global generator alone.
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if not config.cutmix or (config.mixup and random.random() < 0.5):
            return cls(random.beta(config.mixup, config.mixup))
        side = 0.5 * math.sqrt(1 - random.beta(config.cutmix, config.cutmix))
        y, x = int(random.integers(height)), int(random.integers(width))
        top, bottom = max(0, y - int(side * height)), min(height, y + int(side * height))
        left, right = max(0, x - int(side * width)), min(width, x + int(side * width))
        return cls(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


def mix(images: Tensor, labels: Tensor, mixture: Mixture, classes: int) -> tuple[Tensor, Tensor]:
    """All images but the first, mixed with the one before each, and their classes' probabilities, float32 `(N, classes)`.

    `images` are uint8 `(N + 1, C, H, W)`, before and after, with `labels` `(N + 1,)`.
    """
    before, own = images[:-1], images[1:]
    if mixture.box is None:
        mixed = before.float().lerp(own.float(), mixture.share).round().to(images.dtype)
    else:
        top, left, bottom, right = mixture.box
        mixed = own.clone()
        mixed[..., top:bottom, left:right] = before[..., top:bottom, left:right]
    known = F.one_hot(labels, classes).float()
    return mixed, known[:-1].lerp(known[1:], mixture.share)
