"""The data sets that have a name: read by torchvision's own classes, and `digits` by scikit-learn."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import sys
import tempfile
import urllib.error
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.arrays import Arrays, save_split
from trainer.hyperparameters import nearest
from trainer.images import to_array


@dataclass(frozen=True)
class NamedData:
    """A named data set: torchvision's class, the path of its files under a torchvision root, the preset to compare with.

    `mirrored` says whether a mirrored image still shows its class: a car does, a digit does not. `recipe` is the preset that is
    known to be good on it, which a sweep tries too and searches around.
    """

    torchvision_class: str | None
    path: str
    preset: str
    mirrored: bool
    recipe: str | None
    summary: str


NAMES: dict[str, NamedData] = {
    "digits": NamedData(
        None, "", "default", False, None, "1,797 handwritten digits, 8x8, inside scikit-learn: no download"
    ),
    "mnist": NamedData("MNIST", "MNIST/raw", "mnist-3conv", False, "mnist-fast", "70,000 handwritten digits, 28x28"),
    "fashion-mnist": NamedData(
        "FashionMNIST", "FashionMNIST/raw", "mnist-3conv", True, "mnist-fast", "70,000 clothes, 28x28"
    ),
    "kmnist": NamedData(
        "KMNIST", "KMNIST/raw", "mnist-3conv", False, "mnist-fast", "70,000 Japanese characters, 28x28"
    ),
    "cifar10": NamedData(
        "CIFAR10", "cifar-10-batches-py", "cifar-3conv", True, "cifar10-fast", "60,000 colour images, 10 objects, 32x32"
    ),
    "cifar100": NamedData(
        "CIFAR100", "cifar-100-python", "cifar-3conv", True, "cifar10-fast", "60,000 colour images, 100 objects, 32x32"
    ),
    "svhn": NamedData(
        "SVHN", "*_32x32.mat", "cifar-3conv", False, "cifar10-fast", "99,289 house numbers in colour, 32x32"
    ),
}


def unknown(data: str) -> str:
    """What to say of a `data` that is neither a name nor a folder."""
    return (
        f"There is no data set and no folder {data!r}.{nearest(Path(data).name, NAMES)} Use one of {', '.join(NAMES)}, "
        "or the path of a folder with one sub-folder of images per class."
    )


@dataclass(frozen=True)
class NamedSource:
    """A named data set whose files are at `root` (None: inside scikit-learn)."""

    name: str
    root: Path | None
    image_size: int | None

    def fingerprint(self) -> str:
        """A short hash of the files and of the size that the images get."""
        parts = [self.name, str(self.image_size)]
        if self.root is not None:
            found = sorted(_files(self.name, self.root))
            parts += [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in found]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def decode(self, folder: Path, on_progress: Callable[[str, int, int], None]) -> Arrays:
        """Write the splits' arrays into `folder`."""
        on_progress(f"decoding {self.name}", 0, 2)
        if self.root is None:
            classes = self._decode_digits(folder)
        else:
            for done, split in enumerate(("train", "test")):
                images, labels, classes = _read(self.name, self.root, split)
                save_split(folder, split, self._sized(images), labels)
                on_progress(f"decoding {self.name}", done + 1, 2)
        return Arrays(classes)

    def _decode_digits(self, folder: Path) -> tuple[str, ...]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        rows = np.arange(len(images))
        train, test = train_test_split(rows, test_size=360, random_state=0, stratify=digits.target)
        for split, chosen in (("train", np.sort(train)), ("test", np.sort(test))):
            save_split(folder, split, self._sized(images[chosen]), digits.target[chosen])
        return tuple(map(str, range(10)))

    def _sized(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        size = self.image_size
        if size is None or images.shape[2:] == (size, size):
            return images
        channels = images.shape[1]
        pictures = (Image.fromarray(i[0] if channels == 1 else i.transpose(1, 2, 0)) for i in images)
        return np.stack([to_array(picture, size, size, channels) for picture in pictures])


def find(name: str, root: str | None, cache: Path, image_size: int | None) -> NamedSource:
    """Where the data set's files are: under `root`, else downloaded into the cache.

    Nothing is ever written under `root`. Raises RuntimeError when the download fails.
    """
    if NAMES[name].torchvision_class is None:
        return NamedSource(name, None, image_size)
    if root is not None and not Path(root).is_dir():
        raise ValueError(
            f"The data root {root!r} is not a folder. It holds torchvision's layout: {NAMES[name].path}, ..."
        )
    downloads = cache / "torchvision"
    given = Path(root).resolve() if root else None
    if given and _files(name, given):
        return NamedSource(name, _unpacked(name, given, downloads), image_size)
    if not _is_downloaded(name, downloads):
        try:
            _construct(name, downloads, "train", download=True)
            _construct(name, downloads, "test", download=True)
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            raise RuntimeError(
                f"The data set {name!r} is not under {str(given or downloads)!r} and could not be downloaded ({error}). Give the folder "
                f"that holds {NAMES[name].path} with --data-root or in CONVSWEEP_DATA, or use --data digits, which needs no download."
            ) from error
        _whole(name, downloads).touch()
    return NamedSource(name, downloads, image_size)


def is_here(name: str, root: str | None, cache: Path) -> bool:
    """Whether `find` has the data set's files without a download."""
    if NAMES[name].torchvision_class is None or (root and _files(name, Path(root))):
        return True
    return _is_downloaded(name, cache / "torchvision")


def _is_downloaded(name: str, downloads: Path) -> bool:
    """Whether the files are there and whole: an interrupted download is gone on with."""
    if not _files(name, downloads):
        return False
    if not _whole(name, downloads).exists():
        try:
            for split in ("train", "test"):
                _construct(name, downloads, split, download=False)
        except (OSError, RuntimeError, EOFError, ValueError):
            return False
        _whole(name, downloads).touch()
    return True


def _whole(name: str, downloads: Path) -> Path:
    """The file that says that the data set was downloaded to its end."""
    return downloads / f".{name}-is-whole"


def _files(name: str, root: Path) -> list[Path]:
    path = NAMES[name].path
    found = root.glob(path) if "*" in path else (root / path).glob("*")
    return [f for f in found if f.is_file()]


def _unpacked(name: str, root: Path, downloads: Path) -> Path:
    """A root in which torchvision can read the files: `root`, or an unpacked copy when they are as downloaded."""
    files = _files(name, root)
    if not files or any(f.suffix != ".gz" for f in files):
        return root
    key = hashlib.sha256("".join(f"{f} {f.stat().st_mtime_ns}" for f in sorted(files)).encode()).hexdigest()[:16]
    copy = downloads.with_name(f"unpacked-{key}")
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=copy.parent, prefix=f".{copy.name}-"))
    try:
        target = temporary / NAMES[name].path
        target.mkdir(parents=True)
        for file in files:
            with gzip.open(file) as packed, (target / file.stem).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        try:
            temporary.rename(copy)
        except OSError:  # another process was faster
            if not copy.exists():
                raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"The files of {name!r} under {str(root)!r} are incomplete or damaged: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return copy


def _construct(name: str, root: Path, split: str, download: bool) -> Any:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, str(NAMES[name].torchvision_class))
    arguments: dict[str, object] = {"split": split} if name == "svhn" else {"train": split == "train"}
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; standard output is the command's own
        return kind(str(root), download=download, **arguments)


def _read(name: str, root: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Images `(N, C, H, W)`, labels and class names as torchvision reads them. Raises ValueError for damaged files."""
    try:
        data = _construct(name, root, split, download=False)
    except RuntimeError as error:
        raise ValueError(f"The files of {name!r} under {str(root)!r} are incomplete or damaged: {error}") from error
    images = np.asarray(data.data)
    labels = np.asarray(data.labels if name == "svhn" else data.targets, np.int64)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    classes = tuple(getattr(data, "classes", map(str, range(10))))
    # torchvision calls MNIST's classes "0 - zero"; the digit alone is what people write.
    return np.ascontiguousarray(images), labels, tuple(c.split(" - ")[0] for c in classes)
