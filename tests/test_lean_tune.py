"""Tune's actors that stay, with real Ray."""

import ast
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
SEQUENCE = """
import os

import psutil
import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from cluster.lean_tune import keep_actors


class Short(tune.Trainable):
    def setup(self, config):
        pass

    def reset_config(self, new_config):
        return True

    def step(self):
        return {"done": True, "process": os.getpid()}


class Keep(FIFOScheduler):
    def on_trial_add(self, tune_controller, trial):
        if trial.trial_id.endswith("00000"):
            keep_actors(tune_controller)


class KillAfterTheSecond(tune.Callback):
    ended = 0

    def on_trial_complete(self, iteration, trials, trial, **info):
        self.ended += 1
        if self.ended == 2:
            process = psutil.Process(trial.last_result["process"])
            process.kill()
            process.wait(30)


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
results = tune.Tuner(
    Short,
    tune_config=tune.TuneConfig(num_samples=4, max_concurrent_trials=1, reuse_actors=True, scheduler=Keep()),
    run_config=tune.RunConfig(
        storage_path=FOLDER,
        verbose=0,
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        callbacks=[KillAfterTheSecond()],
        failure_config=tune.FailureConfig(max_failures=1),
    ),
).fit()
assert not results.errors, results.errors
print([result.metrics["process"] for result in results])
"""


def test_an_actor_that_dies_while_it_waits_costs_no_trial(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", SEQUENCE.replace("FOLDER", repr(str(tmp_path)))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    processes = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert len(processes) == 4
    assert len(set(processes)) == 2
