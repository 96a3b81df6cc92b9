"""How `convsweep predict` writes what it finds, one image after the other: lines for people, JSON or CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from trainer.predicting import Failure, Prediction


class Form(Protocol):
    """The parts of a document."""

    def begin(self) -> str:
        """What stands before the first image."""

    def record(self, found: Prediction | Failure) -> str:
        """What is said of an image."""

    def end(self) -> str:
        """What stands behind the last one."""


class Lines:
    """A line for each image that was read; of the others it is for standard error to tell."""

    def begin(self) -> str:
        """Nothing."""
        return ""

    def record(self, found: Prediction | Failure) -> str:
        """The path, the likeliest class, and the others in brackets."""
        if isinstance(found, Failure):
            return ""
        (label, probability), *others = found.top
        rest = "  ".join(f"{label} {probability:.3f}" for label, probability in others)
        return printable(f"{found.path}: {label} {probability:.3f}{f'   [{rest}]' if rest else ''}") + "\n"

    def end(self) -> str:
        """Nothing."""
        return ""


class Json:
    """One document, a list, with an object in a line for each image: `Prediction.to_json` or `Failure.to_json`."""

    def __init__(self) -> None:
        self._separator = "\n  "

    def begin(self) -> str:
        """A bracket."""
        return "["

    def record(self, found: Prediction | Failure) -> str:
        """The object, in ASCII: also of a path that is no text."""
        separator, self._separator = self._separator, ",\n  "
        return separator + json.dumps(found.to_json())

    def end(self) -> str:
        """The other bracket."""
        return "\n]\n"


class Csv:
    """As RFC 4180 has it: a header, then path, the `columns` likeliest classes with their probabilities, and what went wrong."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._row = io.StringIO(newline="")
        self._writer = csv.writer(self._row)

    def begin(self) -> str:
        """path, label, probability, label2, probability2, ..., error."""
        pairs = [(f"label{place}", f"probability{place}") for place in ("", *range(2, self._columns + 1))]
        return self._written(["path", *(name for pair in pairs for name in pair), "error"])

    def record(self, found: Prediction | Failure) -> str:
        """A row."""
        if isinstance(found, Failure):
            return self._written([found.path, *[""] * (2 * self._columns), found.error])
        return self._written([found.path, *(value for pair in found.top for value in pair), ""])

    def end(self) -> str:
        """Nothing."""
        return ""

    def _written(self, row: list[object]) -> str:
        self._row.seek(0)
        self._row.truncate()
        self._writer.writerow(row)
        return self._row.getvalue()


def check_target(to: Path) -> None:
    """Raise ValueError unless a file can be written there."""
    if to.is_dir():
        raise ValueError(f"--to names the file to write, but {str(to)!r} is a folder.")
    if not to.parent.is_dir():
        raise ValueError(f"--to {str(to)!r} cannot be written: there is no folder {str(to.parent)!r}.")


@contextlib.contextmanager
def writing(form: Form, to: Path | None, batch_size: int) -> Iterator[Callable[[Prediction | Failure], None]]:
    """A function that writes what was found of an image into the file, or to standard output, where a batch is seen at once.

    The file is there, whole, when the context has ended without an exception, and else is what it was before. The text is UTF-8; a
    path that is none is written with the bytes that it has.
    """
    with _opened(to) as file:
        written = 0

        def put(text: str) -> None:
            file.write(text.encode("utf-8", "surrogateescape"))

        def write(found: Prediction | Failure) -> None:
            nonlocal written
            put(form.record(found))
            written += 1
            if written % batch_size == 0:
                file.flush()

        put(form.begin())
        yield write
        put(form.end())
        file.flush()


@contextlib.contextmanager
def _opened(to: Path | None) -> Iterator[IO[bytes]]:
    if to is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
    elif to.exists() and not to.is_file():  # a pipe, a device: there is nothing to rename
        with to.open("wb") as file:
            yield file
    else:
        temporary = to.with_name(f".{to.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                yield file
            temporary.replace(to)
        finally:
            temporary.unlink(missing_ok=True)


def printable(text: str) -> str:
    """The text in one line, without what changes a terminal: that is written as \\n, \\x1b, \\udcff."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
