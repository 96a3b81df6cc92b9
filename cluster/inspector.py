"""What the inspection of a cluster does on one of its nodes, in an actor there. Imports no Ray."""

from __future__ import annotations

import contextlib
import datetime
import socket
import statistics
import time

from pyarrow import fs

from cluster import node_facts, ports
from cluster.experiments import Experiments
from cluster.ports import Answer
from trainer.checkpoint import open_storage

MEGABYTES = 16
"""What is reduced: about the gradients of a network of four million weights."""
REPETITIONS = 5


class Inspector:
    """An actor on the node that is looked at."""

    def look(self) -> node_facts.NodeFacts:
        """What the node says of itself."""
        return node_facts.look()

    def now(self) -> float:
        """The node's time of day, in seconds since 1970."""
        return time.time()

    def ask(self, host: str, asked: list[int]) -> dict[int, Answer]:
        """How another node's ports answer this one, which shows no token."""
        return ports.ask_all(host, asked)

    def write(self, uri: str, name: str) -> None:
        """Write a file on the storage path."""
        files, folder = open_storage(uri)
        files.create_dir(folder, recursive=True)
        with files.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(b"x")

    def seen(self, uri: str) -> set[str]:
        """The names of the files that are there."""
        files, folder = open_storage(uri)
        return {file.base_name for file in files.get_file_info(fs.FileSelector(folder, allow_not_found=True))}

    def clean(self, experiments: Experiments, name: str) -> None:
        """Remove what was written; on a shared path another node may be faster."""
        with contextlib.suppress(OSError):
            experiments.remove_sweep_files(name)

    def meeting_place(self, address: str) -> str:
        """Where the ranks of an all-reduce meet: a port of this node, which has that address, that nobody uses."""
        with socket.create_server((address, 0)) as server:
            return f"tcp://{address}:{server.getsockname()[1]}"

    def all_reduce(self, backend: str, rank: int, size: int, at: str, patience: float) -> float:
        """The seconds of an all-reduce, the median of a few. Called on all nodes at once; raises RuntimeError when a sum is wrong."""
        import torch
        import torch.distributed as dist

        device = "cuda" if backend == "nccl" else "cpu"
        wait = datetime.timedelta(seconds=patience)
        dist.init_process_group(backend, init_method=at, rank=rank, world_size=size, timeout=wait)
        try:
            seconds = []
            for repetition in range(2 + REPETITIONS):
                tensor = torch.full((MEGABYTES * 10**6 // 4,), float(rank + 1), device=device)
                dist.barrier()
                began = time.perf_counter()
                dist.all_reduce(tensor)
                total = tensor[-1].item()  # waits for the GPU
                if repetition >= 2:
                    seconds.append(time.perf_counter() - began)
                if total != size * (size + 1) / 2:
                    raise RuntimeError(f"the sum is {total:g}, not {size * (size + 1) / 2:g}")
            return statistics.median(seconds)
        finally:
            dist.destroy_process_group()
