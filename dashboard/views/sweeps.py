"""The page of all sweeps: what each is at, and the choice of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from cluster.experiments import Experiments
from cluster.record import SweepSummary
from dashboard import budget_bars, records, sweep_tables
from dashboard.parts import REFRESH_SECONDS, plain
from trainer.measuring import ACCURACY

_TABLE = "the sweeps"
_NAMES = "the sweeps, as shown"
_WIDTHS = {"state": 95, "progress": 90, "best": 65}


def show(experiments: Experiments, name: str) -> None:
    """The page; while any sweep runs, it follows them."""
    st.title("Sweeps")
    live = _runs(_read_or_stop(experiments)[0])

    def table() -> None:
        summaries, notes = _read_or_stop(experiments)
        if st.session_state["sweep"] != name or (live and not _runs(summaries)):
            st.rerun()  # the whole page, with the sweep that was picked, or no longer following
        _table(summaries, notes, name)

    st.fragment(table, run_every=REFRESH_SECONDS if live else None)()
    mention_others(experiments)


def mention_others(experiments: Experiments) -> None:
    """Say how many studies of other programs there are in the database; nothing when there are none."""
    try:
        others = len(records.foreign_studies(experiments))
    except ValueError:
        return  # the page has said why
    if others:
        studies = "1 study of another program is" if others == 1 else f"{others:,} studies of other programs are"
        st.caption(f"{studies} in the same database and not shown here; optuna-dashboard shows every study.")


def _table(summaries: Sequence[SweepSummary], notes: Mapping[str, str], name: str) -> None:
    names = [summary.name for summary in summaries]
    table = sweep_tables.sweeps(summaries, notes)
    said = {"note": table["note"].notna().any(), "metric": (table["metric"] != ACCURACY.label).any()}
    shown = [c for c in table.columns if said.get(c, True)]
    st.session_state[_NAMES] = names
    if name in names:  # the row that is marked is always that of the current sweep
        st.session_state[_TABLE] = {"selection": {"rows": [names.index(name)]}}
    st.dataframe(
        table[shown],
        column_config=_column_config(),
        hide_index=True,
        placeholder="",
        key=_TABLE,
        on_select=_pick,
        selection_mode="single-row-required",
        alt="The sweeps, the newest first",
    )
    st.markdown(
        f"The current sweep is **{plain(name)}**, {plain(sweep_tables.standing(summaries, name))}. Pick another row to change it; "
        "Ranking, Search and the other pages on the left show the current one."
    )
    for summary in summaries:
        if summary.name == name:
            budget_bars.show(summary.limits, summary.ending)


def _pick() -> None:
    rows = st.session_state[_TABLE]["selection"]["rows"]
    if rows:
        st.session_state["sweep"] = st.session_state[_NAMES][rows[0]]


def _column_config() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for c in sweep_tables.SWEEPS:
        width = _WIDTHS.get(c.name)
        if c.name == "progress":
            found[c.name] = st.column_config.ProgressColumn(c.label, help=c.help, format=c.format, width=width)
        elif c.name == "begun":
            zone = st.context.timezone or "UTC"
            found[c.name] = st.column_config.DatetimeColumn(c.label, help=c.help, format=c.format, timezone=zone)
        elif c.dtype in ("Int64", "Float64"):
            found[c.name] = st.column_config.NumberColumn(c.label, help=c.help, format=c.format, width=width)
        else:
            found[c.name] = st.column_config.Column(c.label, help=c.help, width=width, pinned=c.name == "sweep")
    return found


def _runs(summaries: Sequence[SweepSummary]) -> bool:
    return any(summary.state == "RUNNING" for summary in summaries)


def _read_or_stop(experiments: Experiments) -> tuple[list[SweepSummary], dict[str, str]]:
    """The sweeps and the notes on them; what goes wrong is shown instead of the page."""
    try:
        return records.summaries(experiments), records.sweep_notes(experiments)
    except ValueError as error:
        st.error(plain(str(error)))
        st.stop()
