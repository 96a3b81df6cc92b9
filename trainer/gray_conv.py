"""The first convolution of a network for gray images: like any other, with a faster gradient of its kernels on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PATCH_VALUES = 4_000_000
"""So many numbers (16 MB) the patches have at most that are multiplied at once."""


class GrayConv2d(nn.Conv2d):
    """A convolution with one input channel and a stride of 1.

    For the kernels' gradient oneDNN fills the channel up to eight on a CPU without AVX-512: 5.7 ms for 64 images of 28x28 and 32
    kernels of 3x3, a fifth of a small network's step. As a product of two matrices it takes 1.0 ms.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(N, 1, H, W)` to `(N, F, H', W')`."""
        slow = self.training and input.device.type == "cpu" and input.dtype == torch.float32
        if slow and torch.is_grad_enabled() and not input.requires_grad and not torch.is_autocast_enabled("cpu"):
            convolved: Tensor = _Convolve.apply(input, self.weight, self.bias, int(self.padding[0]))
            return convolved
        return super().forward(input)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(images)
        ctx.size, ctx.padding = weight.shape[-1], padding
        return F.conv2d(images, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor | None, None]:
        (images,), [gradient], size = ctx.saved_tensors, gradients, ctx.size
        filters, height, width = gradient.shape[1:]
        pixels = F.pad(images[:, 0], [ctx.padding] * 4)
        of_kernels = gradient.new_zeros(size * size, filters)
        images_at_once = max(1, _PATCH_VALUES // (size * size * height * width))
        parts = torch.split(pixels, images_at_once), torch.split(gradient.permute(0, 2, 3, 1), images_at_once)
        for part, columns in zip(*parts, strict=True):
            windows = [part[:, i : i + height, j : j + width].flatten() for i in range(size) for j in range(size)]
            of_kernels.addmm_(torch.stack(windows), columns.reshape(-1, filters))
        of_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return None, of_kernels.T.reshape(filters, 1, size, size), of_bias, None
