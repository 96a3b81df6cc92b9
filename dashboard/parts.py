"""What several pages show: a sweep's heading, the choice of a trial, text that is shown as it is, and following a live sweep."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import streamlit as st

from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord
from dashboard import tables
from dashboard.records import read_sweep
from dashboard.tables import Column

REFRESH_SECONDS = 2.0
_BOX = "trial: box"
_ADDRESS = "trial: in the address"
_BADGES: dict[str, Literal["green", "blue", "orange", "red", "gray"]] = {
    "FINISHED": "green",
    "COMPLETE": "green",
    "RUNNING": "blue",
    "INTERRUPTED": "orange",
    "PRUNED": "orange",
    "FAILED": "red",
    "FAIL": "red",
    "NEW": "gray",
    "WAITING": "gray",
}


def read_or_stop(experiments: Experiments, name: str) -> SweepRecord:
    """The sweep as it is now; what goes wrong is shown instead of the page."""
    try:
        return read_sweep(experiments, name)
    except ValueError as error:
        st.error(plain(str(error)))
        st.stop()


def follow(
    experiments: Experiments,
    name: str,
    content: Callable[[SweepRecord], None],
    every_seconds: float = REFRESH_SECONDS,
) -> None:
    """Show `content` of the sweep, again and again while it runs."""
    live = read_or_stop(experiments, name).is_live

    def show() -> None:
        sweep = read_or_stop(experiments, name)
        if live and not sweep.is_live:
            st.rerun()  # the whole page, which then no longer follows
        content(sweep)

    st.fragment(show, run_every=every_seconds if live else None)()


def heading(title: str, state: str) -> None:
    """A title with its state beside it."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.title(plain(title), width="content")
        st.badge(state, color=_BADGES.get(state, "gray"))


def choose_trial(sweep: SweepRecord, label: str = "Trial") -> TrialRecord:
    """A box with the sweep's trials, best first. The number is kept in the address, and in the session as `trial`.

    The sweep must have trials. A trial that the sweep does not have is taken for its first one.
    """
    # Not bound to the address by Streamlit: that would write the texts there, which change while a trial runs.
    state, address = st.session_state, st.query_params.get("trial", "")
    if address != state.get(_ADDRESS) and address.isdecimal():  # a link, or the browser's way back
        state["trial"] = int(address)
    numbers = [t.number for t in sweep.trials]
    state[_BOX] = state["trial"] if state.get("trial") in set(numbers) else numbers[0]

    def keep() -> None:
        state["trial"] = state[_BOX]

    st.selectbox(label, numbers, key=_BOX, format_func=lambda n: describe(sweep.trial(n)), on_change=keep)
    chosen: int = state[_BOX]
    state["trial"] = chosen
    state[_ADDRESS] = str(chosen)
    if address != state[_ADDRESS]:
        st.query_params["trial"] = state[_ADDRESS]
    return sweep.trial(chosen)


def describe(trial: TrialRecord) -> str:
    """A trial in a few words, for a list to choose from."""
    score = f" · {trial.value:.4f}" if trial.value is not None else ""
    preset = f" · {trial.preset}" if trial.preset else ""
    return f"{tables.trial_name(trial.number)}{score} · {trial.state}{preset}"


def configured(column: Column, pinned: bool | None = None) -> Any:
    """The column of a table as st.dataframe takes it."""
    if column.dtype == "boolean":
        return st.column_config.CheckboxColumn(column.label, help=column.help)
    if column.dtype in ("Int64", "Float64"):
        return st.column_config.NumberColumn(column.label, help=column.help, format=column.format, pinned=pinned)
    return st.column_config.Column(column.label, help=column.help)


def counted(number: int, noun: str) -> str:
    """'1 trial', '2 trials'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def plain(text: str) -> str:
    """`text` for Streamlit's Markdown to show as it is."""
    return re.sub(r"([!-/:-@[-`{-~])", r"\\\1", text)  # before other characters a backslash is one itself
