"""The server's process, `python -m dashboard.server HOST PORT`: imports the pages, then listens.

`dashboard.launch` starts it. Under `streamlit run` the first visitor would wait for the imports.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

APP = Path(__file__).with_name("app.py")
UPLOAD_MEGABYTES = 20
WARM_SECONDS = 5.0
"""So long the server waits for the newest sweep to be read before it listens; a database that takes longer is read on."""

_WILDCARDS = ("0.0.0.0", "::")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the pages until a signal ends it; returns the exit status, 2 when it must not start like this."""
    parser = argparse.ArgumentParser(prog="python -m dashboard.server")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--open-browser", action="store_true")
    given = parser.parse_args(arguments)
    try:
        return _serve(given.host, given.port, given.open_browser)
    except KeyboardInterrupt:  # during the imports; later Streamlit takes it
        return 0


def options(host: str, port: int, open_browser: bool) -> dict[str, Any]:
    """Streamlit's options, which win over every `config.toml`."""
    return {
        "server.address": host,
        "server.port": port,
        "server.headless": not open_browser,
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "server.enableXsrfProtection": True,
        "server.enableCORS": True,
        "server.allowedHosts": [],
        "server.trustedUserHeaders": {},  # they would name the account, and every visitor can send headers
        "server.maxUploadSize": UPLOAD_MEGABYTES,
        "browser.serverAddress": _shown(host),
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": True,
        "logger.level": "warning",
    }


def url(host: str, port: int) -> str:
    """Where the pages are."""
    return f"http://{_shown(host)}:{port}"


def _serve(host: str, port: int, open_browser: bool) -> int:
    from streamlit import config
    from streamlit.web import bootstrap

    from dashboard import access

    # As `streamlit run` does it, but with a look at the login and the imports in between.
    given = options(host, port, open_browser)
    bootstrap.load_config_options(given)
    try:
        admission = access.check_start(host)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not admission.needs_login:
        # A page elsewhere could give its own name this machine's address (DNS rebinding) and read the sweeps. With a
        # login that gains it nothing, and there may be a proxy in front whose name we do not know.
        given["server.allowedHosts"] = list(dict.fromkeys(["localhost", "127.0.0.1", "::1", host]))
        config.set_option("server.allowedHosts", given["server.allowedHosts"])
    importlib.import_module("dashboard.app")
    from dashboard import records, settings

    warming = threading.Thread(target=records.warm_up, args=(settings.from_environment(os.environ),), daemon=True)
    warming.start()
    warming.join(WARM_SECONDS)
    threading.Thread(target=_announce, args=(url(host, port),), daemon=True).start()
    bootstrap.run(str(APP), False, [], given)
    return 0


def _announce(where: str) -> None:
    from streamlit.runtime import RuntimeState, exists, get_instance

    # The runtime starts when the port is listened to. Trying to connect instead may take the port away from the server.
    while not exists() or get_instance().state is RuntimeState.INITIAL:
        time.sleep(0.02)
    print(f"The dashboard: {where} (Ctrl-C ends it)", flush=True)


def _shown(host: str) -> str:
    if host in _WILDCARDS:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main())
