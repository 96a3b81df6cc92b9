"""The dashboard: its navigation and the choice of the sweep. `streamlit run` starts it, `dashboard.launch` says how."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from cluster.experiments import Experiments
from dashboard import access, parts, records, settings
from dashboard.views import cluster, compare, export, ranking, search, sweeps, trial
from trainer.hyperparameters import nearest

# What each page is, and the function that shows it; the first is where one comes in.
PAGES: tuple[tuple[str, str, str, Callable[[Experiments, str], None]], ...] = (
    (
        "Ranking",
        ":material/trophy:",
        "The trials, best first: sort, filter, choose columns, see what the preset has gained",
        ranking.show,
    ),
    (
        "Sweeps",
        ":material/folder_open:",
        "Every sweep of the database: its state, its progress, its best value",
        sweeps.show,
    ),
    (
        "Search",
        ":material/query_stats:",
        "How the search went: best so far, importances, slices, what was pruned when, the groups' time",
        search.show,
    ),
    (
        "Trial",
        ":material/biotech:",
        "One trial: its network, its curves, its mistakes, what its kernels and its attention look like",
        trial.show,
    ),
    ("Compare", ":material/compare_arrows:", "Trials side by side, and sweeps over each other", compare.show),
    ("Export", ":material/inventory_2:", "Export a trial's model as a bundle, and try it on a picture", export.show),
    ("Cluster", ":material/dns:", "The Ray cluster's nodes, and what each worker group trains now", cluster.show),
)


def main() -> None:
    """Show the page that the reader is on."""
    st.set_page_config(page_title="convsweep", page_icon="📊", layout="wide")
    access.require_login()
    experiments = settings.from_environment(os.environ)
    name = _choose_sweep(experiments)
    pages = [_page(*page, experiments, name) for page in PAGES]
    st.navigation(pages).run()


def _page(title: str, icon: str, text: str, show: Callable[..., None], experiments: Experiments, name: str) -> Any:
    first = title == PAGES[0][0]
    return st.Page(
        partial(show, experiments, name), title=title, icon=icon, help=text, url_path=title.lower(), default=first
    )


def _choose_sweep(experiments: Experiments) -> str:
    """The sweep in the address, which the sidebar changes; the newest one when the address has none."""
    if not experiments.database_exists:
        st.info(f"There is no study database yet. {_how_to_begin(experiments)}")
        st.stop()
    try:
        names = [summary.name for summary in records.summaries(experiments)]
    except ValueError as error:
        st.error(parts.plain(str(error)))
        st.stop()
    if not names:
        st.info(f"The study database has no sweeps yet. {_how_to_begin(experiments)}")
        sweeps.mention_others(experiments)
        st.stop()
    asked = st.query_params.get("sweep")
    if asked is not None and asked not in names:
        st.info(f"There is no sweep {parts.plain(asked)}.{nearest(asked, names)} Choose one:")
        for name in names[:10]:
            st.link_button(name, f"?sweep={name}")
        st.stop()
    if asked is None and st.session_state.get("sweep") not in names:
        st.session_state["sweep"] = names[0]  # with None as its default, the box writes this one into the address too
    return st.sidebar.selectbox("Sweep", names, index=None, key="sweep", bind="query-params") or names[0]


def _how_to_begin(experiments: Experiments) -> str:
    command = "convsweep sweep --data digits"
    if experiments.study_storage is not None:
        command += " --study-storage URL"  # not the URL itself: it may hold a password
    elif experiments.folder.absolute() != Path("experiments").absolute():
        command += f" --experiments {shlex.quote(str(experiments.folder))}"
    return f"Make a sweep with `{command}` and load this page again."


if __name__ == "__main__":
    main()
