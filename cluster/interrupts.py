"""Stopping a run of a sweep before its end: Ctrl-C, SIGTERM, and whoever else wants it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any


class Stop:
    """Whether a run is to stop before its end, and if something is to be said about it, why."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.reason: str | None = None

    def because(self, reason: str) -> None:
        """Stop, for this reason."""
        self.reason = reason
        self.event.set()


@contextlib.contextmanager
def interruptible(event: threading.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) sets the event; a second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        event.set()
        # Not by sys.stderr: the signal may have come in the middle of a write to it.
        os.write(2, b"\nStopping: what is finished is kept. A second Ctrl-C stops at once.\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before: Mapping[int, Any] = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
