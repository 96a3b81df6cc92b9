"""Classifying images as a Ray Data job, with an actor for each core that a cluster has free."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException

from cluster.autoscaling import possible_nodes
from cluster.connection import Cluster
from cluster.prediction_progress import PredictionProgress
from trainer.predicting import Failure, Prediction, Source, predict, read_json

if TYPE_CHECKING:
    from trainer.bundle import Bundle

BLOCKS_OF_A_SIZE = 64
MOST_BATCHES = 32
"""In a block, which is what an actor takes at a time: at first a single one, so that few images are shared out as well."""

DECODERS = 2
"""Threads of an actor that decode: while one waits for shared storage, another one does."""

_SOURCES = pa.schema([("source", pa.string())])
_FOUND = pa.schema([("found", pa.string())])


def run(
    cluster: Cluster,
    bundle: Bundle,
    sources: Iterable[Source],
    top: int,
    batch_size: int,
    progress: PredictionProgress,
) -> Iterator[Prediction | Failure]:
    """As `cluster.distributed_predict.predict_on_cluster`, on a cluster that this process is connected to."""
    cores = sum(int(node.resources.get("CPU", 0)) for node in cluster.nodes())
    if not cores and not possible_nodes():
        raise RuntimeError("The cluster has no node with a CPU to classify images with.")
    blocks, total = _list(sources, batch_size)
    if not blocks:
        return
    progress.begin(total)
    free = int(cluster.free().resources.get("CPU", 0))
    if not free:
        progress.say(f"The {cores} cores of the cluster are all in use: this waits for one.")
    try:
        for found in _run(bundle, blocks, free, top, batch_size):
            yield read_json(json.loads(found))
    except (ray.exceptions.RayError, ExecutionTimeoutError, SystemException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]  # the last one of a traceback
        reason = (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")
        raise RuntimeError(f"The cluster could not classify the images: {reason}.") from error


def _list(sources: Iterable[Source], batch_size: int) -> tuple[list[Any], int]:
    """The blocks, in Ray's object store, and how many sources they have together."""
    blocks, total, there = list[Any](), 0, iter(sources)
    while True:
        batches = min(2 ** (len(blocks) // BLOCKS_OF_A_SIZE), MOST_BATCHES)
        block = [_written(source) for source in islice(there, batches * batch_size)]
        if not block:
            return blocks, total
        blocks.append(ray.put(pa.table({"source": block}, schema=_SOURCES)))
        total += len(block)


def _run(bundle: Bundle, blocks: list[Any], free: int, top: int, batch_size: int) -> Iterator[str]:
    """What was found, as JSON, in the order of the blocks."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is said once, by whoever runs this
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    most = len(blocks)
    found = ray.data.from_arrow_refs(blocks).map_batches(
        _Classifier,
        batch_size=None,  # a block
        batch_format="pyarrow",
        fn_constructor_args=(ray.put(bundle), os.getcwd(), top, batch_size),  # noqa: PTH109
        compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=max(1, min(free, most)), max_size=most),
        num_cpus=1,
    )
    batches: Iterable[Any] = found.iter_batches(batch_size=None, batch_format="pyarrow")
    return chain.from_iterable(batch["found"].to_pylist() for batch in batches)


class _Classifier:
    """What an actor does with a block."""

    def __init__(self, bundle: Any, folder: str, top: int, batch_size: int) -> None:
        self._bundle: Bundle = ray.get(bundle)
        self._top, self._batch_size = top, batch_size
        _enter(folder)

    def __call__(self, block: pa.Table) -> pa.Table:
        sources = [_read(source) for source in block["source"].to_pylist()]
        found = predict(self._bundle, sources, self._top, self._batch_size, decoders=DECODERS)
        return pa.table({"found": [json.dumps(one.to_json()) for one in found]}, schema=_FOUND)


def _enter(folder: str) -> None:
    """Let relative paths mean what they mean for whoever gave the command."""
    try:
        os.chdir(folder)
    except (
        OSError
    ):  # this node does not have it, so that such a path is to mean nothing here: in a folder that is gone it does
        with tempfile.TemporaryDirectory() as nowhere:
            os.chdir(nowhere)


def _written(source: Source) -> str:
    """As JSON, which also has room for a path that is no text."""
    if isinstance(source, Failure):
        return json.dumps(source.to_json())
    if isinstance(source, Path):
        return json.dumps(str(source))
    raise ValueError("The nodes of a cluster cannot see standard input: for the image there, leave out --address.")


def _read(source: str) -> Source:
    read = json.loads(source)
    return Path(read) if isinstance(read, str) else Failure(**read)
