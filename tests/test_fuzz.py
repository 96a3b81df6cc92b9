"""Damaged, made-up and hostile input, a little of what `python -m bench.fuzz` does too: `python -m pytest tests/test_fuzz.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import fuzz
from cluster.config import KEYS, make_config
from trainer.hyperparameters import parameters

NAMES = [p.name for p in parameters()] + ["model.filters.2", "model.kernel_size.9"]


@pytest.mark.parametrize(("target", "inputs"), [("sweep", 600), ("image", 600), ("bundle", 200), ("state", 600)])
def test_whatever_is_read_is_understood_or_refused_with_a_sentence(target: str, inputs: int) -> None:
    found, strange = fuzz.fuzz(target, inputs, seed=1)
    assert strange == []
    assert found["refused"] + found["read"] == inputs
    assert found["refused"] > 0


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["digits", "sgd", "relu", "2h", "grid", "none", "../x", "1e-3"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["low", "high", "log", "step", *NAMES]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_settings_of_any_type_are_understood_or_refused_with_a_sentence(said: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        make_config({"name": "s", "data": "digits"} | {key: value for key, value in said.items() if value is not None})


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), st.booleans())
def test_spaces_of_any_type_are_understood_or_refused_with_a_sentence(said: dict[str, Any], first: bool) -> None:
    own = {"first": [said]} if first else {"space": said}
    with contextlib.suppress(ValueError):
        make_config({"name": "s", "data": "digits"} | own)


@pytest.mark.parametrize("error", [KeyError("a"), UnicodeDecodeError("utf-8", b"", 0, 1, "x"), RecursionError()])
def test_what_is_no_sentence_of_ours_is_noticed(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def read(content: bytes) -> object:
        raise error

    def readers(folder: Path) -> Sequence[tuple[bytes, fuzz.Reader]]:
        return [(b"abc", read)]

    monkeypatch.setitem(fuzz.TARGETS, "sweep", readers)
    assert len(fuzz.fuzz("sweep", 3, seed=0)[1]) == 3
