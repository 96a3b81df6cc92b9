"""Sweeps on clusters of several nodes, all on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.nodes import in_a_process
from cluster.experiments import Experiments
from cluster.studies import Studies
from tests.lab.user import wait
from tests.nodes import LocalNodes

pytestmark = pytest.mark.slow


def test_a_node_that_joins_while_a_sweep_runs_gets_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with LocalNodes(1) as nodes:
        words = ["sweep", "--data", "digits", "--trials", "10", "--epochs", "40", "--pruner", "none", "--name", "s"]
        command = [
            sys.executable,
            "-m",
            "cluster.cli",
            *words,
            "--address",
            nodes.address,
            "--experiments",
            str(tmp_path),
        ]
        studies = Studies(Experiments(tmp_path), create=True)

        def has_begun() -> bool:
            return "s" in studies.names() and any(trial.epochs_done for trial in studies.read("s").trials)

        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as sweep:
            try:
                wait(has_begun, "an epoch", 120)
                nodes.add()
                _, said = sweep.communicate(timeout=300)
            finally:
                sweep.kill()
        found = studies.read("s")
        studies.close()
    assert sweep.returncode == 0, said
    assert "1 worker group(s) of 1 rank(s) with 1 CPU each" in said
    assert found.counts["COMPLETE"] == 10
    groups = [trial.group for trial in found.trials]
    assert len(set(groups)) == 2, groups


@pytest.mark.lab
def test_trials_per_minute_grow_with_the_nodes() -> None:
    one, eight = in_a_process(1, seconds=10, rounds=4), in_a_process(8, seconds=10, rounds=4)
    assert eight["trials_per_minute"] >= 0.95 * 8 * one["trials_per_minute"]
