"""Measure `convsweep predict` against the bare onnxruntime loop, on one core, on the same files with the same model.onnx.

    python -m bench.predict [--images 10000] [--photos 300] [--repeats 5]

The files are the test images of MNIST and of CIFAR-10 as PNGs, and photographs of 1024x768 as JPEGs, which are enlarged images of
CIFAR-10 with grain. The bundles are trained for an epoch by `convsweep train`. Both ways run alternately, each in a process of its
own: on all files, and on a single one, which is what the start takes. Needs CONVSWEEP_DATA.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.commands import convsweep
from bench.results import save
from trainer.data import DataConfig, load_data
from trainer.images import to_image

BARE = Path(__file__).with_name("bare_onnxruntime.py")
DATA = {"MNIST, 28x28 PNG": "mnist", "CIFAR-10, 32x32 PNG": "cifar10", "photographs, 1024x768 JPEG": "cifar10"}
GRAIN = 8.0
"""Standard deviation of the photographs' noise; without, such a file has a tenth of a camera's bytes."""

Times = dict[str, list[float]]


def main() -> None:
    """Measure, print a line per kind of file, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    root = str(Path(os.environ["CONVSWEEP_DATA"]).absolute())
    kinds: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        bundles = {data: _train(data, root, folder) for data in dict.fromkeys(DATA.values())}
        for number, (kind, data) in enumerate(DATA.items()):
            files = folder / f"files-{number}"
            _write(files, data, root, given.photos if "JPEG" in kind else given.images, "JPEG" in kind)
            kinds[kind] = {"files": len(list(files.iterdir())), "bytes": sum(f.stat().st_size for f in files.iterdir())}
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this process and of all that it starts
        os.environ["OMP_NUM_THREADS"] = "1"
        for number, (kind, data) in enumerate(DATA.items()):
            kinds[kind] |= _measure(bundles[data], folder / f"files-{number}", given.repeats)
            print(f"{kind}: {share(kinds[kind]):.2f} of the bare loop's images per second", flush=True)
    packages = {name: importlib.metadata.version(name) for name in ("onnxruntime", "pillow")}
    save("predict", {"kinds": kinds, "packages": packages})


def _train(data: str, root: str, folder: Path) -> Path:
    bundle = folder / f"bundle-{data}"
    convsweep("train", "--data", data, "--data-root", root, "--epochs", 1, "--to", bundle)
    return bundle


def _write(folder: Path, data: str, root: str, count: int, photos: bool) -> None:
    folder.mkdir()
    split = load_data(DataConfig(data=data, root=root)).test
    assert split is not None
    rng = np.random.default_rng(0)
    for number, row in enumerate(split.rows[:count]):
        image = to_image(split.images[row])
        if photos:
            large = np.asarray(image.resize((1024, 768), Image.Resampling.BICUBIC), np.float32)
            grainy = (large + rng.normal(0, GRAIN, large.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(grainy).save(folder / f"{number:05d}.jpg", quality=85)
        else:
            image.save(folder / f"{number:05d}.png")


def _measure(bundle: Path, files: Path, repeats: int) -> dict[str, Times]:
    """Seconds of whole processes, by way: on all files, and on one."""
    one = files.with_name(f"{files.name}-one")
    one.mkdir()
    first = min(files.iterdir())
    (one / first.name).write_bytes(first.read_bytes())
    ours = [sys.executable, "-m", "cluster.cli", "predict", str(bundle)]
    ways = {
        "bare": lambda folder: [sys.executable, str(BARE), str(bundle / "model.onnx"), str(folder)],
        "convsweep": lambda folder: [*ours, str(folder), "--json"],
    }
    found: dict[str, Times] = {way: {"all": [], "one": []} for way in ways}
    for way, command in ways.items():  # not measured: it brings files and programs into the page cache
        said = json.loads(subprocess.run(command(files), check=True, stdout=subprocess.PIPE).stdout)
        assert (said["images"] if way == "bare" else len(said)) == len(list(files.iterdir()))
    for _ in range(repeats):
        for what, folder in (("one", one), ("all", files)):
            for way, command in ways.items():
                began = time.perf_counter()
                subprocess.run(command(folder), check=True, stdout=subprocess.DEVNULL)
                found[way][what].append(time.perf_counter() - began)
    return found


def rates(kind: dict[str, Any], way: str) -> tuple[float, float]:
    """Images per second, by the medians: without the start, and with it."""
    everything, one = statistics.median(kind[way]["all"]), statistics.median(kind[way]["one"])
    return (kind["files"] - 1) / (everything - one), kind["files"] / everything


def share(kind: dict[str, Any]) -> float:
    """Of the bare loop's images per second, without the start."""
    return rates(kind, "convsweep")[0] / rates(kind, "bare")[0]


if __name__ == "__main__":
    main()
