"""What the words of a user mean as images: files, folders, globs, and what standard input has."""

from __future__ import annotations

import glob
import io
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from trainer.predicting import Failure, Source

STANDARD_INPUT = "-"
MOST_BYTES = 512 << 20
"""Of an image on standard input: what comes from a stranger is not to fill the memory."""

IMAGE_ENDINGS = frozenset(
    """apng avif avifs bmp bw cur dcx dds dib fit fits flc fli gif heic heif hif icb icns ico im j2c j2k jfif jp2 jpc jpe jpeg
    jpf jpg jpx jxl msp pbm pcd pcx pfm pgm png pnm ppm psd pxr qoi ras rgb rgba sgi tga tif tiff vda vst webp xbm xpm""".split()  # noqa: SIM905
)
"""By which the files of a folder are taken for images. Pillow does not read all of them everywhere; of those one is told."""

_ENDING = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_BELOW = "\0"
"""Sorts a folder before all names that begin as its own does, as `sorted` does with paths."""
_SYSTEM_FILES = frozenset({"Thumbs.db", "desktop.ini"})
_IMAGE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a.[\0-\x1f].[\0-\x1f]|RIFF.{4}WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]",
    re.DOTALL,
)
"""How the files of `UPLOAD_FORMATS` begin. No path does: of a GIF its width and height, below 8192, are looked at as well."""
_MAGIC_BYTES = 12


class Sources:
    """The images that `words` name, in the words' order, found while they are asked for.

    A file is itself; a folder is what is below it, sorted by name, without what is hidden, and without the files whose ending
    says that they are no images: `left_out` counts those by ending, as far as the folders were looked through. Links to folders are
    not followed. A glob (`photos/**/*.jpg`) is the files that match it, sorted, whatever their ending, and, unless it has a `**`, the
    folders that match; a name that exists is no glob. `-` is standard input: an image, or paths of files, one in a line, or each
    followed by a NUL.

    Raises ValueError for a word that names nothing. What can only be found later is a `Failure` in its place.
    """

    def __init__(self, words: Sequence[str], standard_input: IO[bytes] | None = None) -> None:
        if words.count(STANDARD_INPUT) > 1:
            raise ValueError("Standard input can be read once, but - is there more than once.")
        self._words = words
        self._names = [name for word in words for name in _named(word)]
        self._standard_input = standard_input
        self.left_out = Counter[str]()

    def __iter__(self) -> Iterator[Source]:
        for name in self._names:
            if name == STANDARD_INPUT:
                yield from _read(self._standard_input or _unbuffered())
            elif os.path.isdir(name):  # noqa: PTH112 -- of many thousands of words
                yield from (
                    found if isinstance(found, Failure) else Path(found) for found in _walk(name, self.left_out)
                )
            else:
                yield Path(name)

    def count(self, seconds: float = 1.0) -> int | None:
        """How many there are; None where only reading standard input tells, or where counting takes longer than that."""
        if STANDARD_INPUT in self._names:
            return None
        total, until = 0, time.monotonic() + seconds
        for name in self._names:
            for _ in _walk(name, Counter()) if os.path.isdir(name) else [name]:  # noqa: PTH112
                total += 1
                if total % 1000 == 0 and time.monotonic() > until:
                    return None
        return total

    def nothing(self) -> str:
        """The sentence for when there was nothing in them."""
        if STANDARD_INPUT in self._words:
            return "There are no images: standard input has neither an image nor the path of one."
        left_out = f" {self.said_left_out()}" if self.left_out else ""
        return f"There are no images in {', '.join(map(repr, self._words))}.{left_out}"

    def said_left_out(self) -> str:
        """Which files were left out by their endings, as a sentence."""
        count = self.left_out.total()
        endings = ", ".join(f"{number:,} .{ending}" for ending, number in self.left_out.most_common(5))
        more = ", ..." if len(self.left_out) > 5 else ""
        word = "file that is no image by its ending" if count == 1 else "files that are no images by their endings"
        return f"Left out {count:,} {word} ({endings}{more}); one that is named, or that a glob matches, is tried."


def _named(word: str) -> list[str]:
    """The file, the folder or, of a glob, the sorted files and folders. Raises ValueError when there is nothing."""
    if word == STANDARD_INPUT or os.path.lexists(word):
        return [word]
    if glob.escape(word) == word:
        raise ValueError(f"There is no image {word!r}.")
    found = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 -- without what is hidden
    if "**" in word:  # the files in the folders match it themselves
        found = [name for name in found if not os.path.isdir(name)]  # noqa: PTH112
    if not found:
        raise ValueError(f"There is no image {word!r}, and nothing that matches it as a pattern.")
    return found


def _walk(folder: str, left_out: Counter[str]) -> Iterator[str | Failure]:
    """The images below the folder; of one folder at a time the names are in memory, 80 bytes each."""
    try:
        with os.scandir(folder) as there:
            names = sorted(name for entry in there if (name := _to_read(entry, left_out)) is not None)
    except OSError as error:
        yield Failure(folder, f"The folder {folder!r} cannot be read: {error.strerror}.")
        return
    for name in names:
        path = os.path.join(folder, name.removesuffix(_BELOW))  # noqa: PTH118 -- of millions
        if name.endswith(_BELOW):
            yield from _walk(path, left_out)
        else:
            yield path


def _to_read(entry: os.DirEntry[str], left_out: Counter[str]) -> str | None:
    """The entry's name, with `_BELOW` behind a folder's; None for what is passed over."""
    if entry.name.startswith(".") or entry.name in _SYSTEM_FILES:
        return None
    if entry.is_dir(follow_symlinks=False):
        return entry.name + _BELOW
    if not entry.is_file() and os.path.exists(entry.path):  # noqa: PTH110 -- but of a link that leads nowhere one is told
        return None
    if ending := _other_ending(entry.name):
        left_out[ending] += 1
        return None
    return entry.name


def _other_ending(name: str) -> str | None:
    """What the file's name ends with, without the dot, when that is a word and no image's ending."""
    _, dot, ending = name.rpartition(".")
    ending = ending.lower()
    return ending if dot and ending not in IMAGE_ENDINGS and _ENDING.fullmatch(ending) else None


# ---- standard input ----


def _unbuffered() -> IO[bytes]:
    """Standard input below its buffer, whose lock a thread that waits would hold when the command ends."""
    buffer = sys.stdin.buffer
    return getattr(buffer, "raw", buffer)


def _read(stream: IO[bytes]) -> Iterator[Source]:
    """The image, or the paths as they come."""
    head = b""
    while len(head) < _MAGIC_BYTES and (not head or head[0] in b"\x89\xffGRBIM") and (chunk := stream.read(1 << 16)):
        head += chunk
    if _IMAGE.match(head):
        yield _image(head, stream)
    else:
        yield from (Path(os.fsdecode(path)) for path in _paths(head, stream) if path)


def _image(head: bytes, stream: IO[bytes]) -> Source:
    content = io.BytesIO()
    while head and content.tell() <= MOST_BYTES:
        content.write(head)
        head = stream.read(1 << 20)
    if content.tell() > MOST_BYTES:
        return Failure(STANDARD_INPUT, f"The image on standard input has more than {MOST_BYTES:,} bytes.")
    content.name = STANDARD_INPUT
    content.seek(0)
    return content


def _paths(rest: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    """What stands between NULs, if there is one when the first line is there, else in lines, also those of Windows."""
    separator = None
    while True:
        if separator is None and (b"\0" in rest or b"\n" in rest):
            separator = b"\0" if b"\0" in rest else b"\n"
        if separator is not None:
            *whole, rest = rest.split(separator)
            yield from (path if separator == b"\0" else path.removesuffix(b"\r") for path in whole)
        chunk = stream.read(1 << 16)
        if not chunk:
            break
        rest += chunk
    yield rest.removesuffix(b"\r")
