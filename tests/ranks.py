"""Two ranks of one process group, each a process of its own, as a worker group has them."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.services import free_port

Work = Callable[[int, str], Any]
"""Gets its rank and the folder of decoded data, and gives what JSON can hold."""


def on_two_ranks(work: Work, cache: Path, folder: Path) -> list[Any]:
    """What each rank found. `work` must lie in a module, for the other processes to import it."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    ranks = [context.Process(target=_rank, args=(work, rank, port, str(cache), folder)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    waiting = [process for process in ranks if process.is_alive()]
    for process in waiting:
        process.kill()
        process.join()
    assert not waiting, "a rank waits for the other for ever"
    assert [process.exitcode for process in ranks] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def _rank(work: Work, rank: int, port: int, cache: str, folder: Path) -> None:
    faulthandler.enable()
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(work(rank, cache)))
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may want the interpreter's lock while it ends, and abort (pytorch/pytorch#179291)
