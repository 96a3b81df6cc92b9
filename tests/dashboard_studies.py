"""Studies for the tests of the dashboard's pages, written as a sweep writes them, and the pages on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from cluster.config import SweepConfig, make_config
from cluster.experiments import Experiments
from cluster.study import SweepStudy
from dashboard import launch, settings
from trainer.metrics import EpochMetrics

APP = Path(launch.__file__).with_name("app.py")


def config(name: str, **more: object) -> SweepConfig:
    return make_config({"name": name, "data": "digits", "trials": 7, "epochs": 2} | more)


def run_trial(
    study: SweepStudy,
    wanted: SweepConfig,
    *accuracies: float,
    end: str = "complete",
    error: str = "",
    group: str = "group",
) -> int:
    """Run a trial to its end, which may be '' (it goes on), and return its number."""
    trial = study.ask()
    trial.begin(parameters=1000 * (trial.number + 1), group=group, group_began=10.0 * trial.number)
    for number, accuracy in enumerate(accuracies, 1):
        metrics = EpochMetrics(number, 0.5, 0.25, accuracy, 0.001, 1000.0 * number, 0.1, 0.02 * number)
        trial.report(metrics, train_seconds=0.1 * number)
    if end == "fail":
        trial.fail(error)
    elif end == "prune":
        trial.prune()
    elif end == "complete":
        trial.complete()
    return trial.number


def move_weights(experiments: Experiments, sweep: str, to: Path) -> None:
    """As if the sweep had been started with `--storage-path TO`."""
    shutil.move(experiments.checkpoints_uri(sweep), to / sweep / "checkpoints")
    study = optuna.load_study(study_name=sweep, storage=experiments.database)
    study.set_user_attr("storage_path", str(to))


def dashboard_on(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The page at `path` of the dashboard on an experiments folder, to be run."""
    for name, value in settings.to_environment(Experiments(folder)).items():
        monkeypatch.setenv(name, value)
    page = AppTest.from_file(str(APP), default_timeout=60)
    page._page_hash = calc_hash(path)  # `switch_page` knows pages in files alone
    return page


def run(page: AppTest, **address: str) -> AppTest:
    """Run the page with what is in its address, and read everything anew; it must not raise."""
    for name, value in address.items():
        page.query_params[name] = value
    st.cache_resource.clear()  # what was read a moment ago counts as fresh
    page.run()
    assert not page.exception, page.exception
    return page


def texts(page: AppTest) -> str:
    """Everything that the page says outside its tables."""
    kinds = (page.title, page.subheader, page.markdown, page.caption, page.info, page.warning, page.error)
    return "\n".join(element.value for kind in kinds for element in kind)
