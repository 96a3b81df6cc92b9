"""One image file as numbers: the same way for training and for `predict`."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

GRAYSCALE_MODES = frozenset({"1", "L", "I;16", "I;16B", "I;16L", "I"})


# What Pillow's many readers raise for damaged files.
_DAMAGE = (
    OSError,
    Image.DecompressionBombError,
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


class BrokenImageError(ValueError):
    """A file that cannot be read as an image."""


def is_grayscale(path: Path) -> bool:
    """Whether the file holds a grayscale image; reads no more than its header. Raises BrokenImageError."""
    try:
        with Image.open(path) as image:
            return image.mode in GRAYSCALE_MODES
    except _DAMAGE as error:
        raise _broken(path, error) from error


def read_image(source: Path | IO[bytes], height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """The image as uint8 `(channels, height, width)`, 1 channel (gray) or 3 (RGB). Raises BrokenImageError.

    It is turned as its EXIF data say, laid on white where it is transparent, cut to the aspect ratio about its centre
    and resized (bilinear, with antialiasing). 16-bit values are divided by 256.
    """
    try:
        with Image.open(source) as image:
            return to_array(image, height, width, channels)
    except _DAMAGE as error:
        raise _broken(source, error) from error


def to_array(image: Image.Image, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """As `read_image`, of an opened image."""
    with contextlib.suppress(struct.error, ValueError, LookupError, SyntaxError):  # damaged EXIF data turn nothing
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """The picture of uint8 `(1 or 3, H, W)`."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _broken(source: Path | IO[bytes], error: Exception) -> BrokenImageError:
    if isinstance(error, FileNotFoundError):
        return BrokenImageError(f"There is no image {str(source)!r}.")
    reason = "no image format that is known" if isinstance(error, UnidentifiedImageError) else str(error)
    return BrokenImageError(f"{str(source)!r} cannot be read as an image: {reason}.")
