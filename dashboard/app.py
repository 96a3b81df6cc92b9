"""The dashboard: its navigation and the choice of the sweep. `streamlit run` starts it, `dashboard.launch` says how."""

from __future__ import annotations

import os
import shlex
from functools import partial
from pathlib import Path

import streamlit as st

from cluster.experiments import Experiments
from dashboard import records, settings
from dashboard.views import ranking
from trainer.hyperparameters import nearest


def main() -> None:
    """Show the page that the reader is on."""
    st.set_page_config(page_title="convsweep", page_icon="📊", layout="wide")
    experiments = settings.from_environment(os.environ)
    sweep = _choose_sweep(experiments)
    pages = [
        st.Page(
            partial(ranking.show, experiments, sweep),
            title="Ranking",
            icon=":material/leaderboard:",
            url_path="ranking",
            default=True,
        )
    ]
    st.navigation(pages).run()


def _choose_sweep(experiments: Experiments) -> str:
    """The sweep in the address, which the sidebar changes; the newest one when the address has none."""
    if not experiments.database_exists:
        st.info(f"There is no study database yet. {_how_to_begin(experiments)}")
        st.stop()
    try:
        names = records.sweep_names(experiments)
    except ValueError as error:
        st.error(str(error))
        st.stop()
    if not names:
        st.info(f"The study database has no sweeps yet. {_how_to_begin(experiments)}")
        st.stop()
    asked = st.query_params.setdefault("sweep", names[0])
    known = asked in names
    st.session_state["sweep"] = asked if known else None
    st.sidebar.selectbox(
        "Sweep",
        names,
        index=0 if known else None,
        key="sweep",
        placeholder="Choose a sweep",
        on_change=_note_choice,
    )
    if not known:
        st.info(f"There is no sweep `{asked}`.{nearest(asked, names)} Choose one on the left.")
        st.stop()
    return asked


def _how_to_begin(experiments: Experiments) -> str:
    command = "convsweep sweep --data digits"
    if experiments.study_storage is not None:
        command += " --study-storage URL"  # not the URL itself: it may hold a password
    elif experiments.folder.absolute() != Path("experiments").absolute():
        command += f" --experiments {shlex.quote(str(experiments.folder))}"
    return f"Make a sweep with `{command}` and load this page again."


def _note_choice() -> None:
    if st.session_state["sweep"] is not None:
        st.query_params["sweep"] = st.session_state["sweep"]


if __name__ == "__main__":
    main()
