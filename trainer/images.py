"""One image file as numbers: the same way for training and for `predict`."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

GRAYSCALE_MODES = frozenset({"1", "L", "I;16", "I;16B", "I;16L", "I"})
UPLOAD_FORMATS = {
    "PNG": ("png",),
    "JPEG": ("jpg", "jpeg"),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
}
"""Pillow's names, and the files' endings, of what is read from a stranger: others, such as EPS, start programs."""

MAX_UPLOAD_PIXELS = 50_000_000
"""Of an image from a stranger; 150 MB in memory. A file of 10 MB can hold much more."""

SMALL_FILE = 8192
"""Bytes. Of smaller files, threads wait for the interpreter's lock longer than they decode: 0.5 ms instead of 0.2 each."""

_READ_AT_ONCE = 1 << 20
"""Bytes of a file. Pillow reads a file piece by piece: of a small one that takes a fifth of the time that the whole takes."""

# What Pillow's many readers raise for damaged files.
_DAMAGE = (
    OSError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
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


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The file as Pillow opens it, no more than its header read. Damage that shows inside is a BrokenImageError too."""
    try:
        with Image.open(path) as image:
            yield image
    except _DAMAGE as error:
        raise _broken(path, error) from error


def is_grayscale(path: Path) -> bool:
    """Whether the file holds a grayscale image; reads no more than its header. Raises BrokenImageError."""
    with opened(path) as image:
        return image.mode in GRAYSCALE_MODES


def read_image(source: Path | IO[bytes], height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """The image as uint8 `(channels, height, width)`, 1 channel (gray) or 3 (RGB). Raises BrokenImageError.

    It is turned as its EXIF data say, laid on white where it is transparent, cut to the aspect ratio about its centre
    and resized (bilinear, with antialiasing). 16-bit values are divided by 256. An open file counts as a stranger's: its
    format must be among `UPLOAD_FORMATS`, and it may have at most `MAX_UPLOAD_PIXELS`.
    """
    trusted = isinstance(source, Path)
    try:
        with Image.open(_at_once(source), formats=None if trusted else tuple(UPLOAD_FORMATS)) as image:
            if not trusted:
                _check_size(image.size)
            return to_array(image, height, width, channels)
    except _DAMAGE as error:
        raise _broken(source, error) from error


def to_array(image: Image.Image, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """As `read_image`, of an opened image."""
    image = _upright(image)
    image.load()  # says what is damaged, unless that is behind the pixels; within np.asarray nobody would hear it
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:  # else it would be copied, which of a photo takes a quarter of the time
        image = image.convert(mode)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _at_once(source: Path | IO[bytes]) -> Path | IO[bytes]:
    """A small file's bytes as an open file, which is faster to read; anything else as it is."""
    if not isinstance(source, Path):
        return source
    with open(source, "rb", buffering=0) as file:  # noqa: PTH123 -- twice as fast
        status = os.fstat(file.fileno())
        is_small = stat.S_ISREG(status.st_mode) and status.st_size < _READ_AT_ONCE
        return io.BytesIO(file.read()) if is_small else source


def _upright(image: Image.Image) -> Image.Image:
    """The image, turned as its EXIF data say; damaged ones turn nothing."""
    with contextlib.suppress(struct.error, ValueError, LookupError, SyntaxError):
        image.load()
        if not image.info and image.format != "TIFF":  # nothing that could say it, and asking takes as long as decoding
            return image
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """The picture of uint8 `(1 or 3, H, W)`."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def name_of(source: Path | IO[bytes]) -> str:
    """What to call the image: its path, or the name that an open file has."""
    return str(source) if isinstance(source, Path) else str(getattr(source, "name", "the image"))


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_UPLOAD_PIXELS:
        raise ValueError(
            f"it has {width}x{height} pixels, but at most {MAX_UPLOAD_PIXELS:,} are allowed: make it smaller"
        )


def _broken(source: Path | IO[bytes], error: Exception) -> BrokenImageError:
    name = name_of(source)
    if isinstance(error, FileNotFoundError):
        return BrokenImageError(f"There is no image {name!r}.")
    if isinstance(error, UnidentifiedImageError):
        kinds = "" if isinstance(source, Path) else f"; it may be {', '.join(UPLOAD_FORMATS)}"
        return BrokenImageError(f"{name!r} cannot be read as an image: no image format that is known{kinds}.")
    return BrokenImageError(f"{name!r} cannot be read as an image: {str(error).rstrip('.')}.")
