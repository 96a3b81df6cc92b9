"""Data sets, their splits and the cache: `python -m pytest tests/test_data.py`."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from trainer import named_data
from trainer.data import DataConfig, ImageData, load_data, needs_download, stratified_split
from trainer.named_data import NAMES

TRAIN, TEST = 40, 20


def load(data: str, cache: Path, **options: Any) -> ImageData:
    return load_data(DataConfig(data=data, cache=str(cache), **options))


def fingerprint(data: ImageData) -> list[str]:
    """A hash of everything that training sees."""
    parts = [data.train.images, data.train.labels, data.train.rows, data.validation.rows]
    parts += [data.test.images, data.test.labels] if data.test else []
    return [hashlib.sha256(np.ascontiguousarray(part)).hexdigest() for part in parts] + [repr(data.classes)]


def write_idx(path: Path, array: NDArray[np.uint8], packed: bool) -> None:
    """The format of http://yann.lecun.com/exdb/mnist: 0, 0, type 8, dimensions, the sizes (big-endian), the values."""
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_mnist(root: Path, folder: str = "MNIST", packed: bool = True) -> dict[str, NDArray[np.uint8]]:
    """A small MNIST in torchvision's layout; every class is in both parts."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = rng.permutation(np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        write_idx(root / folder / "raw" / name, array, packed)
    return arrays


def listing(root: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p.relative_to(root)), p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*"))


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the network is not to be used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ---- digits and its splits ----


def test_digits_are_8x8_gray_images_of_ten_classes(digits: ImageData) -> None:
    assert digits.name == "digits"
    assert digits.image_shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1293, 144, 360)


def test_the_splits_of_digits_are_all_of_digits_once(digits: ImageData) -> None:
    parts = [digits.train, digits.validation, digits.test]
    got = np.concatenate([np.c_[p.images[p.rows].reshape(len(p), -1), p.labels[p.rows]] for p in parts])
    source = load_digits()
    expected = np.c_[np.round(source.data / 16 * 255), source.target]
    assert sorted(map(tuple, got)) == sorted(map(tuple, expected.astype(np.int64)))


def test_training_and_validation_rows_are_disjoint_and_complete(digits: ImageData) -> None:
    rows = np.concatenate([digits.train.rows, digits.validation.rows])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(digits.train.images)))


def test_every_split_has_every_class_in_its_share(digits: ImageData) -> None:
    whole = np.bincount(load_digits().target) / 1797
    for split in (digits.train, digits.validation, digits.test):
        counts = np.bincount(split.labels[split.rows])
        assert np.abs(counts - whole * len(split)).max() <= 1.5


def test_mean_and_deviation_are_those_of_the_training_images(digits: ImageData) -> None:
    assert digits.mean == pytest.approx([digits.train.images.mean()])
    assert digits.std == pytest.approx([digits.train.images.std()])


def test_equal_split_seeds_give_equal_splits_and_others_do_not(cache: Path, tmp_path: Path, digits: ImageData) -> None:
    afresh = load("digits", tmp_path)
    assert fingerprint(afresh) == fingerprint(digits)
    other = load("digits", cache, split_seed=1)
    assert set(other.validation.rows) != set(digits.validation.rows)
    np.testing.assert_array_equal(other.test.images, digits.test.images)


def test_a_split_that_was_loaded_before_is_the_same_again(cache: Path) -> None:
    assert fingerprint(load("digits", cache, split_seed=5)) == fingerprint(load("digits", cache, split_seed=5))


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
def test_the_validation_split_has_the_share_that_was_asked_for(cache: Path, fraction: float) -> None:
    data = load("digits", cache, validation_fraction=fraction)
    assert len(data.validation) == round(1437 * fraction)


def test_images_can_be_resized(cache: Path) -> None:
    assert load("digits", cache, image_size=16).image_shape == (1, 16, 16)


def test_a_second_load_does_not_decode_again(cache: Path, digits: ImageData) -> None:
    [entry] = [p.parent for p in cache.glob("digits-*/train_images.npy") if np.load(p).shape[2] == 8]
    before = {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in [entry, *entry.glob("*.npy")]}
    again = load("digits", cache)
    assert {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in [entry, *entry.glob("*.npy")]} == before
    assert fingerprint(again) == fingerprint(digits)


def test_the_arrays_are_mapped_files_and_not_copies(digits: ImageData) -> None:
    assert isinstance(digits.train.images, np.memmap)
    assert digits.validation.images is digits.train.images


def test_two_processes_that_load_at_once_agree(tmp_path: Path, digits: ImageData) -> None:
    write_mnist(tmp_path / "root")
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.SimpleQueue()
    arguments = (barrier, answers, tmp_path)
    processes = [context.Process(target=_load_when_both_are_ready, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = answers.get(), answers.get()
    for process in processes:
        process.join(60)
    assert first == second
    assert first[0] == fingerprint(digits)
    assert all(answer == first[1] for answer in first[2:])
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".") or p.suffix == ".writing"]


def _load_when_both_are_ready(barrier: Any, answers: Any, folder: Path) -> None:
    """Twenty times the packed MNIST, each time with an empty cache: the processes meet in the middle of unpacking."""
    import torchvision.datasets  # noqa: F401 -- takes seconds, and not the same in both

    found: list[Any] = []
    try:
        barrier.wait(60)
        found.append(fingerprint(load("digits", folder / "cache")))
        for i in range(20):
            barrier.wait(60)
            found.append(fingerprint(load("mnist", folder / f"cache{i}", root=str(folder / "root"))))
    except Exception as error:
        barrier.abort()
        found.append(repr(error))
    answers.put(found)


# ---- stratified splits ----


SPLITS = given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=6), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 5)
)


@SPLITS
def test_a_stratified_split_has_every_image_once_in_order(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    rows, held_out = stratified_split(labels, tuple("abcdef"[: len(counts)]), fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([rows, held_out])), np.arange(len(labels)))
    assert sorted(rows) == list(rows)
    assert sorted(held_out) == list(held_out)


@SPLITS
def test_a_stratified_split_has_every_class_on_both_sides(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    rows, held_out = stratified_split(labels, tuple("abcdef"[: len(counts)]), fraction, seed)
    assert set(labels[rows]) == set(range(len(counts)))
    assert set(labels[held_out]) == set(range(len(counts)))


@SPLITS
def test_a_stratified_split_holds_the_share_out_of_each_class_and_of_all(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    _, held_out = stratified_split(labels, tuple("abcdef"[: len(counts)]), fraction, seed)
    sizes = np.bincount(labels[held_out], minlength=len(counts))
    wanted = np.array(counts) * fraction
    least, most = np.ones(len(counts)), np.array(counts) - 1  # of every class one image is on either side
    assert (np.abs(sizes - wanted) <= 1).all()
    if (wanted >= least).all() and (wanted <= most).all():
        assert len(held_out) == round(len(labels) * fraction)


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_a_rare_class_is_on_both_sides(fraction: float) -> None:
    labels = np.array([0] * 300 + [1] * 2)
    rows, held_out = stratified_split(labels, ("common", "rare"), fraction, seed=0)
    assert set(labels[rows]) == {0, 1}
    assert set(labels[held_out]) == {0, 1}


def test_a_class_with_a_single_image_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"Class 'b' has 1 training image\(s\)"):
        stratified_split(np.array([0, 0, 0, 1]), ("a", "b"), 0.5, 0)


# ---- what a user writes ----


@pytest.mark.parametrize(
    ("data", "nearest"),
    [("mnits", "mnist"), ("cifra10", "cifar10"), ("digit", "digits"), ("fashion_mnist", "fashion-mnist")],
)
def test_an_unknown_data_set_is_answered_with_the_nearest(data: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"no data set and no folder '.*{data}'. Did you mean {nearest!r}"):
        DataConfig(data=data).check()


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="There is no data set and no folder"):
        load(str(tmp_path / "file"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_configuration_may_name_a_folder_that_is_gone() -> None:
    """A record is read where its images are not."""
    assert DataConfig(data="/nowhere/pictures").name == "pictures"


def test_paths_do_not_depend_on_the_working_folder_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = DataConfig(data="pictures", root="root", cache="~/cache")
    assert (config.data, config.root, config.cache) == tuple(
        str(tmp_path / path) for path in ("pictures", "root", "home/cache")
    )
    assert DataConfig(data="digits").data == "digits"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0}, "validation_fraction must lie between 0 and 1, but got 0"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie between 0 and 1, but got 1"),
        ({"validation_fraction": float("nan")}, "validation_fraction must lie between 0 and 1, but got nan"),
        ({"image_size": 3}, "image_size must be 4 to 1024 pixels, but got 3"),
        ({"image_size": 1025}, "image_size must be 4 to 1024 pixels, but got 1025"),
    ],
)
def test_a_wrong_setting_is_answered_with_the_rule(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(data="digits", **options)


def test_a_data_configuration_survives_json() -> None:
    config = DataConfig(data="digits", cache="x", image_size=12, validation_fraction=0.3, split_seed=4)
    assert DataConfig(**json.loads(json.dumps(config.to_json()))) == config


# ---- torchvision's layout ----


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "folder", "first_classes"),
    [
        ("mnist", "MNIST", ["0", "1", "2"]),
        ("fashion-mnist", "FashionMNIST", ["T-shirt/top", "Trouser", "Pullover"]),
        ("kmnist", "KMNIST", ["o", "ki", "su"]),
    ],
)
def test_a_torchvision_root_is_read_without_network_and_not_written_to(
    tmp_path: Path, name: str, folder: str, first_classes: list[str], packed: bool
) -> None:
    root = tmp_path / "root"
    arrays = write_mnist(root, folder, packed)
    before = listing(root)
    data = load(name, tmp_path / "cache", root=str(root), validation_fraction=0.25)
    assert listing(root) == before
    assert data.image_shape == (1, 28, 28)
    assert list(data.classes[:3]) == first_classes
    assert len(data.classes) == 10
    np.testing.assert_array_equal(data.train.images[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.train.labels, arrays["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(data.test.images[:, 0], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert (len(data.train), len(data.validation)) == (30, 10)


@pytest.mark.usefixtures("_no_network")
def test_named_images_can_be_resized(tmp_path: Path) -> None:
    write_mnist(tmp_path / "root")
    data = load("mnist", tmp_path / "cache", root=str(tmp_path / "root"), image_size=14)
    assert data.image_shape == (1, 14, 14)


@pytest.mark.usefixtures("_no_network")
def test_changed_files_of_a_root_are_decoded_again(tmp_path: Path) -> None:
    root = tmp_path / "root"
    arrays = write_mnist(root)
    load("mnist", tmp_path / "cache", root=str(root))
    write_idx(root / "MNIST/raw/train-images-idx3-ubyte", 255 - arrays["train-images-idx3-ubyte"], packed=True)
    data = load("mnist", tmp_path / "cache", root=str(root))
    np.testing.assert_array_equal(data.train.images[:, 0], 255 - arrays["train-images-idx3-ubyte"])


@pytest.mark.usefixtures("_no_network")
def test_a_data_set_that_is_nowhere_and_cannot_be_downloaded_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(RuntimeError, match=r"(?s)'mnist' is not under .*could not be downloaded.*--data-root.*digits"):
        load("mnist", tmp_path / "cache", root=str(tmp_path / "root"))


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The data root '.*nowhere' is not a folder"):
        load("cifar10", tmp_path / "cache", root=str(tmp_path / "nowhere"))


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_files_of_a_root_are_named_and_leave_nothing_behind(tmp_path: Path, packed: bool) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    write_mnist(root, packed=packed)
    for file in (root / "MNIST/raw").glob("train-images*"):
        file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"'mnist' under .* incomplete or damaged"):
        load("mnist", cache, root=str(root))
    assert [p for p in cache.iterdir() if p.suffix != ".lock"] == []


@pytest.mark.usefixtures("_no_network")
def test_a_wrong_cifar_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "root/cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "root/cifar-10-batches-py/data_batch_1").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"'cifar10' under .* incomplete or damaged"):
        load("cifar10", tmp_path / "cache", root=str(tmp_path / "root"))


@pytest.mark.usefixtures("_no_network")
def test_what_a_killed_process_left_half_unpacked_is_not_used(tmp_path: Path) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    arrays = write_mnist(root)
    load("mnist", cache, root=str(root))
    [unpacked] = cache.glob("unpacked-*")
    [decoded] = cache.glob("mnist-*/")
    shutil.rmtree(decoded)
    unpacked.rename(cache / f".{unpacked.name}-killed")
    for file in (cache / f".{unpacked.name}-killed").rglob("*ubyte"):
        file.write_bytes(file.read_bytes()[:100])
    data = load("mnist", cache, root=str(root))
    np.testing.assert_array_equal(data.train.images[:, 0], arrays["train-images-idx3-ubyte"])


def test_a_download_that_was_interrupted_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own download is stood in for: it writes the files that a server would give."""
    downloads, asked = tmp_path / "torchvision", []
    construct = named_data._construct

    def download(name: str, root: Path, split: str, download: bool) -> Any:
        if download:
            asked.append(split)
            write_mnist(root, packed=False)
        return construct(name, root, split, download=False)

    monkeypatch.setattr(named_data, "_construct", download)
    config = DataConfig(data="mnist", cache=str(tmp_path))
    write_mnist(downloads, packed=False)
    for file in (downloads / "MNIST/raw").glob("train-*"):
        file.unlink()
    assert needs_download(config)
    load_data(config)
    assert asked == ["train", "test"]
    assert not needs_download(config)
    load_data(config)
    assert len(asked) == 2


@pytest.mark.usefixtures("_no_network")
def test_a_whole_download_of_before_is_used_as_it_is(tmp_path: Path) -> None:
    write_mnist(tmp_path / "torchvision", packed=False)
    assert not needs_download(DataConfig(data="mnist", cache=str(tmp_path)))
    assert len(load("mnist", tmp_path).train.images) == TRAIN


def test_damaged_decoded_images_are_named(tmp_path: Path) -> None:
    load("digits", tmp_path)
    [facts] = tmp_path.glob("digits-*/facts.json")
    facts.write_text("{")
    with pytest.raises(ValueError, match=r"decoded images in .*/digits-.* are damaged .* delete that folder"):
        load("digits", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_data_set_has_a_preset_to_compare_with(name: str) -> None:
    from trainer.presets import PRESETS

    assert NAMES[name].preset in PRESETS


# ---- the real ones ----


@pytest.fixture(scope="session")
def mnist(cache: Path, data_root: Path) -> ImageData:
    return load("mnist", cache, root=str(data_root))


@pytest.mark.data
def test_mnist_is_mnist(mnist: ImageData, data_root: Path) -> None:
    assert mnist.image_shape == (1, 28, 28)
    assert mnist.classes == tuple("0123456789")
    assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (54_000, 6_000, 10_000)
    # The mean and deviation that every MNIST tutorial normalises with.
    assert mnist.mean[0] / 255 == pytest.approx(0.1307, abs=1e-4)
    assert mnist.std[0] / 255 == pytest.approx(0.3081, abs=1e-4)
    assert np.bincount(mnist.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.data
def test_cifar10_is_cifar10(cache: Path, data_root: Path) -> None:
    data = load("cifar10", cache, root=str(data_root))
    assert data.image_shape == (3, 32, 32)
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert np.array(data.mean) / 255 == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert np.array(data.std) / 255 == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
