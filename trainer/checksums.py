"""The checksums of a bundle's files, as `sha256sum --check SHA256SUMS` reads them too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9][A-Za-z0-9_.-]*)")
_MOST_BYTES = 2**16


def write(folder: Path, names: Iterable[str]) -> None:
    """Write the checksums of these files of the folder into it."""
    (folder / NAME).write_text("".join(f"{_digest(folder / name)}  {name}\n" for name in names))


def check(folder: Path, required: Iterable[str]) -> None:
    """Raise ValueError unless every listed file is as it was written, and every required one is listed.

    A file is named, never a path: what is elsewhere is not looked at.
    """
    with (folder / NAME).open("rb") as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError("it is too long to be a list of a bundle's files")
    listed: dict[str, str] = {}
    for number, line in enumerate(text.decode().splitlines(), 1):
        match = _LINE.fullmatch(line)
        if not match or match[2] in listed:
            raise ValueError(
                f"line {number} must be a SHA-256 checksum and the name of a file, but it is {line[:100]!r}"
            )
        listed[match[2]] = match[1]
    missing = [name for name in required if name not in listed]
    if missing:
        raise ValueError(f"it has no checksum of {missing[0]}")
    for name, digest in listed.items():
        if not (folder / name).is_file():
            raise ValueError(f"it lists {name}, which is not there")
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} is not the file that was exported: its checksum is another one")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
