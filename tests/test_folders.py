"""Folders of images as a data set: `python -m pytest tests/test_folders.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer import folders
from trainer.data import DataConfig, ImageData, Split, load_data

ImageFolder = Callable[..., Path]


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """A function that loads a folder with a cache of its own, images of 8x8."""

    def load_folder(root: Path, **options: Any) -> ImageData:
        settings = {"image_size": 8, "validation_fraction": 0.25} | options
        return load_data(DataConfig(data=str(root), cache=str(tmp_path / "cache"), **settings))

    return load_folder


def in_cache(tmp_path: Path) -> list[Path]:
    """What is in the cache besides locks: one folder per decoded data set."""
    return sorted(p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock")


def assert_labels_are_those_of_the_pictures(split: Split) -> None:
    """The pixels of class i that `image_folder` writes are 20 + 50 i to 27 + 50 i."""
    lowest = split.images[split.rows].min((1, 2, 3)).astype(int)
    np.testing.assert_array_equal((lowest - 20) // 50, labels_of(split))


def labels_of(split: Split) -> np.ndarray:
    return split.labels[split.rows]


# ---- what is found ----


def test_a_sub_folder_is_a_class(image_folder: ImageFolder, load: Any) -> None:
    data = load(image_folder({"ants": 6, "bees": 10, "cats": 4}))
    assert data.name == "pictures"
    assert data.classes == ("ants", "bees", "cats")
    assert data.image_shape == (3, 8, 8)
    assert data.train.images.dtype == np.uint8
    assert np.bincount(data.train.labels).tolist() == [6, 10, 4]
    assert (len(data.train), len(data.validation), data.test) == (15, 5, None)
    assert_labels_are_those_of_the_pictures(data.train)
    assert_labels_are_those_of_the_pictures(data.validation)


def test_large_files_are_decoded_in_parallel_to_the_same_arrays(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder({"a": 40, "b": 30})
    arrays = []
    for smallest, cache in ((2**30, "one after the other"), (0, "in parallel")):
        monkeypatch.setattr(folders, "SMALL_FILE", smallest)
        data = load_data(DataConfig(data=str(root), cache=str(tmp_path / cache), image_size=8))
        arrays.append((data.train.images, data.train.labels, data.train.rows))
    for first, second in zip(*arrays, strict=True):
        np.testing.assert_array_equal(first, second)


def test_images_are_64_pixels_wide_unless_told_otherwise(image_folder: ImageFolder, load: Any) -> None:
    assert load(image_folder({"a": 2, "b": 2}), image_size=None).image_shape == (3, 64, 64)


def test_a_folder_of_gray_images_has_one_channel(image_folder: ImageFolder, load: Any) -> None:
    data = load(image_folder({"a": 4, "b": 4}, mode="L"))
    assert data.image_shape == (1, 8, 8)
    assert (len(data.mean), len(data.std)) == (1, 1)
    assert_labels_are_those_of_the_pictures(data.train)


def test_one_colour_image_makes_all_of_them_colour_images(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 4, "b": 4}, mode="L")
    Image.new("RGB", (5, 5), (20, 22, 24)).save(root / "a" / "colour.png")
    assert load(root).image_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("training", "validation", "testing"), ("train", "valid", "test")],
)
def test_folders_for_the_splits_are_the_splits(
    image_folder: ImageFolder, load: Any, train: str, validation: str, test: str
) -> None:
    image_folder({"a": 5, "b": 3}, below=train)
    image_folder({"a": 2, "b": 1}, below=validation)
    root = image_folder({"a": 1, "b": 4}, below=test)
    data = load(root)
    found = [np.bincount(labels_of(split)).tolist() for split in (data.train, data.validation, data.test)]
    assert found == [[5, 3], [2, 1], [1, 4]]
    for split in (data.train, data.validation, data.test):
        assert_labels_are_those_of_the_pictures(split)


def test_without_a_validation_folder_a_share_of_the_training_images_is_held_out(
    image_folder: ImageFolder, load: Any
) -> None:
    image_folder({"a": 8, "b": 8}, below="train")
    data = load(image_folder({"a": 2, "b": 2}, below="test"))
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    assert data.validation.images is data.train.images
    assert not set(data.train.rows) & set(data.validation.rows)


def test_a_test_folder_may_lack_a_class(image_folder: ImageFolder, load: Any) -> None:
    image_folder({"a": 4, "b": 4, "c": 4}, below="train")
    root = image_folder({"a": 1}, below="test")
    assert labels_of(load(root).test).tolist() == [0]


def test_a_class_may_be_called_like_a_split(image_folder: ImageFolder, load: Any) -> None:
    data = load(image_folder({"car": 4, "test": 4, "train": 4}))
    assert data.classes == ("car", "test", "train")
    assert data.test is None


def test_images_may_lie_in_folders_of_a_class_folder(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 4, "b": 4})
    (root / "b" / "more" / "still more").mkdir(parents=True)
    (root / "b" / "000.png").rename(root / "b" / "more" / "still more" / "x.png")
    assert np.bincount(load(root).train.labels).tolist() == [4, 4]


def test_hidden_files_and_folders_are_not_looked_at(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 4, "b": 4})
    for name in (".DS_Store", "Thumbs.db", "._000.png"):
        (root / "a" / name).write_text("no image")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (root / name).mkdir()
    (root / "README.md").write_text("no class")
    data = load(root)
    assert data.classes == ("a", "b")
    assert len(data.train.images) == 8
    assert data.skipped == ()


def test_names_may_have_spaces_dots_and_letters_of_any_language(image_folder: ImageFolder, load: Any) -> None:
    data = load(image_folder({"Übung, 1": 4, "猫": 4, "a.b c'\"%s": 4}, name="my data.v2 – ünï"))
    assert data.name == "my data.v2 – ünï"
    assert set(data.classes) == {"Übung, 1", "猫", "a.b c'\"%s"}


def test_pictures_of_several_sizes_and_formats_go_together(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 4, "b": 4})
    Image.new("RGB", (100, 3), (70, 70, 70)).save(root / "b" / "wide.bmp")
    Image.new("RGB", (3, 100), (70, 70, 70)).save(root / "b" / "tall.webp", lossless=True)
    data = load(root)
    assert len(data.train.images) == 10
    assert_labels_are_those_of_the_pictures(data.train)


def test_progress_goes_up_to_the_number_of_images(image_folder: ImageFolder, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    config = DataConfig(data=str(image_folder({"a": 4, "b": 3})), cache=str(tmp_path / "cache"), image_size=8)
    load_data(config, on_progress=lambda *step: steps.append(step))
    assert {total for _, _, total in steps} == {7}
    for what in {what for what, _, _ in steps}:
        assert [done for step, done, _ in steps if step == what] == [0, 1, 2, 3, 4, 5, 6, 7]


# ---- what is wrong with a folder ----


def test_an_empty_class_folder_is_named(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 2, "b": 2, "nothing here": 0})
    with pytest.raises(ValueError, match=r"Class folder '.*nothing here' is empty"):
        load(root)


def test_a_single_class_is_not_enough(image_folder: ImageFolder, load: Any) -> None:
    with pytest.raises(ValueError, match=r"needs at least two classes, .* has only 'lonely'"):
        load(image_folder({"lonely": 4}))


def test_a_folder_without_sub_folders_is_no_data_set(tmp_path: Path, load: Any) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match=r"needs at least two classes, .* has none"):
        load(tmp_path / "pictures")


def test_a_class_with_one_image_is_named(image_folder: ImageFolder, load: Any) -> None:
    with pytest.raises(ValueError, match=r"Class 'rare' has 1 training image\(s\), but at least 2 are needed"):
        load(image_folder({"common": 9, "rare": 1}))


def test_a_class_with_one_image_will_do_beside_a_validation_folder(image_folder: ImageFolder, load: Any) -> None:
    image_folder({"a": 3, "b": 1}, below="train")
    data = load(image_folder({"a": 1, "b": 1}, below="val"))
    assert np.bincount(labels_of(data.train)).tolist() == [3, 1]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_only_another_split_has_is_named(image_folder: ImageFolder, load: Any, split: str) -> None:
    image_folder({"a": 4, "b": 4}, below="train")
    root = image_folder({"a": 1, "stranger": 1}, below=split)
    with pytest.raises(ValueError, match=f"{split}' has the class 'stranger', which .*train' does not have"):
        load(root)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_images_is_named(image_folder: ImageFolder, load: Any, split: str) -> None:
    image_folder({"a": 4, "b": 4}, below="train")
    root = image_folder({"a": 0}, below=split)
    with pytest.raises(ValueError, match=f"{split}' has no images"):
        load(root)


def test_a_file_that_is_no_image_is_named(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 4, "b": 4})
    (root / "a" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.txt' cannot be read as an image.*--skip-broken"):
        load(root)


def test_further_files_that_are_no_images_are_counted(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 4, "b": 4})
    for i in range(3):
        (root / "a" / f"notes{i}.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"notes0\.txt.*2 other files, such as .*notes1\.txt"):
        load(root)


@pytest.mark.parametrize("damage", ["text", "half"])
def test_a_broken_file_is_skipped_and_listed_when_told_so(image_folder: ImageFolder, load: Any, damage: str) -> None:
    """Half a PNG has a good header, so that it is found out only when its pixels are decoded."""
    root = image_folder({"a": 4, "b": 4, "c": 4})
    broken = root / "b" / "001.png"
    broken.write_bytes(b"no image" if damage == "text" else broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"001\.png"):
        load(root)
    data = load(root, skip_broken=True)
    assert data.skipped == (str(broken),)
    assert np.bincount(data.train.labels).tolist() == [4, 3, 4]
    assert_labels_are_those_of_the_pictures(data.train)
    assert_labels_are_those_of_the_pictures(data.validation)


def test_broken_files_of_every_split_are_skipped(image_folder: ImageFolder, load: Any) -> None:
    for split in ("train", "val", "test"):
        root = image_folder({"a": 4, "b": 4}, below=split)
        broken = root / split / "a" / "000.png"
        broken.write_bytes(broken.read_bytes()[:-60])
    data = load(root, skip_broken=True)
    assert len(data.skipped) == 3
    for split in (data.train, data.validation, data.test):
        assert np.bincount(labels_of(split)).tolist() == [3, 4]
        assert_labels_are_those_of_the_pictures(split)


def test_a_class_of_which_nothing_can_be_read_is_named(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 4, "b": 2})
    for file in (root / "b").iterdir():
        file.write_text("no image")
    with pytest.raises(ValueError, match=r"Class 'b' of '.*pictures' has no image that can be read"):
        load(root, skip_broken=True)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_of_which_nothing_can_be_read_is_named(image_folder: ImageFolder, load: Any, split: str) -> None:
    image_folder({"a": 4, "b": 4}, below="train")
    root = image_folder({"a": 1, "b": 1}, below=split)
    for file in (root / split).rglob("*.png"):
        file.write_text("no image")
    with pytest.raises(ValueError, match="no image"):
        load(root, skip_broken=True)


# ---- the cache ----


@pytest.mark.parametrize("skip_broken", [False, True])
def test_nothing_half_written_stays_in_the_cache_after_an_error(
    image_folder: ImageFolder, load: Any, tmp_path: Path, skip_broken: bool
) -> None:
    root = image_folder({"a": 4, "b": 2})
    for file in (root / "b").iterdir():
        file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"cannot be read|can be read"):
        load(root, skip_broken=skip_broken)
    assert in_cache(tmp_path) == []


def test_an_error_does_not_last_longer_than_its_cause(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 4, "b": 4})
    (root / "a" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="notes"):
        load(root)
    (root / "a" / "notes.txt").unlink()
    assert len(load(root).train.images) == 8


def test_a_folder_is_decoded_once(image_folder: ImageFolder, load: Any, tmp_path: Path) -> None:
    root = image_folder({"a": 4, "b": 4})
    first = load(root)
    [entry] = in_cache(tmp_path)
    before = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in entry.iterdir()}
    second = load(root)
    assert in_cache(tmp_path) == [entry]
    assert {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in entry.iterdir()} == before
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.train.rows, second.train.rows)


def test_a_changed_file_is_decoded_again(image_folder: ImageFolder, load: Any, tmp_path: Path) -> None:
    root = image_folder({"a": 4, "b": 4})
    before = load(root)
    Image.new("RGB", (8, 8), "white").save(root / "a" / "000.png")
    after = load(root)
    assert len(in_cache(tmp_path)) == 2
    assert after.train.images[0].min() == 255
    assert before.train.images[0].max() < 255


def test_a_file_of_the_same_size_but_another_time_is_decoded_again(
    image_folder: ImageFolder, load: Any, tmp_path: Path
) -> None:
    root = image_folder({"a": 4, "b": 4})
    load(root)
    status = (root / "a" / "000.png").stat()
    os.utime(root / "a" / "000.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    load(root)
    assert len(in_cache(tmp_path)) == 2


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "moved to another class"])
def test_another_set_of_files_is_another_data_set(
    image_folder: ImageFolder, load: Any, tmp_path: Path, change: str
) -> None:
    root = image_folder({"a": 4, "b": 4})
    load(root)
    file = root / "a" / "000.png"
    if change == "added":
        (root / "a" / "more.png").write_bytes(file.read_bytes())
    elif change == "removed":
        file.unlink()
    else:
        file.rename(root / "a" / "new.png" if change == "renamed" else root / "b" / "new.png")
    load(root)
    assert len(in_cache(tmp_path)) == 2


def test_another_image_size_is_another_entry(image_folder: ImageFolder, load: Any, tmp_path: Path) -> None:
    root = image_folder({"a": 4, "b": 4})
    assert load(root, image_size=8).image_shape == (3, 8, 8)
    assert load(root, image_size=6).image_shape == (3, 6, 6)
    assert len(in_cache(tmp_path)) == 2


def test_nothing_is_written_into_the_folder_of_images(image_folder: ImageFolder, load: Any) -> None:
    root = image_folder({"a": 4, "b": 4})
    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    load(root)
    assert sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*")) == before
