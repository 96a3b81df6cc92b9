"""The command line: what it answers to mistakes, and that a mistake leaves nothing behind."""

import json
import sys

import pytest

from cluster import cli
from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.studies import Studies
from trainer.metrics import EpochMetrics


@pytest.fixture
def convsweep(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; gives (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    for name in ("CONVSWEEP_DATA", "CONVSWEEP_EXPERIMENTS", "CONVSWEEP_STUDY_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["convsweep", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture
def finished(tmp_path):
    """A small sweep's record, as `experiments` of the working folder."""
    where = Experiments(tmp_path / "experiments")
    config = make_config({"name": "s", "data": "digits", "trials": 3, "epochs": 2})
    study = Studies(where, create=True).create(config, ["0", "1"])
    study.begin_run(config, groups=1)
    for end in ("complete", "prune", "fail"):
        trial = study.ask()
        trial.begin(11, "group", 100.0 + trial.number)
        trial.report(EpochMetrics(1, 1.0, 1.1, 0.5 + 0.1 * trial.number, 0.1, 1000.0, 0.5), 0.5)
        getattr(trial, end)(*(["ValueError: too small"] if end == "fail" else []))
    study.end_run("FINISHED")
    return study


def folders(tmp_path, **classes):
    from PIL import Image

    root = tmp_path / "photos"
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (12, 12), (number, 0, 0)).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sweep", "--data", "minst"], "Did you mean 'mnist'"),
        (["sweep"], "Say which data"),
        (["sweep", "--data", "digits", "--trials", "0"], "trials must be at least 1, but got 0"),
        (["sweep", "--data", "digits", "--set", "model.kernel_sizes=3"], "Did you mean 'model.kernel_size'"),
        (["sweep", "--data", "digits", "--set", "optimizer.name=[sgd, adamm]"], "Did you mean 'adam"),
        (["sweep", "--data", "digits", "--set", "model.kernel_size"], "--set takes NAME=VALUE"),
        (["sweep", "--data", "digits", "--set", "model.kernel_size=[3"], "no YAML value"),
        (["sweep", "--data", "digits", "--name", "../elsewhere"], "name has 1 to 80 letters"),
        (["sweep", "--data", "digits", "--workers", "0"], "workers must be at least 1"),
        (["sweep", "--data", "digits", "--preset", "mnist-2conv"], "Did you mean"),
        (["sweep", "missing.yaml"], "'missing.yaml' cannot be read"),
        (["train", "--data", "digits", "--preset", "nothing"], "There is no preset 'nothing'"),
        (["train", "--data", "digits", "--set", "model.kernel_size=4"], "1 to 15, in steps of 2, but got 4"),
        (["train", "--data", "digits", "--epochs", "0"], "training.epochs must be 1 to"),
        (
            ["train", "--data", "digits", "--set", "optimizer.momentum=0.5"],
            "only with optimizer.name = sgd or muon, but here that is adamw",
        ),
        (
            ["train", "--data", "digits", "--set", "augmentation.alternating_flip=true"],
            "only with augmentation.flip = true, but here that is False",
        ),
        (["train", "--data", "digits", "--workers", "0"], "workers must be at least 1, but got 0"),
        (
            ["train", "--data", "digits", "--cpus-per-worker", "nan"],
            "cpus_per_worker must be greater than 0, but got nan",
        ),
        (["train", "--data", ""], "There is no data set and no folder ''"),
        (["train", "--data", "MNIST"], "Did you mean 'mnist'"),
        (["sweep", "--data", "digits", "--gpus-per-worker", "nan"], "gpus_per_worker must be 0 or more, but got nan"),
        (["rank", "nothing"], "There are no sweeps yet"),
        (["show", "nothing", "1"], "There are no sweeps yet"),
        (["export", "nothing"], "There are no sweeps yet"),
        (["resume", "nothing"], "There are no sweeps yet"),
        (["predict", "nothing", "image.png"], "There is no bundle 'nothing'"),
        (["sweep", "--data", "mnist", "--data-root", "nowhere"], "nowhere' is not a folder"),
        (["sweep", "--data", "digits", "--trials", "-3"], "trials must be at least 1, but got -3"),
        (["sweep", "--data", "digits", "--epochs", "0"], "epochs must be at least 1, but got 0"),
        (["sweep", "--data", "digits", "--keep-checkpoints", "0"], "keep_checkpoints must be at least 1"),
        (["sweep", "--data", "digits", "--max-retries", "-1"], "max_retries must be at least 0, but got -1"),
        (["sweep", "--data", "digits", "--epoch-timeout", "0s"], "epoch_timeout must be longer than 0 s"),
        (["sweep", "--data", "digits", "--epoch-timeout", "soon"], "A duration is a number with s, m, h or d"),
        (["sweep", "--data", "digits", "--time-budget", "1 fortnight"], "A duration is a number with s, m, h or d"),
        (["sweep", "--data", "digits", "--time-budget", "0"], "time_budget must be longer than 0 s"),
        (["sweep", "--data", "digits", "--max-cost", "20"], "price_per_node_hour: give both"),
        (["sweep", "--data", "digits", "--gpu-hours", "0"], "gpu_hours must be greater than 0, but got 0"),
        (["sweep", "--data", "digits", "--min-gain", "-1"], "min_gain must be 0 or more, but got -1"),
        (["sweep", "--data", "digits", "--sampler", "tpee"], "Did you mean 'tpe'"),
        (["sweep", "--data", "digits", "--pruner", "hyperband"], "pruner must be one of halving, median, none"),
        (["sweep", "--data", "digits", "--sampler", "grid"], "A grid needs a list of values"),
        (["sweep", "--data", "digits", "--sampler", "grid", "--warm-start-from", "x"], "learns nothing"),
        (["sweep", "--data", "digits", "--validation-fraction", "1"], "validation_fraction must lie between 0 and 1"),
        (["sweep", "--data", "digits", "--image-size", "2"], "image_size must be 4 to 1024 pixels"),
        (["sweep", "--data", "digits", "--name", ""], "name has 1 to 80 letters"),
        (["sweep", "--data", "digits", "--name", "a" * 81], "name has 1 to 80 letters"),
        (["sweep", "--data", "digits", "--name", "con/../../x"], "name has 1 to 80 letters"),
        (["sweep", "--data", "digits", "--cpus-per-worker", "0"], "cpus_per_worker must be greater than 0"),
        (["sweep", "--data", "digits", "--groups", "0"], "groups must be at least 1"),
        (["sweep", "--data", "digits", "--set", "training.epochs=3"], "the sweep's own `epochs`"),
        (["sweep", "--data", "digits", "--set", "model.kernel_size={low: 3}"], "expected"),
        (["sweep", "--data", "digits", "--set", "optimizer.learning_rate={low: 1, high: 0.1}"], "low <= high"),
        (["sweep", "--data", "digits", "--set", "model.kernel_size=[]"], "the list of values is empty"),
        (["sweep", "--data", "digits", "--set", "model.filters.5=8", "--set", "model.blocks=2"], "at most 2 blocks"),
        (["sweep", "--data", "digits", "--study-storage", "nonsense"], "cannot be opened"),
        (["sweep", "--data", "digits", "--study-storage", "oracle://x/y"], "cannot be opened"),
        (["list", "--study-storage", "mysql://nobody@nowhere/x"], "cannot be opened"),
        (
            ["sweep", "--data", "digits", "--storage-path", "gopher://x"],
            "--storage-path 'gopher://x' cannot be written",
        ),
        (["sweep", "--data", "digits", "--storage-path", "/proc/x"], "--storage-path '/proc/x' cannot be written"),
        (["sweep", "--data", "digits", "--experiments", "/proc/x"], "--experiments '/proc/x' cannot be written"),
        (["extend", "nothing", "--trials", "3"], "There are no sweeps yet"),
        (["clean", "nothing"], "There are no sweeps yet"),
        (["doctor"], "--data FOLDER, or a cluster"),
        (["doctor", "--data", "a", "--address", "auto"], "Say what to look at"),
        (["doctor", "--address", "127.0.0.1:1"], "Nobody answers"),
        (["doctor", "--data", "nowhere"], "There is no folder 'nowhere'"),
        (["predict", "/proc", "image.png"], "'/proc' is no bundle"),
    ],
)
def test_a_mistake_gets_one_sentence_and_status_2_and_leaves_nothing(convsweep, tmp_path, words, sentence):
    status, out, err = convsweep(*words)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.startswith("convsweep: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize(
    ("words", "named"),
    [(["sweep", "--trials", "many"], "--trials"), (["nonsense"], "nonsense"), (["sweep", "--nonsense"], "--nonsense")],
)
def test_words_that_the_command_line_does_not_know_end_with_status_2(convsweep, words, named):
    status, out, err = convsweep(*words)
    assert (status, out) == (2, "")
    assert named in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ({"cat": 3}, "at least two classes"),
        ({"cat": 3, "dog": 0}, "dog' is empty"),
        ({"cat": 3, "dog": 1}, "'dog' has 1 training image(s), but at least 2"),
        ({}, "There is no data set and no folder"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_refused(convsweep, tmp_path, classes, sentence):
    root = folders(tmp_path, **classes)
    status, out, err = convsweep("sweep", "--data", root)
    assert (status, out) == (2, "")
    assert sentence in err
    assert not (tmp_path / "experiments").exists()


def test_a_file_that_is_no_image_is_named_and_can_be_left_out(convsweep, tmp_path):
    root = folders(tmp_path, cat=4, dog=4)
    (root / "dog" / "notes.txt").write_text("not an image")
    status, _, err = convsweep("train", "--data", root, "--epochs", "1")
    assert status == 2
    assert "notes.txt" in err
    assert "--skip-broken" in err
    status, out, _ = convsweep(
        "train", "--data", root, "--epochs", "1", "--skip-broken", "--json", "--image-size", "16"
    )
    assert status == 0
    assert json.loads(out)["test_accuracy"] is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data: [digits]", "data must be text, but got ['digits']"),
        ("data: 3", "data must be text, but got 3"),
        ("data:", "Say which data"),
        ("data: digits\nspace: {1: 2}", "A hyperparameter has a name such as optimizer.learning_rate, but got 1"),
        ("data: digits\nspace: {null: 2}", "A hyperparameter has a name such as optimizer.learning_rate, but got None"),
        ("data: digits\nfirst: [{1: 2}]", "A hyperparameter has a name such as optimizer.learning_rate, but got 1"),
    ],
)
def test_a_sweep_file_of_wrong_types_is_answered_with_the_rule(convsweep, tmp_path, text, sentence):
    (tmp_path / "sweep.yaml").write_text(text)
    status, out, err = convsweep("sweep", "sweep.yaml")
    assert (status, out) == (2, "")
    assert sentence in err
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_a_folder_for_the_bundle_is_looked_at_before_anything_is_trained(convsweep, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.json").write_text("{}")
    status, _, err = convsweep("train", "--data", "digits", "--epochs", "1", "--to", "thesis")
    assert status == 2
    assert err == "convsweep: 'thesis' exists and is no bundle: choose another folder with --to.\n"


def test_a_training_whose_loss_is_not_finite_says_so_without_a_traceback(convsweep, monkeypatch):
    from trainer import loop

    def diverge(*words, **options):
        raise loop.NotFiniteError("The loss is not finite in epoch 1: train nan, validation nan.")
        yield

    monkeypatch.setattr("cluster.single.train", diverge)
    status, out, err = convsweep("train", "--data", "digits", "--epochs", "1")
    assert (status, out) == (1, "")
    assert err.endswith("convsweep: The loss is not finite in epoch 1: train nan, validation nan.\n")


def test_a_folder_for_experiments_that_is_none_is_named(convsweep, tmp_path):
    (tmp_path / "file").write_text("")
    for command in (["sweep", "--data", "digits"], ["list"]):
        status, _, err = convsweep(*command, "--experiments", "file")
        assert status == 2
        assert "--experiments must name a folder, but 'file' is a file" in err
    status, _, err = convsweep("sweep", "--data", "digits", "--experiments", "file/below")
    assert status == 2
    assert "/file' is a file" in err
    status, _, err = convsweep("train", "--data", "digits", "--cache", "file")
    assert status == 2
    assert "Say another with --cache" in err


def test_what_extend_refuses_leaves_the_record_as_it_is(convsweep, finished):
    for words, sentence in (
        (["--trials", "0"], "trials must be at least 1, but got 0"),
        (["--trials", "5", "--address", "127.0.0.1:9"], "Nobody answers at '127.0.0.1:9'"),
    ):
        status, _, err = convsweep("extend", "s", *words)
        assert status == 2
        assert sentence in err
        assert finished.read().config.trials == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--trials, --time-budget, --gpu-hours or --max-cost"),
        (["--gpu-hours", "0"], "gpu_hours must be greater than 0, but got 0."),
        (["--max-cost", "5"], "max_cost needs to know what a node costs, but got 5 without price_per_node_hour"),
        (["--trials", "0"], "trials must be at least 1, but got 0"),
        (["--time-budget", "soon"], "A duration is a number"),
        (["--trials", "1", "--set", "model.kernel_sizes=3"], "Did you mean 'model.kernel_size'"),
    ],
)
def test_what_extend_cannot_give_is_refused(convsweep, finished, words, sentence):
    before = finished.read()
    status, _, err = convsweep("extend", "s", *words)
    assert (status, finished.read()) == (2, before)
    assert sentence in err


def test_a_warm_start_from_a_sweep_that_is_not_there_leaves_no_sweep(convsweep, finished):
    status, _, err = convsweep("sweep", "--data", "digits", "--name", "t", "--warm-start-from", "r")
    assert status == 2
    assert "There is no sweep 'r'" in err
    assert json.loads(convsweep("list", "--json")[1])[0]["name"] == "s"
    assert len(json.loads(convsweep("list", "--json")[1])) == 1


def test_a_sweep_that_another_process_runs_is_not_run_twice(convsweep, finished):
    finished._study.set_user_attr("state", "INTERRUPTED")
    with finished.lease(False, print):
        for words in (["resume", "s"], ["extend", "s", "--trials", 2], ["resume", "s", "--takeover"], ["clean", "s"]):
            status, _, err = convsweep(*words)
            assert status == 2
            assert "is being run by process" in err


def test_a_sweep_that_was_killed_after_its_last_trial_is_finished_by_resume(convsweep, finished, tmp_path):
    finished._study.set_user_attr("state", "RUNNING")
    (tmp_path / "experiments/s/tune").mkdir(parents=True)
    status, _, err = convsweep("resume", "s")
    assert (status, "nothing left to do" in err, finished.state) == (0, True, "FINISHED")
    assert not (tmp_path / "experiments/s").exists()


def test_clean_shows_what_is_not_needed_and_frees_it_on_request(convsweep, finished, tmp_path):
    left = tmp_path / "experiments/s/checkpoints/trial-00001.state"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"12345")
    status, out, _ = convsweep("clean", "s")
    assert (status, left.exists()) == (0, True)
    assert "5 B" in out
    assert convsweep("clean", "s", "--yes")[0] == 0
    assert not left.exists()
    assert "All is needed" in convsweep("clean", "s")[1]


def test_doctor_says_what_is_wrong_and_fails_for_what_must_be_mended(convsweep, tmp_path):
    root = folders(tmp_path, cats=25, dogs=25)
    assert convsweep("doctor", "--data", root)[0] == 1  # the same images under two classes
    (root / "cats" / "x.png").write_text("no image")
    status, out, _ = convsweep("doctor", "--data", root, "--json")
    found = json.loads(out)
    assert status == 1
    assert found["counts"] == {"train": {"cats": 25, "dogs": 25}}
    assert [f["severity"] for f in found["findings"]] == ["error", "error"]


def test_malformed_yaml_is_named_with_its_line(convsweep, tmp_path):
    (tmp_path / "sweep.yaml").write_text("data: digits\nspace: {model.kernel_size: [3,}\n")
    status, _, err = convsweep("sweep", "sweep.yaml")
    assert status == 2
    assert "line 2" in err


def test_a_name_that_exists_is_refused_before_anything_starts(convsweep, finished):
    status, _, err = convsweep("sweep", "--data", "digits", "--name", "s")
    assert status == 2
    assert "convsweep resume s" in err
    assert len(finished.read().trials) == 3


def test_more_workers_than_the_machine_has_are_refused_with_the_arithmetic(convsweep, tmp_path):
    status, out, err = convsweep("sweep", "--data", "digits", "--workers", "4096")
    assert (status, out) == (2, "")
    assert "1 group(s) x 4096 worker(s) = 4096 worker(s)" in err
    assert not (tmp_path / "experiments").exists()


def test_rank_show_and_list_agree_with_the_record(convsweep, finished):
    _, out, _ = convsweep("rank", "s", "--json")
    document = json.loads(out)
    assert [t["number"] for t in document["trials"]] == [0, 1, 2]
    assert [t["state"] for t in document["trials"]] == ["COMPLETE", "PRUNED", "FAIL"]
    assert document["trials"][0]["value"] == 0.5
    assert document["trials"][0]["config"]["model.kernel_size.1"] == 3
    assert {"wall_seconds", "startup_seconds", "train_seconds", "overhead_seconds", "groups"} <= set(document)
    _, out, _ = convsweep("show", "s", "2", "--json")
    trial = json.loads(out)
    assert trial["error"] == "ValueError: too small"
    assert trial["epochs"][0]["val_accuracy"] == pytest.approx(0.7)
    _, out, _ = convsweep("list", "--json")
    counts = {"COMPLETE": 1, "PRUNED": 1, "FAIL": 1, "RUNNING": 0, "WAITING": 0}
    assert json.loads(out) == [
        {
            "name": "s",
            "state": "FINISHED",
            "data": "digits",
            "trials": counts,
            "metric": "val_accuracy",
            "best_value": 0.5,
        }
    ]


def test_the_tables_show_the_best_trial_first_and_why_one_failed(convsweep, finished):
    _, out, _ = convsweep("rank", "s")
    lines = out.splitlines()
    assert "COMPLETE" in lines[1]
    assert "preset default" in lines[1]
    assert "and 2 more" in convsweep("rank", "s", "--top", "1")[1]
    assert "too small" in convsweep("show", "s", "2")[1]
    assert "trial 0: COMPLETE" in convsweep("show", "s", "best")[1]
    assert "FINISHED" in convsweep("list")[1]


def test_a_trial_that_is_not_there_is_answered_with_those_that_are(convsweep, finished):
    assert "it has trials 0 to 2" in convsweep("show", "s", "7")[2]
    assert "a number or `best`" in convsweep("show", "s", "worst")[2].lower()


def test_a_trial_without_weights_cannot_be_exported(convsweep, finished):
    status, _, err = convsweep("export", "s", "--trial", "1")
    assert status == 2
    assert "The weights of trial 1 (PRUNED) were not kept" in err


def test_resuming_a_finished_sweep_says_so(convsweep, finished):
    status, _, err = convsweep("resume", "s")
    assert status == 0
    assert "nothing left to do" in err


def test_train_prints_one_document_with_what_it_promises(convsweep):
    status, out, _ = convsweep("train", "--data", "digits", "--epochs", "2", "--seed", "3", "--json", "--to", "bundle")
    assert status == 0
    document = json.loads(out)
    assert {
        "val_accuracy",
        "test_accuracy",
        "epochs",
        "train_seconds",
        "images_per_second",
        "parameters",
        "config",
    } <= set(document)
    assert document["epochs"] == len(document["history"]) == 2
    assert document["config"]["training.seed"] == 3
    status, out, _ = convsweep("predict", "bundle", "missing.png")
    assert (status, out) == (2, "")


def test_every_command_teaches(convsweep):
    status, out, _ = convsweep("--help")
    assert status == 0
    for command in (
        "sweep",
        "resume",
        "extend",
        "list",
        "rank",
        "show",
        "train",
        "report",
        "export",
        "predict",
        "dashboard",
    ):
        assert f"\n  {command} " in out
        status, text, _ = convsweep(command, "--help")
        assert status == 0
        assert "Usage: convsweep " + command in text
