"""Whole sweeps: real Ray, real worker groups, the real command."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from cluster.experiments import Experiments
from cluster.studies import Studies

pytestmark = pytest.mark.slow
NARROW = ["--set", "model.filters=[8, 16]", "--set", "model.kernel_size=[3, 5]", "--set", "model.blocks=2"]


@pytest.fixture
def command(tmp_path):
    """Start `convsweep ...` in a folder of its own."""

    def start(*words):
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "CONVSWEEP_EXPERIMENTS")}
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", *map(str, words)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process, status=0):
    out, err = process.communicate(timeout=500)
    assert process.returncode == status, err
    return out, err


def plain_study(tmp_path, name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/experiments/studies.db")


def test_a_newcomers_way_from_sweep_to_prediction(command, tmp_path):
    out, err = finish(command("sweep", "--data", "digits", "--trials", 10, "--epochs", 6, "--name", "s", *NARROW))
    assert "Ray" not in err
    assert "raylet" not in err
    assert "preset default" in out
    document = json.loads(finish(command("rank", "s", "--json"))[0])
    theirs = plain_study(tmp_path, "s").trials
    assert len(document["trials"]) == len(theirs) == 10
    for trial in document["trials"]:
        other = theirs[trial["number"]]
        assert (trial["state"], trial["value"]) == (other.state.name, other.value)
        assert trial["epochs"] == len(other.intermediate_values)
        assert other.params.items() <= trial["config"].items()
    states = {t["state"] for t in document["trials"]}
    assert states <= {"COMPLETE", "PRUNED", "FAIL"}
    assert "PRUNED" in states
    assert max(t["epochs"] for t in document["trials"] if t["state"] == "PRUNED") < 6
    assert document["trials"][0]["value"] >= 0.9
    kept = sorted((tmp_path / "experiments" / "s" / "checkpoints").iterdir())
    complete = [t["number"] for t in document["trials"] if t["state"] == "COMPLETE"][:5]
    assert [int(path.stem.split("-")[1]) for path in kept] == sorted(complete)
    assert {path.name for path in (tmp_path / "experiments" / "s").iterdir()} == {"checkpoints"}

    words = ["--samples", 10, "--int8", "--fp16", "--max-drop", 0.1, "--json"]
    exported = json.loads(finish(command("export", "s", "--to", "bundle", *words))[0])
    assert exported["max_difference"] <= 1e-4
    assert exported["formats"] == ["onnx", "pt2", "safetensors", "int8.onnx", "fp16.onnx"]
    assert max(exported["drops"].values()) <= 0.1
    card = (tmp_path / "bundle" / "README.md").read_text()
    counts = Counter(trial["state"] for trial in document["trials"])
    states_told = ", ".join(f"{counts[s]} {s.lower()}" for s in ("COMPLETE", "PRUNED", "FAIL") if counts[s])
    assert f"of the sweep s: {states_told}." in card
    assert "| `model.filters.1` | 8, 16 |" in card
    assert "| `optimizer.learning_rate` | 0.01 to 0.5, logarithmic where optimizer.name is sgd; " in card
    assert f"(trial {next(t['number'] for t in document['trials'] if t['preset'])})" in card or "itself" in card
    for precision in ("fp32", "fp16", "int8"):
        words = ["bundle", "bundle/samples", "--precision", precision, "--json"]
        predicted = json.loads(finish(command("predict", *words))[0])
        assert len(predicted) == 10
        assert sum(p["path"].endswith(f"-{p['label']}.png") for p in predicted) >= 8


def test_a_warm_group_takes_the_next_trial_at_once(command):
    """The bound of the promise, not a measurement: bench/ has the figures."""
    finish(
        command("sweep", "--data", "digits", "--trials", 12, "--epochs", 1, "--name", "s", "--pruner", "none", *NARROW)
    )
    document = json.loads(finish(command("rank", "s", "--json"))[0])
    assert document["overhead_seconds"] < 2  # a group that starts anew takes 10 s and more
    assert document["startup_seconds"] > document["overhead_seconds"]


def test_two_ranks_train_like_one(command, tmp_path):
    words = ["train", "--data", "digits", "--epochs", 3, "--json", "--set", "training.precision=float32"]
    words += ["--set", "model.batch_norm=false", "--set", "augmentation.shift=1"]
    one = json.loads(finish(command(*words))[0])
    two = json.loads(finish(command(*words, "--workers", 2))[0])
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-4)
    assert two["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.01)
    assert not (tmp_path / "experiments").exists() or not any((tmp_path / "experiments").iterdir())


def test_equal_seeds_give_equal_losses_bit_for_bit(command):
    words = ["train", "--data", "digits", "--epochs", 2, "--json", "--seed", 5, "--set", "model.dropout=0.2"]
    first, second = (json.loads(finish(command(*words))[0])["history"] for _ in range(2))
    assert [(e["train_loss"], e["val_loss"]) for e in first] == [(e["train_loss"], e["val_loss"]) for e in second]


def test_an_interrupted_sweep_says_how_to_go_on_and_goes_on(command, tmp_path):
    running = command(
        "sweep", "--data", "digits", "--trials", 8, "--epochs", 40, "--name", "s", "--pruner", "none", *NARROW
    )
    experiments = Experiments(tmp_path / "experiments")
    deadline = time.time() + 120
    while time.time() < deadline and running.poll() is None:
        studies = Studies(experiments)
        if "s" in studies.names() and studies.open("s").counts()["COMPLETE"] >= 1:
            break
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, err = finish(running, status=130)
    assert "convsweep resume s" in err
    before = Studies(experiments).open("s")
    assert before.state == "INTERRUPTED"
    counts = before.counts()
    assert counts["RUNNING"] == 0
    assert counts["WAITING"] >= 1
    done = {t.number: t for t in before.read().trials if t.state == "COMPLETE"}
    waiting = [t for t in before.read().trials if t.state == "WAITING"]

    finish(command("resume", "s"))
    after = Studies(experiments).open("s")
    assert after.counts() == {"COMPLETE": 8, "PRUNED": 0, "FAIL": 0, "RUNNING": 0, "WAITING": 0}
    for number, trial in done.items():
        assert after.read().trial(number) == trial
    for trial in waiting:
        assert after.read().trial(trial.number).config == trial.config


def test_a_sweep_that_is_interrupted_before_its_groups_are_up_ends_at_once_and_goes_on(command, tmp_path):
    running = command("sweep", "--data", "digits", "--trials", 3, "--epochs", 1, "--name", "s", *NARROW)
    begun = next(line for line in running.stderr if "worker group" in line)  # they start, and no trial has begun
    running.send_signal(signal.SIGINT)
    _, err = finish(running, status=130)
    assert "convsweep resume s" in err, begun
    study = Studies(Experiments(tmp_path / "experiments")).open("s")
    assert study.state == "INTERRUPTED"
    assert set(study.read().counts.items()) >= {("RUNNING", 0), ("COMPLETE", 0), ("FAIL", 0)}
    finish(command("resume", "s"))
    assert study.read().counts["RUNNING"] == study.read().counts["WAITING"] == study.read().counts["FAIL"] == 0
    assert len(study.read().trials) == 3


# A cluster that outlives the sweep; after a line on its input it says what is left there.
SHARED_CLUSTER = """
import json, ray
from ray.util.state import list_actors, list_placement_groups
ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False)
here = ray.get_runtime_context().gcs_address  # said below too: there may be other clusters on this machine
print(here, flush=True)
input()
actors = [a.class_name for a in list_actors(here, detail=True, limit=1000) if a.state != "DEAD"]
groups = [g.name for g in list_placement_groups(here, limit=1000) if g.state != "REMOVED"]
print(json.dumps({"actors": actors, "placement_groups": groups}), flush=True)
"""


def test_a_sweep_on_a_shared_cluster_leaves_nothing_there(command, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cluster = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SHARED_CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = cluster.stdout.readline().strip()
    out, _ = finish(command("sweep", "--data", "digits", "--trials", 4, "--epochs", 1, "--address", address, *NARROW))
    assert "COMPLETE" in out
    left, _ = cluster.communicate("\n", timeout=120)
    assert json.loads(left.splitlines()[-1]) == {"actors": [], "placement_groups": []}


def test_a_trial_that_fails_says_why_and_the_group_goes_on(command, tmp_path):
    words = [
        "--set",
        "optimizer.name=sgd",
        "--set",
        "optimizer.learning_rate=[0.05, 10]",
        "--set",
        "optimizer.weight_decay=10",  # with a rate of 10 every step multiplies the weights by -99
    ]
    words += ["--set", "schedule.name=constant", "--set", "model.batch_norm=false", "--set", "model.blocks=2"]
    finish(
        command("sweep", "--data", "digits", "--trials", 8, "--epochs", 3, "--name", "s", "--pruner", "none", *words)
    )
    study = Studies(Experiments(tmp_path / "experiments")).open("s")
    failed = [t for t in study.read().trials if t.state == "FAIL"]
    assert failed
    assert all("not finite" in t.error for t in failed)
    assert all(Path(t.log.split(":", 1)[1]).is_file() for t in failed)
    assert study.counts()["COMPLETE"] == 8 - len(failed)


def test_a_sweep_with_two_goals_finds_the_front_that_optuna_finds_and_keeps_its_weights(command, tmp_path):
    words = ["--goal", "parameters", "--constraint", "parameters <= 20000", "--keep-checkpoints", 1]
    words += ["--set", "model.filters=[4, 8, 64]", "--set", "model.blocks=[1, 2]", "--pruner", "none"]
    out, _ = finish(command("sweep", "--data", "digits", "--trials", 14, "--epochs", 2, "--name", "s", *words))
    assert "* the front of accuracy, parameters" in out
    document = json.loads(finish(command("rank", "s", "--json"))[0])
    study = optuna.create_study(directions=["maximize", "minimize"])
    for theirs in plain_study(tmp_path, "s").trials:
        costs, state = theirs.user_attrs["costs"], theirs.state
        values = [theirs.value, costs["parameters"]] if state == optuna.trial.TrialState.COMPLETE else None
        given = {"state": state, "values": values, "constraints": theirs.constraints}
        study.add_trial(optuna.trial.create_trial(**given, user_attrs={"number": theirs.number}))
    front = {t["number"] for t in document["trials"] if t["front"]}
    assert front == {t.user_attrs["number"] for t in study.best_trials}
    kept = {int(path.stem.split("-")[1]) for path in (tmp_path / "experiments" / "s" / "checkpoints").iterdir()}
    assert kept == front | {document["trials"][0]["number"]}
    over = [t for t in document["trials"] if t["infeasible"]]
    assert 0 in {t["number"] for t in over}  # the preset
    assert all((t["state"], t["epochs"], t["value"]) == ("PRUNED", 0, None) for t in over)
    assert all((t["parameters"] > 20000) == (t in over) for t in document["trials"])
    cheapest = [t["number"] for t in document["trials"] if t["front"]][-1]
    finish(command("export", "s", "--trial", cheapest, "--to", "bundle"))


def test_a_sweep_whose_first_trials_all_fail_stops_and_says_why(command, tmp_path):
    words = ["--set", "model.padding=valid", "--set", "model.kernel_size=9", "--preset", "none"]
    _, err = finish(
        command("sweep", "--data", "digits", "--trials", 40, "--epochs", 1, "--name", "s", *words), status=1
    )
    assert "first 10 trials all failed" in err
    assert "model.kernel_size.1 = 9" in err
    study = Studies(Experiments(tmp_path / "experiments")).open("s")
    assert study.state == "FAILED"
    assert study.counts()["RUNNING"] == 0
    assert study.counts()["FAIL"] < 40


@pytest.mark.data
@pytest.mark.parametrize(
    ("preset", "data", "accuracy"), [("mnist-3conv", "mnist", 0.97), ("cifar-2conv", "cifar10", 0.3)]
)
def test_presets_learn_real_data_from_the_read_only_folder(command, data_root, preset, data, accuracy):
    epochs = 2 if data == "mnist" else 1
    out, _ = finish(
        command("train", "--preset", preset, "--data", data, "--epochs", epochs, "--data-root", data_root, "--json")
    )
    assert json.loads(out)["test_accuracy"] >= accuracy


def test_groups_of_two_ranks_complete_and_prune(command, tmp_path):
    """A pruned trial ends on both ranks at the same step, or the group would wait for itself for ever."""
    words = ["sweep", "--data", "digits", "--trials", 8, "--epochs", 8, "--name", "s", "--workers", 2, *NARROW]
    finish(command(*words))
    study = Studies(Experiments(tmp_path / "experiments")).open("s")
    counts = study.counts()
    assert counts["COMPLETE"] + counts["PRUNED"] == 8
    assert counts["PRUNED"] >= 1
    assert study.read().timing.groups == 1


def test_a_sweep_that_has_spent_its_money_ends_and_says_so(command, tmp_path):
    words = ["--trials", 1000, "--epochs", 1, "--price-per-node-hour", 3600, "--max-cost", 3, "--tensorboard"]
    _, err = finish(command("sweep", "--data", "digits", "--name", "s", *words, *NARROW))
    document = json.loads(finish(command("rank", "s", "--json"))[0])
    assert document["reason"] in err
    assert "of 3 for nodes spent after" in document["reason"]
    spent = document["spent"]
    assert document["state"] == "FINISHED"
    assert 0 < spent["trials"] == len(document["trials"]) < 1000
    assert spent["cost"] == pytest.approx(3600 * spent["node_hours"], abs=0.01)
    assert 3 <= spent["cost"] < spent["seconds"]  # one node, at one per second, from when its ranks were up
    event_files = tmp_path / "experiments" / "s" / "tensorboard"
    assert {folder.name for folder in event_files.iterdir()} == {str(t["number"]) for t in document["trials"]}
    _, err = finish(command("resume", "s"))
    assert "nothing left to do. The sweep has ended" in err
    _, err = finish(command("extend", "s", "--trials", 2), status=2)
    assert "give it more of that, too, with --max-cost" in err
    finish(command("extend", "s", "--trials", 2, "--max-cost", 100))
    after = json.loads(finish(command("rank", "s", "--json"))[0])
    assert len(after["trials"]) == len(document["trials"]) + 2
    assert after["spent"]["cost"] > spent["cost"]
    assert after["reason"] is None
