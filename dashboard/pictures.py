"""Images and kernels as pictures that people can make something of. Pure functions on arrays."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.attention import overlay

MOST_FILTERS = 128
"""How many filters a mosaic shows at most."""

_LARGEST = 128
_GAP = 0.08
_COLD, _ZERO, _HOT = (np.array(c, np.float64) for c in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))


def enlarged(image: NDArray[np.uint8], side: int = 224) -> NDArray[np.uint8]:
    """`image` `(C, H, W)`, gray or RGB, as `(H', W')` or `(H', W', 3)` with every pixel as a square, at least `side` wide."""
    pixels = image[0] if len(image) == 1 else image[:3].transpose(1, 2, 0)
    times = math.ceil(side / max(pixels.shape[:2]))
    return pixels.repeat(times, 0).repeat(times, 1)


def data_url(image: NDArray[np.uint8], side: int = 56) -> str:
    """The image `(C, H, W)` as a PNG inside a URL, for a cell of a table."""
    picture = Image.fromarray(enlarged(image, side))
    picture.thumbnail((2 * side, 2 * side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_picture(image: NDArray[np.uint8], heat: NDArray[np.float32], side: int = 224) -> NDArray[np.uint8]:
    """`image` `(C, H, W)` in gray with `heat` `(H, W)`, 0 to 1, over it in colour, smooth: `(H', W', 3)`, at least `side` wide."""
    times = math.ceil(side / max(heat.shape))
    height, width = (times * pixels for pixels in heat.shape)
    smooth = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)
    return overlay(image.repeat(times, 1).repeat(times, 2), smooth)


def kernel_pictures(kernels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Each filter of `kernels` `(F, C, k, k)` as a picture: `(F, k, k, 3)`.

    Of a gray image's filters negative weights are blue, zero is white and positive ones are red; those of an RGB image show
    the colours that they answer to, gray being zero. Each is scaled by its own largest weight.
    """
    scaled = _scaled(kernels)
    if kernels.shape[1] == 3:
        return (127.5 + 127.5 * scaled).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return _diverging(scaled.mean(1))


def response_pictures(kernels: NDArray[np.float32], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What each filter of `kernels` `(F, C, k, k)` answers to `image` `(C, H, W)`: `(F, H', W', 3)`, red where it fits.

    A gray image may have kernels for colours: those of torchvision's networks. An image above 128 pixels is thinned out first. Each
    answer is scaled by its own largest value.
    """
    step = math.ceil(max(image.shape[1:]) / _LARGEST)
    pixels = image[:, ::step, ::step].astype(np.float32)
    pixels = np.broadcast_to(pixels, (kernels.shape[1], *pixels.shape[1:])).copy()
    pixels -= pixels.mean((1, 2), keepdims=True)
    before, after = (kernels.shape[-1] - 1) // 2, kernels.shape[-1] // 2
    padded = np.pad(pixels, ((0, 0), (before, after), (before, after)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[2:], axis=(1, 2))
    return _diverging(_scaled(np.tensordot(kernels, windows, axes=([1, 2, 3], [0, 3, 4]))))


def mosaic(pictures: NDArray[np.uint8], side: int = 640) -> NDArray[np.uint8]:
    """The first 128 of `pictures` `(N, h, w, 3)` as tiles, RGBA with nothing between them, about `side` wide."""
    pictures = pictures[:MOST_FILTERS]
    least = math.ceil(math.sqrt(len(pictures)))
    columns = min(range(least, 3 * least // 2 + 1), key=lambda columns: -len(pictures) % columns)  # no gaps at the end
    rows = math.ceil(len(pictures) / columns)
    times = max(1, round(side / columns / (1 + _GAP) / max(pictures.shape[1:3])))
    tiles = pictures.repeat(times, 1).repeat(times, 2)
    height, width = tiles.shape[1:3]
    gap = max(1, round(_GAP * width))
    whole = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        whole[top : top + height, left : left + width, :3] = tile
        whole[top : top + height, left : left + width, 3] = 255
    return whole


def _scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each of the values `(N, ...)` divided by its largest magnitude."""
    largest = np.abs(values).max(tuple(range(1, values.ndim)), keepdims=True)
    scaled: NDArray[np.float32] = values / np.maximum(largest, np.finfo(np.float32).tiny)
    return scaled


def _diverging(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values from -1 to 1 as colours from blue over white to red, in a new last axis."""
    share = np.abs(values)[..., None]
    ends = np.where(values[..., None] < 0, _COLD, _HOT)
    return (_ZERO + (ends - _ZERO) * share).round().astype(np.uint8)
