"""Write some of MNIST as a folder of images, to have one: `python examples/own-images/write_images.py`.

The first --train training images and the first --test test images of MNIST, as many of each digit, become
FOLDER/train/DIGIT/*.png and FOLDER/test/DIGIT/*.png. MNIST is looked for as `convsweep --data mnist` does: in torchvision's
layout under --data-root or CONVSWEEP_DATA; if it is not there, it is downloaded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cluster.activity import decoding
from trainer.data import DataConfig, Split, load_data
from trainer.images import to_image


def main(words: Sequence[str] | None = None) -> None:
    """Write the folder and say what it holds. Exit status 2 for what cannot be done, with one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("data/own-images"), help="the folder; it must not exist")
    parser.add_argument("--train", type=int, default=2000, help="training images")
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--data-root", default=os.environ.get("CONVSWEEP_DATA"), help="holds MNIST/raw")
    parser.add_argument("--cache", help="where MNIST is decoded to; default as with convsweep")
    given = parser.parse_args(words)
    try:
        if given.to.exists():
            raise ValueError(f"{str(given.to)!r} is there already: remove it, or choose another folder with --to.")
        with decoding() as on_progress:
            data = load_data(DataConfig(data="mnist", root=given.data_root, cache=given.cache), on_progress)
        assert data.test is not None
        for split, part, count in (("train", data.train, given.train), ("test", data.test, given.test)):
            written = write(given.to / split, part, data.classes, count // len(data.classes))
            print(f"{given.to / split}: {written:,} images")
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(2, f"write_images.py: {error}\n")


def write(folder: Path, part: Split, classes: Sequence[str], each: int) -> int:
    """Write the first `each` images of every class; gives how many images that are. Raises ValueError for less than two."""
    if each < 2:
        raise ValueError(f"Every class needs two images: write {2 * len(classes)} or more, not {each * len(classes)}.")
    rows = [part.rows[part.labels[part.rows] == label][:each] for label in range(len(classes))]
    for name, of_class in zip(classes, rows, strict=True):
        (folder / name).mkdir(parents=True)
        for row in of_class:
            to_image(part.images[row]).save(folder / name / f"{row:05d}.png")
    return len(np.concatenate(rows))


if __name__ == "__main__":
    main()
