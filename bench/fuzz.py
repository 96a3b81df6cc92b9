"""Throw damaged and hostile input at what reads files: nothing may raise but what is said on purpose.

    python -m bench.fuzz [--inputs 100000] [--targets sweep image bundle state] [--seed 0]

`sweep` reads sweep files (mutated and made up), `image` image files in all common formats, from paths and from strangers, `bundle`
bundles with one file damaged, `state` checkpoints and the states of trainings. Each input is a valid one with bytes flipped, cut,
doubled, put in or exchanged. Where atheris is installed, as many again are found by it, which looks for input that takes new ways
through our code. Prints a line per target; exit status 1 when something else than a sentence of ours came out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from cluster.config import make_config, read_sweep_file
from trainer import checksums
from trainer.bundle import CHECKED, Bundle
from trainer.bundle_writing import write_bundle
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.data import DataConfig, load_data
from trainer.hyperparameters import TrialConfig, flatten, unflatten
from trainer.images import read_image
from trainer.loop import create_model
from trainer.origin import Origin
from trainer.presets import PRESETS
from trainer.training_state import TrainingState

Reader = Callable[[bytes], object]

SWEEPS = (
    "data: digits\ntrials: 20\nepochs: 3\nspace:\n  model.kernel_size: [3, 5]\n",
    "data: digits\ntime_budget: 2h\nspace:\n  optimizer.learning_rate: {low: 1e-3, high: 0.1, log: true}\n",
    "data: digits\nname: a\nsampler: grid\npreset: none\nfirst:\n  - {model.blocks: 2, model.filters: [8, 16]}\n",
    "data: digits\nworkers: 2\ngpus_per_worker: 0.5\nseed: 3\nkeep_checkpoints: 2\nepoch_timeout: 10m\n",
    "{data: digits, space: {model.batch_norm: true, model.activation: [relu, gelu], training.batch_size: 64}}",
)
TOKENS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"- ",
    b"*a",
    b"&a",
    b"!!python/object:os.system",
    b"null",
    b".nan",
    b"1e999",
    b"-1",
    b"0",
    b"\n",
)


def main() -> None:
    """Run the targets, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=[*TARGETS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", choices=TARGETS, help=argparse.SUPPRESS)  # in a process of its own: atheris ends it
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.guided:
        guided(given.guided, given.inputs, given.seed)
    broken = 0
    for name in given.targets:
        began = time.time()
        read, strange = fuzz(name, given.inputs // len(given.targets), given.seed)
        broken += bool(strange)
        print(
            f"{'BROKEN' if strange else 'holds '}  {name}: {sum(read.values()):,} inputs, {read['refused']:,} refused with a sentence, "
            f"{read['read']:,} read, {len(strange)} strange  ({time.time() - began:.0f} s)",
            flush=True,
        )
        for one in strange[:5]:
            print(one)
    if importlib.util.find_spec("atheris"):
        for name in given.targets:
            broken += not run_guided(name, given.inputs // len(given.targets), given.seed)
    sys.exit(broken > 0)


def run_guided(name: str, inputs: int, seed: int) -> bool:
    """Let atheris look, in a process of its own; prints a line and returns whether it found nothing."""
    began = time.time()
    words = ["--guided", name, "--inputs", str(inputs), "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:  # atheris ends its process without tidying up
        done = subprocess.run(
            [sys.executable, "-m", "bench.fuzz", *words],
            env=os.environ | {"TMPDIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    holds = done.returncode == 0
    print(
        f"{'holds ' if holds else 'BROKEN'}  {name}, guided by atheris: {inputs:,} inputs  ({time.time() - began:.0f} s)",
        flush=True,
    )
    if not holds:
        print(done.stdout[-2000:], done.stderr[-4000:])
    return holds


def guided(name: str, inputs: int, seed: int) -> None:
    """Fuzz one target with atheris until that many inputs were read or one of them is not refused as it should be; does not return."""
    atheris: Any = importlib.import_module("atheris")
    for module in [m for key, m in sys.modules.items() if key.partition(".")[0] in ("trainer", "cluster")]:
        for thing in vars(module).values():
            if inspect.isfunction(thing) and thing.__module__ == module.__name__:
                atheris.instrument_func(thing)
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    readers = TARGETS[name](folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, (content, _) in enumerate(readers):  # the first byte says who reads the rest
        (corpus / str(number)).write_bytes(bytes([number]) + content)

    def read(data: bytes) -> None:
        if not data:
            return
        try:
            readers[data[0] % len(readers)][1](data[1:])
        except ValueError as error:
            if not is_ours(error):
                raise

    longest = max(len(content) for content, _ in readers)
    options = [
        f"-runs={inputs}",
        f"-seed={seed + 1}",
        f"-max_len={2 * longest}",
        "-rss_limit_mb=8192",
        f"-artifact_prefix={folder}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], read)
    atheris.Fuzz()


def is_ours(error: ValueError) -> bool:
    """Whether it is a sentence of ours, and not what some library says."""
    return type(error) is ValueError or type(error).__module__.startswith(("trainer", "cluster"))


def fuzz(name: str, inputs: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How many inputs were read and refused, and what was raised that is no sentence of ours, with its traceback."""
    draw, found, strange = random.Random(seed), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        readers = TARGETS[name](Path(folder))
        for number in range(inputs):
            seed_bytes, read = readers[number % len(readers)]
            content = mutated(seed_bytes, draw)
            try:
                read(content)
                found["read"] += 1
            except ValueError as error:
                found["refused"] += 1
                if not is_ours(error):
                    strange.append("".join(traceback.format_exception(error)))
            except Exception as error:
                found["strange"] += 1
                strange.append("".join(traceback.format_exception(error)))
    return found, strange


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The bytes with one to eight changes."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at = draw.randrange(len(data) + 1)
        to = min(len(data), at + draw.choice((1, 2, 4, 16, 256)))
        kind = draw.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at:to]
        elif kind == 2:
            data[at:at] = data[at:to]
        elif kind == 3:
            data[at:to] = draw.randbytes(to - at)
        elif kind == 4:
            data[at:at] = draw.choice(TOKENS)
        else:
            other = draw.randrange(len(data) + 1)
            data[at:to] = data[other : other + to - at]
    return bytes(data)


def sweeps(folder: Path) -> Sequence[tuple[bytes, Reader]]:
    """Sweep files."""
    file = folder / "sweep.yaml"

    def read(content: bytes) -> object:
        file.write_bytes(content)
        return make_config({"name": "s"} | read_sweep_file(file))

    def own(config: TrialConfig) -> dict[str, object]:
        return {name: value for name, value in flatten(config).items() if name.split(".")[0] in ("loss", "schedule")}

    return [(text.encode(), read) for text in SWEEPS] + [
        (yaml.safe_dump({"data": "digits", "preset": name, "space": own(config)}).encode(), read)
        for name, config in PRESETS.items()
    ]


def images(folder: Path) -> Sequence[tuple[bytes, Reader]]:
    """Image files, read as those of a folder and as those of a stranger."""
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 4)).astype(np.uint8)
    rgba = Image.fromarray(pixels)
    kinds = {
        "PNG": (rgba, rgba.convert("P"), rgba.convert("L"), rgba.convert("1"), rgba.convert("I;16")),
        "JPEG": (rgba.convert("RGB"), rgba.convert("CMYK")),
        "GIF": (rgba.convert("P"),),
        "BMP": (rgba.convert("RGB"),),
        "TIFF": (rgba, rgba.convert("CMYK")),
        "WEBP": (rgba,),
        "PPM": (rgba.convert("RGB"),),
        "ICO": (rgba,),
        "TGA": (rgba,),
    }
    file = folder / "image"

    def read_file(content: bytes) -> object:
        file.write_bytes(content)
        return read_image(file, 8, 8, 3)

    def read_stream(content: bytes) -> object:
        return read_image(io.BytesIO(content), 8, 8, 1)

    found = []
    for kind, pictures in kinds.items():
        for picture in pictures:
            stream = io.BytesIO()
            picture.save(stream, kind)
            found += [(stream.getvalue(), read_file), (stream.getvalue(), read_stream)]
    return found


def bundles(folder: Path) -> Sequence[tuple[bytes, Reader]]:
    """Bundles of which one file is damaged, under checksums that fit."""
    data = load_data(DataConfig(data="digits", cache=str(folder / "cache")))
    config = unflatten({"model.blocks": 2, "model.filters": 8})
    model = create_model(config, data, torch.device("cpu")).eval()
    whole = folder / "bundle"
    write_bundle(whole, model, config, data, {}, Origin(epochs=1, command="convsweep train"))

    def damaging(name: str) -> Reader:
        content_before = (whole / name).read_bytes()

        def read(content: bytes) -> object:
            (whole / name).write_bytes(content)
            if name != checksums.NAME:
                checksums.write(whole, CHECKED)
            try:
                return Bundle(whole)
            finally:
                (whole / name).write_bytes(content_before)
                checksums.write(whole, CHECKED)

        return read

    return [((whole / name).read_bytes(), damaging(name)) for name in (*CHECKED, checksums.NAME)]


def states(folder: Path) -> Sequence[tuple[bytes, Reader]]:
    """Checkpoints and states of trainings."""
    config = unflatten({"model.blocks": 2, "model.filters": 8})
    weights = {"weight": torch.zeros(4, 3)}
    store = CheckpointStore(str(folder / "store"))
    store.save(1, Checkpoint(weights, config, 3, 0.5))
    file = next((folder / "store").iterdir())
    shutil.copy(file, folder / "whole")

    def read_checkpoint(content: bytes) -> object:
        file.write_bytes(content)
        return store.load(1)

    state = TrainingState(config, (), 1.5, {"model.weight": weights["weight"]}).to_bytes()
    return [((folder / "whole").read_bytes(), read_checkpoint), (state, TrainingState.from_bytes)]


TARGETS: dict[str, Callable[[Path], Sequence[tuple[bytes, Reader]]]] = {
    "sweep": sweeps,
    "image": images,
    "bundle": bundles,
    "state": states,
}


if __name__ == "__main__":
    main()
