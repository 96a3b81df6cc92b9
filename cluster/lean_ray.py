"""Ray on this machine alone without two processes that a sweep has no use for, one of which `ray.init` waits for.

The head starts Ray's dashboard, with little in it where none is wanted, and the autoscaler, which has nothing to scale: 3 s of a
sweep's start and end, on two cores.

What is used here has no public name in Ray 2.60: should another release have changed it, this file is the place to look.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch


@contextlib.contextmanager
def without_dashboard_and_autoscaler() -> Iterator[None]:
    """What `ray.init` starts inside this context has neither."""
    from ray._private.node import Node

    def start_api_server(self: Any, **_: object) -> None:
        self._webui_url = ""

    def start_monitor(self: Any) -> None:
        pass

    with patch.multiple(Node, start_api_server=start_api_server, start_monitor=start_monitor):
        yield
