"""Classifying images with a bundle, as many as there are: in their order, a few batches in memory, decoding beside inference."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.images import SMALL_FILE, BrokenImageError, name_of, read_image
from trainer.onnx_session import cores

if TYPE_CHECKING:
    from trainer.bundle import Bundle

BATCH_SIZE = 64
_LOOK_UP_SECONDS = 0.5
_T = TypeVar("_T")


@dataclass(frozen=True)
class Prediction:
    """One image's classes with their probabilities, rounded to 6 digits, the likeliest first. `path` is the name of an open file."""

    path: str
    top: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """What `predict --json` says of an image."""
        label, probability = self.top[0]
        return {"path": self.path, "label": label, "probability": probability, "top": self.top}


@dataclass(frozen=True)
class Failure:
    """What cannot be read, and why: a sentence that names it."""

    path: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """What `predict --json` says of such a file."""
        return {"path": self.path, "error": self.error}


def read_json(found: Mapping[str, Any]) -> Prediction | Failure:
    """What `to_json` gave."""
    if "error" in found:
        return Failure(found["path"], found["error"])
    return Prediction(found["path"], tuple((label, probability) for label, probability in found["top"]))


Source = Path | IO[bytes] | Failure
"""An image file, an open one of a stranger, or what is known already to be no image and only keeps its place."""

_Decoded = tuple[str, NDArray[np.uint8]] | Failure


def predict(
    bundle: Bundle,
    sources: Iterable[Source],
    top: int = 5,
    batch_size: int = BATCH_SIZE,
    decoders: int | None = None,
) -> Generator[Prediction | Failure]:
    """A prediction, or a failure, for each source, in their order; `read_image` says which images may be read.

    The sources are asked for as they are needed: a batch is classified, another one decoded, a third one waits. What they raise is
    raised here. `decoders` threads decode, by default one for each core that this process may use and none when that is a single one:
    then all happens in turn, and nothing is spent on threads. Batches of small files are decoded by one thread whatever it says.
    """
    if decoders is None:
        decoders = cores() if cores() > 1 else 0
    batches = _batches(sources, batch_size)
    shape = bundle.image_shape
    decoded = _decode_ahead(batches, shape, decoders) if decoders else _decode_in_turn(batches, shape)
    with contextlib.closing(decoded):
        for batch in decoded:
            yield from _classify(bundle, batch, top)


def _classify(bundle: Bundle, batch: list[_Decoded], top: int) -> Iterator[Prediction | Failure]:
    images = [decoded[1] for decoded in batch if not isinstance(decoded, Failure)]
    rows: Iterator[tuple[list[int], list[float]]] = iter(())
    if images:
        probabilities = bundle.probabilities(np.stack(images)).astype(np.float64)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]  # of equal ones the first class first
        values = np.take_along_axis(probabilities, best, axis=1).round(6)
        rows = zip(best.tolist(), values.tolist(), strict=True)
    classes = bundle.classes
    for decoded in batch:
        if isinstance(decoded, Failure):
            yield decoded
        else:
            labels, numbers = next(rows)
            yield Prediction(decoded[0], tuple(zip([classes[label] for label in labels], numbers, strict=True)))


def _batches(sources: Iterable[Source], size: int) -> Iterator[list[Source]]:
    there = iter(sources)
    while batch := list(itertools.islice(there, size)):
        yield batch


def _decode(source: Source, shape: tuple[int, int, int]) -> _Decoded:
    if isinstance(source, Failure):
        return source
    channels, height, width = shape
    try:
        return name_of(source), read_image(source, height, width, channels)
    except BrokenImageError as error:
        return Failure(name_of(source), str(error))


def _decode_in_turn(batches: Iterator[list[Source]], shape: tuple[int, int, int]) -> Generator[list[_Decoded]]:
    for batch in batches:
        yield [_decode(source, shape) for source in batch]


def _decode_ahead(
    batches: Iterator[list[Source]], shape: tuple[int, int, int], decoders: int
) -> Generator[list[_Decoded]]:
    """The decoded batches, the next two of which a thread prepares meanwhile: of large files with a pool of `decoders` more.

    The thread also waits for the sources, so that what is ready never waits for what a pipe has yet to say.
    """
    ready = queue.Queue[list[Future[_Decoded] | _Decoded] | BaseException | None](maxsize=1)
    pool = ThreadPoolExecutor(decoders, "decoder")
    over = threading.Event()

    def hand_over(what: list[Future[_Decoded] | _Decoded] | BaseException | None) -> None:
        if not over.is_set():
            ready.put(what)

    def prepare() -> None:
        try:
            for batch in batches:
                if over.is_set():
                    return
                in_parallel = _are_large(batch)
                hand_over([pool.submit(_decode, s, shape) if in_parallel else _decode(s, shape) for s in batch])
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    # A daemon: when the command ends early, it may be waiting for standard input, which nobody can end.
    threading.Thread(target=prepare, name="preparer", daemon=True).start()
    try:
        while (batch := _taken(ready)) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield [decoded.result() if isinstance(decoded, Future) else decoded for decoded in batch]
    finally:
        over.set()
        while not ready.empty():  # so that the thread, which may be putting something, sees that it is over
            ready.get()
        pool.shutdown(wait=False, cancel_futures=True)


def _taken(ready: queue.Queue[_T]) -> _T:
    """The next that is ready. Ctrl-C just before a wait without an end is not seen in it: this one has ends."""
    while True:
        with contextlib.suppress(queue.Empty):
            return ready.get(timeout=_LOOK_UP_SECONDS)


def _are_large(batch: list[Source]) -> bool:
    return sum(map(_size, batch)) >= SMALL_FILE * len(batch)


def _size(source: Source) -> int:
    try:
        return os.stat(source).st_size if isinstance(source, Path) else 0  # noqa: PTH116 -- a third faster
    except OSError:
        return 0
