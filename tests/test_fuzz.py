"""Damaged and hostile input, a little of what `python -m bench.fuzz` does: `python -m pytest tests/test_fuzz.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import fuzz


@pytest.mark.parametrize(("target", "inputs"), [("sweep", 600), ("image", 600), ("bundle", 200), ("state", 600)])
def test_whatever_is_read_is_understood_or_refused_with_a_sentence(target: str, inputs: int) -> None:
    found, strange = fuzz.fuzz(target, inputs, seed=1)
    assert strange == []
    assert found["refused"] + found["read"] == inputs
    assert found["refused"] > 0


@pytest.mark.parametrize("error", [KeyError("a"), UnicodeDecodeError("utf-8", b"", 0, 1, "x"), RecursionError()])
def test_what_is_no_sentence_of_ours_is_noticed(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def read(content: bytes) -> object:
        raise error

    def readers(folder: Path) -> Sequence[tuple[bytes, fuzz.Reader]]:
        return [(b"abc", read)]

    monkeypatch.setitem(fuzz.TARGETS, "sweep", readers)
    assert len(fuzz.fuzz("sweep", 3, seed=0)[1]) == 3
