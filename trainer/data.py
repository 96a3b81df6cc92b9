"""An image data set as memory-mapped arrays and its splits: decoded once, then shared by every process of the node."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from trainer import folders, named_data
from trainer.arrays import Arrays

OnProgress = Callable[[str, int, int], None]
"""Called with what is done ('decoding'), how many images are done and how many there are."""

_CACHE_FORMAT = 1
_HASHED_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are divided. `data` is the name of a data set or a folder of images.

    Paths become absolute. Raises ValueError for shares and sizes that are not allowed.
    """

    data: str
    root: str | None = None
    cache: str | None = None
    image_size: int | None = None
    validation_fraction: float = 0.1
    split_seed: int = 0
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, but got {self.validation_fraction}.")
        if self.image_size is not None and not 4 <= self.image_size <= 1024:
            raise ValueError(f"image_size must be 4 to 1024 pixels, but got {self.image_size}.")
        if not self.data.strip():
            raise ValueError(named_data.unknown(self.data))
        for place in ("data", "root", "cache"):  # the ranks have another working folder
            value = getattr(self, place)
            if value is not None and not (place == "data" and value in named_data.NAMES):
                object.__setattr__(self, place, str(Path(value).expanduser().resolve()))

    def check(self) -> None:
        """Raise ValueError when `data` is neither a name nor a folder. A record can be read where the folder is not."""
        if self.data not in named_data.NAMES and not Path(self.data).is_dir():
            raise ValueError(named_data.unknown(self.data))

    @property
    def name(self) -> str:
        """The data set's name, or the folder's."""
        return self.data if self.data in named_data.NAMES else Path(self.data).name

    def to_json(self) -> dict[str, Any]:
        """As plain values; `DataConfig(**values)` is the way back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Split:
    """Some rows of an array of images: uint8 `(N, C, H, W)` with labels int64 `(N,)`; `rows` int64 are the split's."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """The SHA-256 of the split's images and labels, in its order, as hexadecimal digits: the same on every machine."""
        digest = hashlib.sha256(f"{self.images.shape[1:]}".encode())
        for start in range(0, len(self), _HASHED_AT_ONCE):
            rows = self.rows[start : start + _HASHED_AT_ONCE]
            digest.update(self.images[rows].tobytes())
            digest.update(self.labels[rows].astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageData:
    """A data set with its splits. `mean` and `std` are per channel, of the training images, in units of 0 to 255."""

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    test: Split | None
    skipped: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def default_cache() -> Path:
    """Where decoded data sets go unless told otherwise: `~/.cache/convsweep`, or as the platform has it."""
    return Path(platformdirs.user_cache_dir("convsweep"))


def load_data(config: DataConfig, on_progress: OnProgress | None = None) -> ImageData:
    """The data set, decoded into the cache if it is not there yet, and divided into its splits.

    Without a validation split of its own, a stratified share of the training images is taken, by `split_seed`. Writes
    only into the cache; several processes may call it at once. Raises ValueError for what is wrong with the data, and
    RuntimeError when a named data set can neither be found nor downloaded.
    """
    config.check()
    cache = Path(config.cache) if config.cache else default_cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The cache folder {str(cache)!r} cannot be made: {error.strerror}. Say another with --cache."
        ) from error
    on_progress = on_progress or (lambda what, done, total: None)
    source: named_data.NamedSource | folders.FolderSource
    if config.data in named_data.NAMES:
        source = named_data.find(config.data, config.root, cache, config.image_size)
    else:
        source = folders.find(Path(config.data), config.image_size, config.skip_broken)
    folder = cache / f"{config.name}-{_CACHE_FORMAT}-{source.fingerprint()}"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            _decode(source, folder, on_progress)
    return _open(config, folder)


def needs_download(config: DataConfig) -> bool:
    """Whether `load_data` would download the images: those of a named data set that is neither under its root nor in the cache."""
    cache = Path(config.cache) if config.cache else default_cache()
    return config.data in named_data.NAMES and not named_data.is_here(config.data, config.root, cache)


def _decode(source: named_data.NamedSource | folders.FolderSource, folder: Path, on_progress: OnProgress) -> None:
    """Decode into a temporary folder beside `folder` and rename it: `folder` is whole or not there."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        arrays: Arrays = source.decode(temporary, on_progress)
        images = np.load(temporary / "train_images.npy", mmap_mode="r")
        mean, std = _mean_and_std(images)
        facts = {"classes": arrays.classes, "skipped": arrays.skipped, "mean": mean, "std": std}
        (temporary / "facts.json").write_text(json.dumps(facts))
        temporary.chmod(0o755)
        os.rename(temporary, folder)  # noqa: PTH104 -- a folder, atomically
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mean_and_std(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Per channel, from the histogram of the 256 values: exact, and no copy of the images as floats."""
    mean, std = [], []
    values = np.arange(256)
    for channel in range(images.shape[1]):
        counts = sum(
            np.bincount(images[i : i + 1024, channel].ravel(), minlength=256) for i in range(0, len(images), 1024)
        )
        mean.append(float(np.average(values, weights=counts)))
        std.append(max(1.0, float(np.sqrt(np.average((values - mean[-1]) ** 2, weights=counts)))))
    return mean, std


def _open(config: DataConfig, folder: Path) -> ImageData:
    try:
        facts = json.loads((folder / "facts.json").read_text())
        classes = tuple(facts["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The decoded images in {str(folder)!r} are damaged ({error}): delete that folder.") from error

    def part(name: str) -> Split | None:
        if not (folder / f"{name}_images.npy").exists():
            return None
        # Copy-on-write: torch wants a writable array, and nothing ever writes to it.
        images = np.load(folder / f"{name}_images.npy", mmap_mode="c")
        labels = np.load(folder / f"{name}_labels.npy")
        return Split(images, labels, np.arange(len(labels)))

    train, validation = part("train"), part("validation")
    assert train is not None
    if validation is None:
        rows, held_out = stratified_split(train.labels, classes, config.validation_fraction, config.split_seed)
        validation = Split(train.images, train.labels, held_out)
        train = Split(train.images, train.labels, rows)
    return ImageData(
        name=config.name,
        classes=classes,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        train=train,
        validation=validation,
        test=part("test"),
        skipped=tuple(facts["skipped"]),
    )


def stratified_split(
    labels: NDArray[np.int64], classes: tuple[str, ...], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the training and of the validation split, each sorted.

    `fraction` is held out of each class, rounded so that the whole has its share too; but at least one image of each class
    is, and at least one is left to train with. Raises ValueError when a class has a single image.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        scarce = counts.argmin()
        raise ValueError(
            f"Class {classes[scarce]!r} has {counts[scarce]} training image(s), but at least 2 are needed: "
            "one to train with and one to validate."
        )
    shares = counts * fraction
    sizes = np.floor(shares).astype(np.int64)
    nearest_first = np.argsort(sizes - shares, kind="stable")
    sizes[nearest_first[: round(len(labels) * fraction) - sizes.sum()]] += 1
    sizes = sizes.clip(1, counts - 1)
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label, size in enumerate(sizes):
        held_out[random.permutation(np.flatnonzero(labels == label))[:size]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
