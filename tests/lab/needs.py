"""What the lab needs of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAMS = {
    "ip": "iproute2",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ps": "procps",
}


def require_lab() -> None:
    """Skip the test, and say why, where there can be no lab."""
    reason = missing()
    if reason:
        pytest.skip(f"There can be no lab here: {reason}.")


def missing() -> str | None:
    """What is missing; None when nothing is."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root"
    packages = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    packages |= set() if Path("/usr/sbin/sshd").exists() else {"openssh-server"}
    if packages:
        return f"these packages are not installed: {', '.join(sorted(packages))}"
    try_it = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--net", "--fork", "mount", "--make-rprivate", "/"]
    done = subprocess.run(try_it, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"namespaces are not to be had ({done.stderr.strip()})"
    return None
