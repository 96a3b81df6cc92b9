"""What the lab's hosts have on their disks before anybody uses them, as if they were made from an image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests import checkout

CHECKOUT = Path("root/convsweep")
"""Where a host has the checkout, and in it the environment, below the host's own folder."""
_PROGRAMS = {"ray": "ray.scripts.scripts", "pip": "pip._internal.cli.main"}
_PROGRAM = """\
#!/root/convsweep/.venv/bin/python
import sys
from {module} import main
sys.exit(main())
"""
# There is no network. pip turns the isolation off by `false`: the option's name is read as what it sets.
_PIP = """\
[global]
no-index = true
no-build-isolation = false
disable-pip-version-check = true
root-user-action = ignore
"""


def shown() -> list[Path]:
    """What lies on this machine and the hosts must read: the interpreter and the packages."""
    places = {sys.base_prefix, sys.prefix, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    real = {Path(place).resolve() for place in places} | {Path(os.path.realpath(sys.executable)).parent.parent}
    return sorted(path for path in real if not any(other in path.parents for other in real))


def make_environment(folder: Path) -> None:
    """A virtual environment that has this one's packages, but not its convsweep, which is for `ray up` to install."""
    try:
        import setuptools

        new_enough = int(setuptools.__version__.split(".")[0]) >= 77
    except ImportError:
        new_enough = False
    if not new_enough:
        pytest.skip("The lab's hosts build convsweep without a network: pip install 'setuptools>=77'")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "image.pth").write_text("".join(f"{path}\n" for path in paths))
    for name, module in _PROGRAMS.items():
        program = folder / "bin" / name
        program.write_text(_PROGRAM.format(module=module))
        program.chmod(0o755)


def copy_environment(environment: Path, host: Path) -> None:
    """Put the environment where `ray up` makes it, and pip's settings, on the host with this folder."""
    shutil.copytree(environment, host / CHECKOUT / ".venv", symlinks=True, dirs_exist_ok=True)
    settings = host / "root/.config/pip/pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(_PIP)


def copy_checkout(host: Path) -> None:
    """Put this checkout there, with what is not committed yet, as somebody has it who works with it."""
    for name in checkout.files():
        to = host / CHECKOUT / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout.ROOT / name, to)
