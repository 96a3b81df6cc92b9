"""How far the trials of a sweep are, by what lies on the shared storage path while they run."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType


class States:
    """Follows a folder of checkpoints: `epochs` has for each trial the numbers of epochs that its state had, one after another.

    A context: it follows in it.
    """

    def __init__(self, folder: Path) -> None:
        self.epochs: dict[int, list[int]] = defaultdict(list)
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="states")

    def __enter__(self) -> States:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(0.1):
            for file in sorted(self._folder.glob("trial-*.state")):
                with contextlib.suppress(OSError):  # the trial has ended
                    seen, now = self.epochs[int(file.stem.split("-")[1])], epochs_in(file)
                    if not seen or seen[-1] != now:
                        seen.append(now)


def epochs_in(file: Path) -> int:
    """How many epochs the training whose state this is has had: the header of a safetensors file says it."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return len(json.loads(header["__metadata__"]["history"]))
