"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): a few random operations on each image, all of one strength.

The operations are torchvision's fourteen. None mirrors an image; it is turned by 30 degrees at most. What comes in from outside
the image is black.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

DIRECTED = (
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
)
"""These go either way: to the left or to the right, darker or brighter."""
OPERATIONS = (*DIRECTED, "posterize", "solarize", "autocontrast", "equalize", "identity")
STRONGEST = 30


def draw_operations(size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` operations for each of `size` images, int64 `(size, count)`.

    A number is the operation's place in OPERATIONS, or of one that is to go the other way its place minus len(OPERATIONS).
    """
    places = torch.randint(len(OPERATIONS), (size, count), generator=generator)
    turned = (torch.rand(size, count, generator=generator) < 0.5) & (places < len(DIRECTED))
    return torch.where(turned, places - len(OPERATIONS), places)


def randaugment(images: Tensor, operations: Tensor, magnitude: int) -> Tensor:
    """The images after their `operations` `(N, count)`, which lie on the CPU; uint8 `(N, C, H, W)` in and out, C is 1 or 3.

    Images that drew the same operation are changed together.
    """
    images = images.clone()
    for drawn in operations.unbind(1):
        for place in sorted(set(drawn.tolist())):
            rows = (drawn == place).nonzero()[:, 0].to(images.device, non_blocking=True)
            images[rows] = operate(images[rows], OPERATIONS[place], -magnitude if place < 0 else magnitude)
    return images


def operate(images: Tensor, operation: str, magnitude: int) -> Tensor:
    """One operation on uint8 `(N, C, H, W)`; below 0 its magnitude, -30 to 30, is that of its opposite."""
    from torchvision.transforms.v2 import InterpolationMode  # a second to import, for those who use it
    from torchvision.transforms.v2 import functional as F

    share, (height, width) = magnitude / STRONGEST, images.shape[-2:]

    def moved(right: float = 0.0, down: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        # Shears leave the upper left corner where it is, as in AutoAugment (Cubuk et al. 2018).
        words = {"angle": 0.0, "translate": [int(right), int(down)], "scale": 1.0, "shear": [*shear]}
        corner = [0, 0] if any(shear) else None
        return cast(Tensor, F.affine(images, **words, interpolation=InterpolationMode.BILINEAR, center=corner))

    changed: Tensor
    match operation:
        case "identity":
            changed = images
        case "shear_x":
            changed = moved(shear=(math.degrees(math.atan(0.3 * share)), 0.0))
        case "shear_y":
            changed = moved(shear=(0.0, math.degrees(math.atan(0.3 * share))))
        case "translate_x":
            changed = moved(right=150 / 331 * width * share)
        case "translate_y":
            changed = moved(down=150 / 331 * height * share)
        case "rotate":
            changed = F.rotate(images, 30.0 * share, interpolation=InterpolationMode.BILINEAR)
        case "brightness":
            changed = F.adjust_brightness(images, 1 + 0.9 * share)
        case "color":
            changed = F.adjust_saturation(images, 1 + 0.9 * share)
        case "contrast":
            changed = F.adjust_contrast(images, 1 + 0.9 * share)
        case "sharpness":
            changed = F.adjust_sharpness(images, 1 + 0.9 * share)
        case "posterize":
            changed = F.posterize(images, 8 - round(4 * share))
        case "solarize":
            changed = F.solarize(images, 255 * (1 - share))
        case "autocontrast":
            changed = F.autocontrast(images)
        case _:
            assert operation == "equalize", operation
            changed = F.equalize(images)
    return changed
