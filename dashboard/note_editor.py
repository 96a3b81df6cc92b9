"""A note as the pages show it, with the box that it is written in."""

from __future__ import annotations

import streamlit as st

from cluster.experiments import Experiments
from cluster.notes import MAX_LENGTH
from cluster.record import SweepRecord
from dashboard import notes, records
from dashboard.parts import plain


def edit_note(experiments: Experiments, sweep: SweepRecord, trial: int | None) -> None:
    """Show the note on the trial, or with None on the whole sweep, and a box to write it in."""
    text = sweep.notes.get(trial, "")
    with st.container(border=True):
        if text:
            st.markdown(notes.without_pictures(text))
        else:
            st.caption("There is no note yet.")
    area = f"note on {sweep.name}" if trial is None else f"note on trial {trial} of {sweep.name}"
    _follow_note(area, text)
    with st.form(f"{area}, form", border=False):
        st.text_area("Note", key=area, height=200, max_chars=MAX_LENGTH, label_visibility="collapsed")
        saved = st.form_submit_button("Save")
    if saved:
        _save(experiments, sweep, trial, area)


def _follow_note(area: str, text: str) -> None:
    """Let the text area have what the note says now, unless the reader has begun to write."""
    begun_from = st.session_state.get(f"{area}, before")
    if area not in st.session_state or (begun_from != text and st.session_state[area] == begun_from):
        st.session_state[area] = text
        st.session_state[f"{area}, before"] = text


def _save(experiments: Experiments, sweep: SweepRecord, trial: int | None, area: str) -> None:
    written, before = st.session_state[area], f"{area}, before"
    try:
        now = records.write_note(experiments, sweep, written, trial, before=st.session_state[before])
    except ValueError as error:
        st.error(f"The note was not written. {plain(str(error))}")
        return
    st.session_state[before] = now
    if now == written:
        st.rerun()
    with st.container(border=True):
        st.warning("Somebody has changed the note since you began. Save again to replace what it says now:")
        st.markdown(notes.without_pictures(now))
