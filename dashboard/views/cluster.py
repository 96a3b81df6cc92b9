"""The page of the Ray cluster: what the sweep's worker groups train now, the nodes, and what of them is in use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import streamlit as st

from cluster.experiments import Experiments
from cluster.record import SweepRecord
from dashboard import cluster_state, sweep_tables
from dashboard.cluster_state import ClusterState
from dashboard.parts import counted, follow, heading, plain, read_or_stop
from dashboard.tables import Column

FRESH_SECONDS = 2.0
REFRESH_SECONDS = 5.0


def show(experiments: Experiments, name: str) -> None:
    """The page; it follows the sweep while it runs, and the cluster always."""
    follow(experiments, name, _groups)
    st.fragment(partial(_cluster, experiments, name), run_every=REFRESH_SECONDS)()


def _groups(sweep: SweepRecord) -> None:
    heading(sweep.name, sweep.state)
    st.subheader("Worker groups")
    if not sweep.is_live:
        st.info("No worker group is at work: the sweep does not run now.")
        return
    table = sweep_tables.groups(sweep)
    if table.empty:
        st.info("The worker groups are starting: none has a trial yet.")
        return
    queued = sweep_tables.queued(sweep)
    facts = [f"{counted(len(table), 'group')} of {sweep.timing.groups} with a trial so far"]
    if queued:
        facts.append(f"next: {', '.join(map(str, queued))}")
    st.caption(" · ".join(facts))
    st.dataframe(
        table,
        column_config=_column_config(sweep_tables.GROUPS),
        hide_index=True,
        placeholder="–",
        alt=f"The worker groups of sweep {sweep.name} and the trials that they train",
    )


def _cluster(experiments: Experiments, name: str) -> None:
    st.subheader("Ray cluster")
    live = read_or_stop(experiments, name).is_live
    found = _ask()
    if isinstance(found, str):
        st.info(plain(found))
        if live:
            st.caption(
                "A sweep that was started without --address runs on a cluster of its own, which cannot be asked."
            )
        return
    _totals(found)
    table = cluster_state.nodes_table(found)
    optional = [c for c in ("gpus", "devices") if table[c].isna().all()]
    st.dataframe(
        table.drop(columns=optional),
        column_config=_column_config(cluster_state.NODES),
        hide_index=True,
        placeholder="–",
        alt="The nodes of the Ray cluster",
    )
    if live and found.is_idle:
        st.caption("Nothing uses this cluster: the sweep, started without --address, runs on a cluster of its own.")
    st.caption(f"As the Ray dashboard at {plain(found.address)} has it.")


def _totals(cluster: ClusterState) -> None:
    nodes = cluster.alive
    with st.container(horizontal=True):
        st.metric("Nodes", len(nodes), border=True)
        st.metric("CPUs in use", cluster_state.in_use(nodes, "cpus"), border=True)
        if any(node.gpus for node in nodes):
            st.metric("GPUs in use", cluster_state.in_use(nodes, "gpus"), border=True)
        st.metric("Memory in use", cluster_state.memory_in_use(nodes), border=True)


@st.cache_resource(ttl=FRESH_SECONDS, max_entries=1, show_spinner=False)
def _ask() -> ClusterState | str:
    """The cluster's state, or the sentence that says why it is not known."""
    try:
        return cluster_state.read(cluster_state.address(os.environ), cluster_state.token(os.environ))
    except (ConnectionError, PermissionError, ValueError) as error:
        return str(error)


def _column_config(columns: Sequence[Column]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for c in columns:
        if c.name in ("progress", "busy", "memory"):
            found[c.name] = st.column_config.ProgressColumn(c.label, help=c.help, format=c.format, width=110)
        elif c.dtype.startswith("datetime"):
            zone = st.context.timezone or "UTC"
            found[c.name] = st.column_config.DatetimeColumn(c.label, help=c.help, format=c.format, timezone=zone)
        elif c.dtype in ("Int64", "Float64"):
            found[c.name] = st.column_config.NumberColumn(c.label, help=c.help, format=c.format)
        else:
            found[c.name] = st.column_config.Column(c.label, help=c.help)
    return found
