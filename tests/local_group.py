"""A worker group of one rank in this process, without Ray: the real mailbox in a thread, and the real worker beside it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trainer import worker
from trainer.mailbox import Assignment, Mailbox, Report

LONG = 120.0
GROUP, NODE = "a", "the node"


class KilledError(BaseException):
    """Stands in for the death of the group's processes: nothing in them answers to it."""


class LocalGroup:
    """A context: the mailbox's thread ends with it. `reports` has all that the worker said, also what the mailbox knew already.

    `after` is called with each report once it has arrived, in the worker's thread.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reports: list[Report] = []
        self.after: Callable[[Report], None] = lambda report: None
        self._mailbox = Mailbox([GROUP], kill=lambda rank: None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._knows_that_it_leaves = threading.Event()
        monkeypatch.setattr(worker, "ray", self._fake_ray())
        monkeypatch.setattr(worker.torch, "set_num_threads", lambda threads: None)

    def __enter__(self) -> LocalGroup:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(LONG)
        self._loop.close()

    def _end(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        asyncio.gather(*tasks, return_exceptions=True).add_done_callback(lambda done: self._loop.stop())

    def call(self, name: str, *arguments: Any) -> Any:
        """What the mailbox answers."""
        return self._call(name, *arguments).result(LONG)

    def _call(self, name: str, *arguments: Any) -> concurrent.futures.Future[Any]:
        answer = asyncio.run_coroutine_threadsafe(getattr(self._mailbox, name)(*arguments), self._loop)
        if name == "news" and arguments[2]:
            self._knows_that_it_leaves.set()
        if name == "report":
            self.reports.append(arguments[1])
            answer.result(LONG)
            self.after(arguments[1])
        return answer

    def train(self, assignment: Assignment) -> list[Report]:
        """Post the assignment and train it to its end; the reports as whoever reads the mailbox gets them."""
        self.call("post", assignment)
        self.call("no_more", 1)
        self.start_again()
        return self.read(assignment.trial)

    def start_again(self) -> None:
        """The group's processes start, and take what there is."""
        worker.take_assignments(self, GROUP, threads=1)

    def read(self, trial: int) -> list[Report]:
        """The trial's reports up to the last one."""
        found = [self.call("read", trial, 0)]
        while not found[-1].done:
            found.append(self.call("read", trial, len(found)))
        return found

    def notice(self) -> None:
        """The node will be taken away: returns when the worker knows."""
        self.call("leave", [NODE])
        assert self._knows_that_it_leaves.wait(LONG)

    def __getattr__(self, name: str) -> Any:
        """The mailbox as an actor handle."""
        return SimpleNamespace(remote=lambda *arguments: self._call(name, *arguments))

    def _fake_ray(self) -> Any:
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        runtime = SimpleNamespace(current_actor=None, get_node_id=lambda: NODE)
        return SimpleNamespace(
            get=lambda answer: answer.result(LONG),
            get_gpu_ids=list,
            get_runtime_context=lambda: runtime,
            train=SimpleNamespace(get_context=lambda: context),
            exceptions=SimpleNamespace(RayError=(concurrent.futures.CancelledError, TimeoutError, RuntimeError)),
        )
