"""Where a network looks: Grad-CAM heat maps, and pictures of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

    from trainer.model import Classifier

_ONE_AT_A_TIME = threading.Lock()
"""A heat map hangs a hook on the model, which would also see the images that another thread sends through it."""

_LUMINANCE = np.array([0.299, 0.587, 0.114])
_OPACITY = 0.75
_RAMP = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)
"""Five colours of matplotlib's inferno, evenly spaced from cold to hot."""


def grad_cam(model: Classifier, image: NDArray[np.uint8], label: int) -> NDArray[np.float32]:
    """How much each pixel of `image` `(C, H, W)` speaks for class `label`: 0 to 1 `(H, W)`, 1 at the hottest pixel.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) on the outputs of the network's last convolution, which are
    smaller than the image and are enlarged bilinearly: a network with many blocks sees coarsely, and one whose last
    convolution has a single pixel gives one value for all. All zeros when nothing speaks for the class. The model, on
    the CPU, is put into eval mode; its weights and their gradients stay as they are. Raises ValueError for a network without
    convolutions.
    """
    import torch
    import torch.nn.functional as F
    from captum.attr import LayerGradCam

    model.eval()
    batch = torch.tensor(np.asarray(image))[None]
    with _ONE_AT_A_TIME:
        flipped, model.test_time_flip = (
            model.test_time_flip,
            False,
        )  # the map is the image's own, not its mirror image's
        try:
            explained = LayerGradCam(model, _last_convolution(model))
            coarse = explained.attribute(batch, target=label, relu_attributions=True).detach()
        finally:
            model.test_time_flip = flipped
    heat = F.interpolate(coarse, image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
    hottest = heat.max()
    return cast(NDArray[np.float32], (heat / hottest if hottest > 0 else heat).numpy())


def _last_convolution(model: Classifier) -> nn.Module:
    """The last convolution, and not one in a shortcut, which only passes on what came before; of torchvision's networks the last block.

    Raises ValueError for a network that has none, or none behind its patches.
    """
    from torch import nn

    from trainer.convnet import Block
    from trainer.residual import Stage, Unit
    from trainer.torchvision_nets import Pixels, last_maps

    parts = list(model.features.children())
    if isinstance(parts[0], Pixels):
        return last_maps(parts[1])
    blocks = [block for part in parts for block in (part.children() if isinstance(part, Stage) else [part])]
    with_maps = [block for block in blocks if isinstance(block, Block | Unit)]
    if not with_maps:
        raise ValueError(
            "Grad-CAM shows where the last convolution of a network answers, and this network has no convolutions."
        )
    return [layer for layer in with_maps[-1].convolutions if isinstance(layer, nn.Conv2d)][-1]


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture uint8 `(H, W, 3)`: `image` `(C, H, W)` in grey, the more coloured the hotter `heat` `(H, W)`, 0 to 1, is."""
    channels = len(image)
    weights = _LUMINANCE if channels == 3 else np.full(channels, 1 / channels)
    grey = np.tensordot(weights, image, axes=1)[..., None]
    steps = np.linspace(0, 1, len(_RAMP))
    colour = np.stack([np.interp(heat, steps, _RAMP[:, channel]) for channel in range(3)], axis=-1)
    opacity = _OPACITY * heat[..., None]
    return ((1 - opacity) * grey + opacity * colour).round().astype(np.uint8)
