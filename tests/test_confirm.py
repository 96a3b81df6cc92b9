"""Confirming a sweep: with trainings in this process, and (slow) with the real command on a real cluster.

`python -m pytest tests/test_confirm.py`
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ImageFolder

from cluster import cli
from cluster import confirm as confirm_module
from cluster.cleaning import clean
from cluster.config import SweepConfig, make_config
from cluster.confirm import confirm
from cluster.confirmed import key_of
from cluster.experiments import Experiments
from cluster.finals import Final, Trained
from cluster.lease import LeaseHeldError
from cluster.record import SweepRecord
from cluster.studies import Studies
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.data import load_data
from trainer.hyperparameters import TrialConfig, flatten
from trainer.joined import join
from trainer.loop import create_model, train
from trainer.metrics import EpochMetrics

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "model.blocks": 1,
    "model.filters": 4,
    "model.batch_norm": False,
    "model.dense_units": 0,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.02,
    "training.batch_size": 4,
}
# Every step multiplies the weights by -99.
DIVERGES = {"optimizer.learning_rate": 10, "optimizer.weight_decay": 10, "schedule.name": "constant"}
FIRST = [TINY, TINY | {"model.filters": 8}, TINY | DIVERGES]
ACCURACIES = (0.9, 0.8, 0.7)


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def pictures(image_folder: ImageFolder) -> Path:
    """18 images to train with, 9 to validate and 12 to test, of three classes."""
    image_folder({"a": 6, "b": 6, "c": 6}, below="train")
    image_folder({"a": 3, "b": 3, "c": 3}, below="val")
    return image_folder({"a": 4, "b": 4, "c": 4}, below="test")


def record(folder: Path, pictures: Path, first: list[dict[str, Any]] = FIRST, epochs: int = 2) -> Experiments:
    """The sweep 's' as if it had been run: trials 0, 1, ... have these configurations, each less accurate than the one before."""
    where = Experiments(folder)
    settings = {
        "data": str(pictures),
        "image_size": 8,
        "cache": str(folder.parent / "cache"),
        "groups": 1,
        "cpus_per_worker": 1,
    }
    config = make_config({"name": "s", "preset": "none", "trials": 3, "epochs": epochs, "first": first} | settings)
    study = Studies(where, create=True).create(config, ["a", "b", "c"], (3, 8, 8))
    study.begin_run(config, groups=1)
    for accuracy in ACCURACIES[: len(first)]:
        trial = study.ask()
        trial.begin(1000 - trial.number, "group", 1.0)
        trial.report(EpochMetrics(1, 0.5, 0.5, accuracy, 0.1, 10.0, 1.0), 1.0)
        trial.complete()
        where.checkpoints("s").save(
            trial.number, Checkpoint(weights_of(trial.config, config), trial.config, 1, accuracy)
        )
    study.end_run("FINISHED")
    return where


def weights_of(config: TrialConfig, sweep: SweepConfig) -> dict[str, torch.Tensor]:
    return create_model(config, load_data(sweep.data), CPU).state_dict()


@pytest.fixture
def where(tmp_path: Path, pictures: Path) -> Experiments:
    return record(tmp_path / "experiments", pictures)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Final trainings run in this process instead of on a cluster; their titles as they begin."""
    begun: list[str] = []

    def train_here(
        finals: list[Final],
        config: SweepConfig,
        store: CheckpointStore,
        experiments: Experiments,
        connected: Callable[[], Any],
        should_stop: Callable[[], bool],
    ) -> Trained:
        data, failures = load_data(config.data), {}
        for final in finals:
            if store.configuration(final.key) == final.config or should_stop():
                continue
            begun.append(final.title)
            model = create_model(final.config, data, CPU)
            try:
                *_, last = train(model, final.config, join(data, CPU), None)
                store.save(final.key, Checkpoint(model.state_dict(), final.config, last.epoch, last.val_accuracy))
            except ArithmeticError as error:
                failures[final.key] = f"NotFiniteError: {error}\n\nTraceback ..."
        return Trained(store, frozenset(store.trials()), failures)

    monkeypatch.setattr(confirm_module, "train_finals", train_here)
    return begun


def run(where: Experiments, top: int = 2, seeds: int = 2) -> confirm_module.Confirmation:
    return confirm("s", top, seeds, where, None, silent)


def figures(sweep: SweepRecord) -> list[tuple[Any, ...]]:
    found = [(s.trial, s.seed, s.accuracy, s.balanced_accuracy, s.macro_f1, s.loss, s.images) for s in sweep.confirmed]
    return sorted(found)


# ---- what is trained and scored ----


def test_the_best_are_trained_with_each_seed_and_scored(where: Experiments, trained: list[str]) -> None:
    confirmation = run(where)
    assert trained == ["trial 0, seed 0", "trial 0, seed 1", "trial 1, seed 0", "trial 1, seed 1"]
    assert (confirmation.failures, confirmation.is_over) == ({}, True)
    assert [row[:2] for row in figures(confirmation.sweep)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {s.images for s in confirmation.sweep.confirmed} == {12}
    assert len({s.loss for s in confirmation.sweep.confirmed}) == 4
    assert Studies(where).read("s") == confirmation.sweep
    store = where.confirmed("s")
    recorded = confirmation.sweep.trial(1).config
    assert store.trials() == [key_of(0, 0), key_of(0, 1), key_of(1, 0), key_of(1, 1)]
    assert flatten(store.load(key_of(1, 1)).config) == recorded | {"training.seed": 1}


def test_nothing_is_trained_or_scored_twice(
    where: Experiments, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(where).sweep
    trained.clear()
    monkeypatch.setattr(confirm_module, "load_data", lambda *_: pytest.fail("the test split is touched again"))
    assert run(where).sweep == first
    assert run(where, top=1, seeds=1).sweep == first
    assert trained == []


def test_with_more_seeds_or_configurations_only_what_is_missing_is_done(where: Experiments, trained: list[str]) -> None:
    before = run(where, top=1, seeds=2).sweep.confirmed
    trained.clear()
    after = run(where, top=2, seeds=3).sweep.confirmed
    assert trained == ["trial 0, seed 2", "trial 1, seed 0", "trial 1, seed 1", "trial 1, seed 2"]
    assert after[:2] == before
    assert len(after) == 6


def test_weights_that_are_gone_are_trained_again_and_not_scored_again(where: Experiments, trained: list[str]) -> None:
    before = run(where).sweep.confirmed
    where.confirmed("s").delete(key_of(1, 0))
    trained.clear()
    assert run(where).sweep.confirmed == before
    assert trained == ["trial 1, seed 0"]


def test_the_same_sweep_confirmed_in_another_folder_gives_the_same_figures(
    where: Experiments, trained: list[str], tmp_path: Path
) -> None:
    other = Experiments(shutil.copytree(where.folder, tmp_path / "elsewhere"))
    assert figures(run(where).sweep) == figures(run(other).sweep)


def test_a_training_that_fails_is_named_and_the_others_are_confirmed(where: Experiments, trained: list[str]) -> None:
    long = record(where.folder.parent / "long", Path(Studies(where).read("s").config.data.data), epochs=8)
    confirmation = run(long, top=3, seeds=1)
    assert confirmation.failures.keys() == {"trial 2, seed 0"}
    assert "not finite" in confirmation.failures["trial 2, seed 0"]
    assert confirmation.is_over
    assert [s.trial for s in confirmation.sweep.confirmed] == [0, 1]


def test_what_is_stopped_before_all_are_trained_touches_no_test_split(
    where: Experiments, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_all = confirm_module.train_finals

    def interrupted(finals: list[Final], *words: Any) -> Trained:
        done = train_all(finals[:3], *words)
        signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setattr(confirm_module, "train_finals", interrupted)
    confirmation = run(where)
    assert not confirmation.is_over
    assert confirmation.sweep.confirmed == ()
    monkeypatch.setattr(confirm_module, "train_finals", train_all)
    trained.clear()
    assert run(where).is_over
    assert trained == ["trial 1, seed 1"]


# ---- what is refused ----


def test_data_without_a_test_split_are_refused_before_anything_is_trained(
    tmp_path: Path, pictures: Path, trained: list[str]
) -> None:
    shutil.rmtree(pictures / "test")
    without = record(tmp_path / "experiments", pictures)
    with pytest.raises(ValueError, match="compared on a test split, but 'pictures', the data of sweep 's', has none"):
        run(without)
    assert trained == []


@pytest.mark.parametrize(("top", "seeds", "message"), [(0, 5, "--top"), (3, 0, "--seeds"), (3, 1001, "--seeds")])
def test_numbers_that_make_no_sense_are_refused(where: Experiments, top: int, seeds: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(where, top, seeds)


def test_a_sweep_without_a_complete_trial_is_refused(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ValueError, match="no trial that ran to its end"):
        run(record(tmp_path / "experiments", pictures, first=[]))


def test_a_sweep_that_runs_is_not_confirmed(where: Experiments, trained: list[str]) -> None:
    with Studies(where).open("s").lease(False, print), pytest.raises(LeaseHeldError):
        run(where)
    assert trained == []


def test_after_a_killed_run_the_record_says_interrupted(tmp_path: Path, where: Experiments, trained: list[str]) -> None:
    code = f"""
import os
from pathlib import Path
from cluster.experiments import Experiments
from cluster.studies import Studies
study = Studies(Experiments(Path({str(where.folder)!r}))).open("s")
study.lease(False, print).__enter__()
study.begin_run(study.config, 1)
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parent.parent, check=False)
    assert Studies(where).read("s").state == "INTERRUPTED"
    assert run(where, top=1, seeds=1).sweep.state == "INTERRUPTED"
    assert Studies(where).open("s").state == "INTERRUPTED"


# ---- what else there is of a sweep ----


def test_cleaning_leaves_the_final_models_alone(where: Experiments, trained: list[str]) -> None:
    run(where)
    before = where.confirmed("s").trials()
    clean("s", where, keep=1, remove=True)
    assert where.checkpoints("s").trials() == [0]
    assert where.confirmed("s").trials() == before


def test_a_record_from_before_has_nothing_confirmed(where: Experiments) -> None:
    assert Studies(where).read("s").confirmed == ()


# ---- the commands ----


@pytest.fixture
def convsweep(
    where: Experiments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[Any, str, str]]:
    """Run the command in the folder above the experiments; gives (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    for name in ("CONVSWEEP_EXPERIMENTS", "CONVSWEEP_STUDY_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def command(*words: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["convsweep", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return command


def test_confirm_prints_a_table_and_what_it_means(convsweep: Callable[..., Any], trained: list[str]) -> None:
    status, out, _ = convsweep("confirm", "s", "--top", 2, "--seeds", 3)
    assert status == 0
    head, *rows = out.splitlines()
    assert head.split()[:5] == ["trial", "parameters", "n", "mean", "accuracy"]
    assert sum(row.startswith(" *") for row in rows) == 1
    assert "(12 images) was touched once for each of 6 models" in out
    assert "convsweep export s" in out


def test_confirm_prints_one_document(convsweep: Callable[..., Any], trained: list[str]) -> None:
    status, out, _ = convsweep("confirm", "s", "--top", 2, "--seeds", 3, "--json")
    document = json.loads(out)
    assert (status, document["sweep"], document["metric"]) == (0, "s", "test_accuracy")
    assert (document["test_touched"], document["failures"]) == (6, {})
    assert {c["trial"]: c["n"] for c in document["configurations"]} == {0: 3, 1: 3}
    assert document["recommended"] in (0, 1)


def test_a_failed_training_is_exit_status_1(convsweep: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(finals: list[Final], config: object, store: CheckpointStore, *_: object) -> Trained:
        return Trained(store, frozenset(), {final.key: "RuntimeError: too bad\n\nTraceback ..." for final in finals})

    monkeypatch.setattr(confirm_module, "train_finals", fail)
    status, out, err = convsweep("confirm", "s", "--top", 1, "--seeds", 1)
    assert status == 1
    assert "trial 0, seed 0 failed: RuntimeError: too bad" in err
    assert "Nothing is confirmed yet." in out


def test_export_takes_the_final_model_and_says_so(
    convsweep: Callable[..., Any], trained: list[str], tmp_path: Path, where: Experiments
) -> None:
    searched = json.loads(convsweep("export", "s", "--to", "before", "--json")[1])
    assert "validation_accuracy" in searched
    convsweep("confirm", "s", "--top", 2, "--seeds", 3)
    status, out, err = convsweep("export", "s", "--to", "bundle", "--json")
    assert status == 0
    assert "Sweep 's' was confirmed" in err
    document = json.loads(out)
    assert "validation_accuracy" not in document
    metrics = json.loads((tmp_path / "bundle" / "metrics.json").read_text())
    assert metrics["final"] is True
    assert "validation" not in metrics
    assert metrics["seeds"] == document["seeds"]
    chosen = [s for s in Studies(where).read("s").confirmed if s.trial == metrics["trial"]]
    accuracies = sorted(s.accuracy for s in chosen)
    assert metrics["seeds"]["n"] == 3
    assert metrics["seeds"]["mean"] == pytest.approx(sum(accuracies) / 3)
    assert metrics["test"]["accuracy"] == accuracies[1]
    (model,) = [s for s in chosen if s.seed == metrics["seeds"]["seed"]]
    assert (metrics["test"]["accuracy"], metrics["test"]["loss"]) == (model.accuracy, pytest.approx(model.loss))
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "training and the validation images together" in card
    assert f"{metrics['seeds']['mean']:.4f}" in card
    scores, before = (text.split("## How to use it")[0] for text in (card, (tmp_path / "before/README.md").read_text()))
    assert "| validation |" not in scores
    assert "| validation |" in before


def test_a_trial_by_its_number_is_exported_as_before(
    convsweep: Callable[..., Any], trained: list[str], tmp_path: Path
) -> None:
    convsweep("confirm", "s", "--top", 2, "--seeds", 2)
    status, out, err = convsweep("export", "s", "--trial", 0, "--to", "bundle", "--json")
    assert status == 0
    assert "confirmed" not in err
    assert "validation_accuracy" in json.loads(out)
    metrics = json.loads((tmp_path / "bundle" / "metrics.json").read_text())
    assert (metrics["final"], metrics["seeds"]) == (False, None)


def test_final_weights_that_are_gone_say_what_to_do(
    convsweep: Callable[..., Any], trained: list[str], where: Experiments
) -> None:
    convsweep("confirm", "s", "--top", 1, "--seeds", 1)
    where.confirmed("s").delete(key_of(0, 0))
    status, _, err = convsweep("export", "s", "--to", "bundle")
    assert status == 2
    assert "trial 0, seed 0, are gone: `convsweep confirm s`" in err


# ---- with Ray ----

CLUSTER = """
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster that outlives the commands."""
    words = [sys.executable, "-W", "ignore", "-c", CLUSTER]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    cluster = subprocess.Popen(words, text=True, **streams)
    assert cluster.stdout is not None
    yield cluster.stdout.readline().strip()
    cluster.communicate("\n", timeout=60)


def begin(where: Experiments, address: str, *words: object) -> subprocess.Popen[str]:
    """Start `convsweep confirm s ...` on the cluster."""
    command = [sys.executable, "-m", "cluster.cli", "confirm", "s", *map(str, words)]
    command += ["--experiments", str(where.folder), "--address", address]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=where.folder.parent, env=environment, text=True, **streams)


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out, err


def begin_and_read(where: Experiments, address: str, until: str) -> subprocess.Popen[str]:
    """Start it and wait for a line on standard error with these words."""
    process = begin(where, address, "--top", 2, "--seeds", 2)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if until in line:
            return process
    raise AssertionError("".join(said))


@pytest.mark.slow
def test_on_a_cluster_two_folders_give_the_same_figures_bit_for_bit_though_one_is_interrupted_and_killed(
    tmp_path: Path, pictures: Path, address: str
) -> None:
    where = record(tmp_path / "experiments", pictures, epochs=60)
    other = Experiments(shutil.copytree(where.folder, tmp_path / "other" / "experiments"))
    out, err = finish(begin(where, address, "--top", 2, "--seeds", 2, "--json"))
    assert "[4/4]" in err
    assert json.loads(out)["test_touched"] == 4
    assert {path.name for path in (where.folder / "s").iterdir()} == {"checkpoints"}
    store = where.confirmed("s")
    assert store.surplus(keep=set(store.trials()), unfinished=set()) == {}  # no state of a training is left
    assert {store.load(key).epoch for key in store.trials()} == {60}

    interrupted = begin_and_read(other, address, "[1/4]")
    interrupted.send_signal(signal.SIGINT)
    _, err = finish(interrupted, status=130)
    assert "convsweep confirm s --top 2 --seeds 2" in err
    assert Studies(other).read("s").confirmed == ()
    finished = other.confirmed("s").trials()
    assert 1 <= len(finished) < 4
    killed = begin_and_read(other, address, f"{len(finished)} of 4 are there already")
    killed.kill()
    killed.communicate()
    finish(begin(other, address, "--top", 2, "--seeds", 2))
    assert figures(Studies(other).read("s")) == figures(Studies(where).read("s"))
    for key in store.trials():
        again = other.confirmed("s").load(key).weights
        assert all(torch.equal(weights, again[name]) for name, weights in store.load(key).weights.items())


@pytest.mark.slow
def test_on_a_cluster_only_what_is_missing_is_trained_and_a_failure_does_not_stop_the_others(
    tmp_path: Path, pictures: Path, address: str
) -> None:
    where = record(tmp_path / "experiments", pictures, epochs=8)
    finish(begin(where, address, "--top", 1, "--seeds", 1))
    before = Studies(where).read("s").confirmed
    out, err = finish(begin(where, address, "--top", 1, "--seeds", 1, "--json"))
    assert (err, json.loads(out)["test_touched"]) == ("", 1)
    out, err = finish(begin(where, address, "--top", 3, "--seeds", 1, "--json"), status=1)
    assert "1 of 3 are there already" in err
    assert "trial 2, seed 0: FAILED: NotFiniteError" in err
    document = json.loads(out)
    assert document["failures"].keys() == {"trial 2, seed 0"}
    assert {c["trial"] for c in document["configurations"]} == {0, 1}
    assert Studies(where).read("s").confirmed[:1] == before
