"""`convsweep predict --address`: the connection to the cluster, on which a Ray Data job classifies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING

from cluster.connection import connect
from cluster.prediction_progress import PredictionProgress
from trainer.predicting import Failure, Prediction, Source

if TYPE_CHECKING:
    from trainer.bundle import Bundle


def predict_on_cluster(
    bundle: Bundle, sources: Iterable[Source], address: str, top: int, batch_size: int, progress: PredictionProgress
) -> Generator[Prediction | Failure]:
    """What `trainer.predicting.predict` gives, in the same order and from the same batches, computed on the nodes of a cluster.

    The nodes get the bundle through Ray and need not have its folder. The files they read themselves, by the paths that they have
    here. All sources are listed before the first one is classified; then `progress` knows how many there are. Raises ValueError
    when there is no cluster at the address, and for an image on standard input, RuntimeError when the cluster fails.
    """
    with contextlib.ExitStack() as stack:
        with _silent_start():
            cluster = stack.enter_context(connect(address))
        from cluster.prediction_job import run  # which imports Ray: not before `connect` has set its environment

        yield from run(cluster, bundle, sources, top, batch_size, progress)


@contextlib.contextmanager
def _silent_start() -> Iterator[None]:
    """Ray is connected to in it, so that it says nothing on standard error but what is fatal.

    Of each actor that Ray Data makes, Ray warns that its arguments could get lost (ray-project/ray#57733), and when it is told to
    let that be, it says so.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
