"""Waiting, in one process, for what concerns one thing among many."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable


class Waiting:
    """Calls that wait for what concerns a trial or a group: what concerns others does not wake them."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, set[asyncio.Future[None]]] = defaultdict(set)

    async def until(self, is_so: Callable[[], object], *topics: Hashable) -> None:
        """Return when it is so; it is looked at again when one of the topics is `told`."""
        while not is_so():
            told = asyncio.get_running_loop().create_future()
            for topic in topics:
                self._calls[topic].add(told)
            try:
                await told
            finally:
                for topic in topics:
                    self._calls[topic].discard(told)
                    if not self._calls[topic]:
                        del self._calls[topic]

    def tell(self, *topics: Hashable) -> None:
        """Something about these has changed."""
        for topic in topics:
            for told in self._calls.get(topic, ()):
                if not told.done():
                    told.set_result(None)

    def tell_all(self) -> None:
        """Something about all has changed."""
        self.tell(*list(self._calls))
