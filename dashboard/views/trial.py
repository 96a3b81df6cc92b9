"""The page "trial"."""

from __future__ import annotations

import streamlit as st

from cluster.experiments import Experiments


def show(experiments: Experiments, name: str) -> None:
    """The page."""
    st.info(name)
