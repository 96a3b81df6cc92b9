"""What a training or an export runs on: versions, processor, and the commit of the folder that it is started in."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

PACKAGES = ("convsweep", "torch", "torchvision", "onnx", "onnxruntime", "numpy", "pillow")


@functools.cache
def environment() -> Mapping[str, str]:
    """Names and values, for people, as this process first finds them: `git_commit` only where the working folder is under git."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["processor"] = _processor()
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a folder that nobody has installed
            found[name] = "not installed"
    commit = _git_commit()
    return MappingProxyType(found | ({"git_commit": commit} if commit else {}))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the working folder, and whether something is changed in it."""
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words],
                capture_output=True,
                text=True,
                check=False,
                timeout=10,
                env=quiet,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit} with changes" if ask("status", "--porcelain", "--untracked-files=no") else commit
