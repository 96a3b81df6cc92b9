"""Write CIFAR-10 with classes of unequal size as a folder of images: `python examples/cifar10-long-tail/write_images.py`.

Of the i-th class, i = 0 ... 9 in CIFAR-10's order, 5,000 * ratio^(-i/9) of the training images stay, drawn by the seed: with a
ratio of 100 that is 5,000 airplanes, 2,997 automobiles ... 83 ships and 50 trucks, 12,406 images (the exponential profile of Cui
et al. 2019, arXiv:1901.05555). The test images are all written, 1,000 of each class. CIFAR-10 is looked for as `convsweep
--data cifar10` does: in torchvision's layout under --data-root or CONVSWEEP_DATA; if it is not there, it is downloaded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.activity import decoding
from trainer.data import DataConfig, OnProgress, load_data
from trainer.images import to_image


def main(words: Sequence[str] | None = None) -> None:
    """Write the folder and say what it holds. Exit status 2 for what cannot be done, with one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("data/cifar10-long-tail"), help="the folder; it must not exist")
    parser.add_argument("--ratio", type=float, default=100, help="images of the largest class to one of the smallest")
    parser.add_argument("--seed", type=int, default=0, help="draws the images that stay")
    parser.add_argument("--data-root", default=os.environ.get("CONVSWEEP_DATA"), help="holds cifar-10-batches-py")
    parser.add_argument("--cache", help="where CIFAR-10 is decoded to; default as with convsweep")
    given = parser.parse_args(words)
    try:
        with decoding() as on_progress:
            counts = write(
                given.to,
                DataConfig(data="cifar10", root=given.data_root, cache=given.cache),
                given.ratio,
                given.seed,
                on_progress,
            )
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(2, f"write_images.py: {error}\n")
    for split, of_class in counts.items():
        listed = ", ".join(f"{name} {count:,}" for name, count in of_class.items())
        print(f"{given.to / split}: {sum(of_class.values()):,} images: {listed}")


def write(
    folder: Path, config: DataConfig, ratio: float, seed: int, on_progress: OnProgress
) -> dict[str, dict[str, int]]:
    """Write `folder`/train/CLASS/*.png and `folder`/test/CLASS/*.png, whole or not at all; gives the images by split and class.

    Raises ValueError when `folder` is there already, for a ratio below 1, and for one that leaves a class without two images.
    """
    if folder.exists():
        raise ValueError(f"{str(folder)!r} is there already: remove it, or choose another folder with --to.")
    if not ratio >= 1:
        raise ValueError(f"--ratio must be at least 1, but got {ratio:g}.")
    data = load_data(config, on_progress)
    assert data.test is not None
    wanted = long_tail(int(np.bincount(data.train.labels).min()), len(data.classes), ratio)
    if wanted[-1] < 2:
        raise ValueError(
            f"Each class needs two images, but --ratio {ratio:g} leaves {data.classes[-1]!r} {wanted[-1]}."
        )
    # Beside the rows of its training split, which leaves a validation split out, the array has all training images.
    chosen = {"train": draw(data.train.labels, wanted, seed), "test": data.test.rows}
    parts = {"train": data.train, "test": data.test}
    total, done = sum(map(len, chosen.values())), 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        on_progress("writing images", 0, total)
        for split, rows in chosen.items():
            for name in data.classes:
                (temporary / split / name).mkdir(parents=True)
            for row in rows:
                name = data.classes[parts[split].labels[row]]
                to_image(parts[split].images[row]).save(temporary / split / name / f"{row:05d}.png", compress_level=1)
                done += 1
                on_progress("writing images", done, total)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = {
        split: np.bincount(parts[split].labels[rows], minlength=len(data.classes)) for split, rows in chosen.items()
    }
    return {split: dict(zip(data.classes, found.tolist(), strict=True)) for split, found in counts.items()}


def long_tail(most: int, classes: int, ratio: float) -> list[int]:
    """How many images each class keeps: `most` of the first, `most` / `ratio` of the last, exponentially between them."""
    return [int(most * ratio ** (-i / (classes - 1))) for i in range(classes)]


def draw(labels: NDArray[np.int64], wanted: Sequence[int], seed: int) -> NDArray[np.int64]:
    """The rows of `wanted[label]` images of each label, sorted."""
    random = np.random.default_rng(seed)
    rows = [random.permutation(np.flatnonzero(labels == label))[:count] for label, count in enumerate(wanted)]
    return np.sort(np.concatenate(rows))


if __name__ == "__main__":
    main()
