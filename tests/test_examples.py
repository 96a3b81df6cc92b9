"""The examples can be run as their pages say: `python -m pytest tests/test_examples.py`."""

from __future__ import annotations

import importlib.util
import pickle
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ImageFolder
from PIL import Image

from bench import results, task_pages
from bench.tasks import ROOT, TASKS
from cluster.config import SweepConfig, make_config, read_sweep_file
from trainer.data import DataConfig, load_data
from trainer.hyperparameters import flatten
from trainer.named_data import NAMES
from trainer.presets import PRESETS

EXAMPLES = ROOT / "examples"
FOLDERS = sorted(folder for folder in EXAMPLES.iterdir() if folder.is_dir())
SWEEP_FILES = sorted(EXAMPLES.rglob("*.yaml"))
SCRIPTS = sorted(EXAMPLES.rglob("*.py"))
RUN = re.compile(r"^python (\S+\.py)", re.MULTILINE)
PRESET = re.compile(r"preset:? ([\w-]*\w)")
TOOLS = (
    "training.sampling",
    "loss.class_weights",
    "loss.effective_beta",
    "augmentation.balanced",
    "augmentation.mixup",
)
FULL, SMALLEST = 100, 2
"""Training images of each class in the CIFAR-10 of these tests, and of the rarest in its long tail of 50 to 1."""


def label(file: Path) -> str:
    return str(file.relative_to(EXAMPLES))


def config_of(file: Path, image_folder: ImageFolder) -> SweepConfig:
    """What the sweep file asks for; a folder of images that a script has yet to write is another one here."""
    settings = read_sweep_file(file) | {"name": "example"}
    if settings["data"] not in NAMES:
        assert settings["data"] in (file.parent / "README.md").read_text(), "the page says where the images come from"
        settings["data"] = str(image_folder({"cat": 2, "dog": 2}))
    return make_config(settings)


@pytest.mark.parametrize("folder", FOLDERS, ids=label)
def test_an_example_has_a_sweep_file_and_a_page_and_is_listed(folder: Path) -> None:
    assert (folder / "sweep.yaml").exists()
    assert f"({folder.name}/README.md)" in (EXAMPLES / "README.md").read_text()
    assert "# " + folder.name in (folder / "README.md").read_text()


@pytest.mark.parametrize("file", SWEEP_FILES, ids=label)
def test_a_sweep_file_is_one(file: Path, image_folder: ImageFolder) -> None:
    config = config_of(file, image_folder)
    assert config.space == yaml.safe_load(file.read_text())["space"]


@pytest.mark.parametrize("file", SWEEP_FILES, ids=label)
def test_what_a_sweep_file_narrows_has_an_effect_in_its_space(file: Path, image_folder: ImageFolder) -> None:
    space = config_of(file, image_folder).build_space()
    seen = {name for seed in range(100) for name in flatten(space.suggest(_Drawn(seed)))}
    without = {name for name in yaml.safe_load(file.read_text())["space"] if not any(s.startswith(name) for s in seen)}
    assert without == set()


class _Drawn:
    """A trial whose answers are drawn at random."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def suggest_int(self, name: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
        return int(self._random.choice(np.arange(low, high + 1, step)))

    def suggest_float(self, name: str, low: float, high: float, log: bool = False) -> float:
        return float(self._random.uniform(low, high))

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        return choices[self._random.integers(len(choices))]


@pytest.mark.parametrize("file", SWEEP_FILES, ids=label)
def test_the_search_narrows_the_space(file: Path, image_folder: ImageFolder) -> None:
    config = config_of(file, image_folder)
    usual = SweepConfig(name="usual", data=config.data).build_space()
    assert len(config.build_space().searched()) < len(usual.searched()) - 3


@pytest.mark.parametrize("folder", FOLDERS, ids=label)
def test_a_script_that_a_page_runs_is_there(folder: Path) -> None:
    scripts = RUN.findall((folder / "README.md").read_text())
    assert {ROOT / script for script in scripts} == {script for script in SCRIPTS if script.parent == folder}


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.example])
def test_what_is_measured_is_what_the_page_shows(task: str) -> None:
    shown = (EXAMPLES / str(TASKS[task].example) / "README.md").read_text().splitlines()
    assert [step for step in TASKS[task].steps if step not in shown] == []


def test_a_preset_that_is_named_is_one() -> None:
    steps = "\n".join(step for task in TASKS.values() for step in task.steps)
    pages = [file for kind in ("md", "yaml") for file in EXAMPLES.rglob(f"*.{kind}")]
    texts = [steps, *(file.read_text() for file in pages)]
    named = {name for text in texts for name in PRESET.findall(text)}
    assert {"mnist-fast", "mnist-rnn"} <= named <= set(PRESETS)


def test_every_example_is_measured() -> None:
    assert {task.example for task in TASKS.values() if task.example} == {folder.name for folder in FOLDERS}


def test_the_pages_say_what_was_measured() -> None:
    content = results.load(task_pages.FOLDER)
    assert set(content) <= set(TASKS)
    assert task_pages.PAGE.read_text() == task_pages.page(TASKS, content), "run `python -m bench.tasks --write`"
    for file in task_pages.examples(TASKS):
        assert file.read_text() == task_pages.with_measured(file, TASKS, content), "run `python -m bench.tasks --write`"


def test_the_two_searches_of_the_long_tail_differ_in_the_tools_alone() -> None:
    folder = EXAMPLES / "cifar10-long-tail"
    tools, plain = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("sweep", "plain"))
    assert {tools.pop("metric"), plain.pop("metric")} == {"balanced_accuracy", "accuracy"}
    assert all(set(given) & set(TOOLS) for given in tools.pop("first"))
    assert {name for name in TOOLS if tools["space"].pop(name, None)} == set(TOOLS)
    assert tools == plain


# ---- the scripts ----


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script", EXAMPLES / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 in torchvision's layout: each image has its own number in its first three pixels."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # it has other hashes
    folder = tmp_path / "root/cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(FULL * 10) % 10)
    pixels = np.zeros((FULL * 10, 3072), np.uint8)
    pixels[:, 0], pixels[:, 1], pixels[:, 2] = labels, np.arange(FULL * 10) // 256, np.arange(FULL * 10) % 256
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    parts = {f"data_batch_{i + 1}": slice(200 * i, 200 * i + 200) for i in range(5)} | {"test_batch": slice(0, 50)}
    for name, part in parts.items():
        (folder / name).write_bytes(pickle.dumps({"data": pixels[part], "labels": labels[part].tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return tmp_path / "root"


def long_tail(root: Path, to: Path, cache: Path, *words: str) -> None:
    own = ["--data-root", str(root), "--cache", str(cache), "--to", str(to)]
    script("cifar10-long-tail/write_images.py").main([*own, *words])


def test_the_profile_is_that_of_the_paper() -> None:
    counts = script("cifar10-long-tail/write_images.py").long_tail(5000, 10, 100)
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(counts) == 12406


def test_the_long_tail_has_its_counts_and_a_whole_test_split(cifar_root: Path, tmp_path: Path) -> None:
    long_tail(cifar_root, tmp_path / "images", tmp_path / "cache", "--ratio", "50")
    data = load_data(DataConfig(data=str(tmp_path / "images"), image_size=32, cache=str(tmp_path / "cache")))
    counts = np.bincount(data.train.labels).tolist()
    assert counts == [int(FULL * 50 ** (-i / 9)) for i in range(10)]
    assert (counts[0], counts[-1]) == (FULL, SMALLEST)
    assert data.classes[0] == "airplane"
    assert data.test is not None
    assert len(data.test) == 50
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0], data.train.labels)  # each image is under its own class
    numbers = data.train.images[:, 0, 0, 1].astype(int) * 256 + data.train.images[:, 0, 0, 2]
    assert len(set(numbers.tolist())) == len(data.train.images)


def test_the_same_seed_draws_the_same_images(cifar_root: Path, tmp_path: Path) -> None:
    for name, seed in (("first", "0"), ("again", "0"), ("other", "1")):
        long_tail(cifar_root, tmp_path / name, tmp_path / "cache", "--ratio", "50", "--seed", seed)
    files = [sorted(f.name for f in (tmp_path / name).rglob("*.png")) for name in ("first", "again", "other")]
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ratio", "0.5"], "--ratio must be at least 1, but got 0.5"),
        (["--ratio", "1000"], "leaves 'truck' 0"),
        (["--ratio", "nan"], "--ratio must be at least 1"),
    ],
)
def test_a_long_tail_that_cannot_be_is_refused(
    words: list[str], message: str, cifar_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        long_tail(cifar_root, tmp_path / "images", tmp_path / "cache", *words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("name", [label(file) for file in SCRIPTS])
def test_a_script_refuses_a_folder_that_is_there(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        script(name).main(["--to", str(tmp_path)])
    assert ended.value.code == 2
    assert "is there already" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.data
def test_the_own_images_are_mnist(tmp_path: Path, cache: Path, data_root: Path) -> None:
    words = ["--to", str(tmp_path / "images"), "--train", "40", "--test", "20", "--data-root", str(data_root)]
    script("own-images/write_images.py").main([*words, "--cache", str(cache)])
    counts = {
        f"{split}/{digit}": len(list((tmp_path / f"images/{split}/{digit}").glob("*.png")))
        for split in ("train", "test")
        for digit in range(10)
    }
    assert counts == {name: 4 if name.startswith("train") else 2 for name in counts}
    with Image.open(next((tmp_path / "images/test/7").glob("*.png"))) as image:
        assert (image.mode, image.size) == ("L", (28, 28))
