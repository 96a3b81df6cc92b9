"""Writing decoded images: what every source of images does in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Arrays:
    """What was decoded: the classes' names in the order of their labels, and the files that were left out."""

    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def save_split(folder: Path, split: str, images: NDArray[np.uint8], labels: ArrayLike) -> None:
    """Write `(N, C, H, W)` and `(N,)` as the split's two files."""
    np.save(folder / f"{split}_images.npy", images)
    np.save(folder / f"{split}_labels.npy", np.asarray(labels, np.int64))


def create_images(folder: Path, split: str, shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A memory-mapped array of the split's images `(N, C, H, W)`, to be filled in."""
    return open_memmap(folder / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=shape)
