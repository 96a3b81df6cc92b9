"""Running convsweep, and those it is compared with, as a user would: in processes of their own that print JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any


def run(command: list[str], folder: str | None = None) -> Any:
    """The JSON document that a command prints, run in `folder`; what it says besides is dropped.

    Raises RuntimeError with the end of that when the command fails.
    """
    with tempfile.TemporaryFile("w+") as chatter:
        done = subprocess.run(command, cwd=folder, check=False, stdout=subprocess.PIPE, stderr=chatter, text=True)
        if done.returncode:
            chatter.seek(0)
            raise RuntimeError(f"{command} ended with status {done.returncode}:\n{chatter.read()[-2000:]}")
    return json.loads(done.stdout)


def convsweep(*words: object, folder: str | None = None) -> Any:
    """What `convsweep WORDS --json` prints."""
    return run([sys.executable, "-m", "cluster.cli", *map(str, words), "--json"], folder)
