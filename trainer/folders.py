"""Folders of images: one sub-folder per class, optionally inside `train/`, `val/` and `test/`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.arrays import Arrays, create_images
from trainer.images import SMALL_FILE, BrokenImageError, is_grayscale, read_image

DEFAULT_IMAGE_SIZE = 64
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class FolderSource:
    """The files of a folder: for each split, (path, label) in a fixed order."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, list[tuple[Path, int]]]
    image_size: int
    skip_broken: bool

    def fingerprint(self) -> str:
        """A short hash of the files' names, sizes and times and of the size that the images get."""
        digest = hashlib.sha256(f"{self.root} {self.image_size} {self.skip_broken} {self.classes}".encode())
        for split, files in self.splits.items():
            for path, label in files:
                status = path.stat()
                digest.update(f"{split} {path} {label} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def decode(self, folder: Path, on_progress: Callable[[str, int, int], None]) -> Arrays:
        """Write the splits' arrays into `folder`, decoding large files in parallel.

        Images are gray when all of them are, else RGB. Raises ValueError that names the files that are no images,
        unless `skip_broken`, and when a class has nothing left.
        """
        total = sum(len(files) for files in self.splits.values())
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            gray: list[bool | BrokenImageError] = []
            on_progress("looking at the images", 0, total)
            everything = [path for files in self.splits.values() for path, _ in files]
            in_parallel = sum(path.stat().st_size for path in everything) >= SMALL_FILE * total
            each: Callable[..., Iterable[Any]] = pool.map if in_parallel else map
            for done, answer in enumerate(each(_try_grayscale, everything), 1):
                gray.append(answer)
                on_progress("looking at the images", done, total)
            broken = {path: e for path, e in zip(everything, gray, strict=True) if isinstance(e, BrokenImageError)}
            channels = 1 if all(g is True for g in gray if not isinstance(g, BrokenImageError)) else 3
            done = 0
            on_progress("decoding", 0, total)
            for split, files in self.splits.items():
                good = [(path, label) for path, label in files if path not in broken]
                images = create_images(folder, split, (len(good), channels, self.image_size, self.image_size))

                def decode_one(
                    item: tuple[int, tuple[Path, int]], images: np.ndarray = images, channels: int = channels
                ) -> tuple[Path, BrokenImageError] | None:
                    row, (path, _) = item
                    try:
                        images[row] = read_image(path, self.image_size, self.image_size, channels)
                    except BrokenImageError as error:
                        return path, error
                    return None

                for failure in each(decode_one, enumerate(good)):
                    done += 1
                    on_progress("decoding", done, total)
                    if failure:
                        broken[failure[0]] = failure[1]
                keep = np.array([path not in broken for path, _ in good], bool)
                if not keep.all():
                    kept = np.array(images[keep])
                    images = create_images(folder, split, kept.shape)
                    images[:] = kept
                images.flush()  # type: ignore[attr-defined]
                labels = np.array([label for _, label in good], np.int64)[keep]
                np.save(folder / f"{split}_labels.npy", labels)
                self._check(split, labels, broken)
        return Arrays(self.classes, tuple(str(path) for path in broken))

    def _check(self, split: str, labels: np.ndarray, broken: dict[Path, BrokenImageError]) -> None:
        if broken and not self.skip_broken:
            first, *others = broken.values()
            more = f" So are {len(others)} other files, such as {next(iter(list(broken)[1:]))}." if others else ""
            raise ValueError(f"{first}{more} Remove what is no image, or go on without with --skip-broken.")
        if not len(labels):
            raise ValueError(f"The {split} split of {str(self.root)!r} has no image that can be read.")
        empty = [c for i, c in enumerate(self.classes) if split == "train" and not (labels == i).any()]
        if empty:
            raise ValueError(f"Class {empty[0]!r} of {str(self.root)!r} has no image that can be read.")


def _try_grayscale(path: Path) -> bool | BrokenImageError:
    try:
        return is_grayscale(path)
    except BrokenImageError as error:
        return error


def find(root: Path, image_size: int | None, skip_broken: bool) -> FolderSource:
    """The folder's classes and files. Raises ValueError for less than two classes and for an empty class."""
    folders = {split: _first(root, names) for split, names in _SPLIT_NAMES.items()}
    train = folders["train"] or root
    classes = tuple(sorted(d.name for d in _subfolders(train)))
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(
            f"A data set needs at least two classes, one sub-folder of images each, but {str(train)!r} has {found}."
        )
    splits = {"train": _images_of(train, classes, every_class=True)}
    for split in ("validation", "test"):
        folder = folders[split] if folders["train"] else None
        if folder is not None:
            strange = sorted({d.name for d in _subfolders(folder)} - set(classes))
            if strange:
                raise ValueError(f"{str(folder)!r} has the class {strange[0]!r}, which {str(train)!r} does not have.")
            splits[split] = _images_of(folder, classes, every_class=False)
            if not splits[split]:
                raise ValueError(f"{str(folder)!r} has no images: fill it, or remove it.")
    return FolderSource(root, classes, splits, image_size or DEFAULT_IMAGE_SIZE, skip_broken)


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir() and list(_subfolders(root / name))), None)


def _subfolders(folder: Path) -> list[Path]:
    return [d for d in folder.iterdir() if d.is_dir() and not d.name.startswith((".", "__"))]


def _images_of(folder: Path, classes: tuple[str, ...], every_class: bool) -> list[tuple[Path, int]]:
    """(path, label) of every file below the classes' folders that is not hidden."""
    found = []
    for label, name in enumerate(classes):
        below = (folder / name).rglob("*") if (folder / name).is_dir() else ()
        files = sorted(f for f in below if f.is_file() and not f.name.startswith(".") and f.name != "Thumbs.db")
        if every_class and not files:
            raise ValueError(
                f"Class folder {str(folder / name)!r} is empty: every class needs at least two images. Fill it, or remove it."
            )
        found += [(f, label) for f in files]
    return found
