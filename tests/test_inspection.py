"""What `convsweep doctor --data` says of a folder of images: `python -m pytest tests/test_inspection.py`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.inspection import ERROR, NOTE, WARNING, Inspection, inspect

ImageFolder = Callable[..., Path]


def said(found: Inspection, severity: str) -> list[str]:
    return [finding.text for finding in found.findings if finding.severity == severity]


def test_a_folder_without_faults_has_none(image_folder: ImageFolder) -> None:
    root = image_folder({"cats": 30, "dogs": 30})
    found = inspect(root)
    assert (found.counts, found.findings) == ({"train": {"cats": 30, "dogs": 30}}, ())


def test_broken_files_are_named_and_do_not_count(image_folder: ImageFolder) -> None:
    root = image_folder({"cats": 30, "dogs": 30})
    (root / "cats" / "notes.txt").write_text("no image")
    whole = (root / "cats" / "000.png").read_bytes()
    (root / "cats" / "000.png").write_bytes(whole[: len(whole) // 2])
    found = inspect(root)
    assert found.counts["train"]["cats"] == 29
    (finding,) = found.errors
    assert "2 file(s) cannot be read" in finding.text
    assert all(name in " ".join(finding.details) for name in ("notes.txt", "000.png"))


def test_equal_images_are_found_whatever_file_they_are_in(image_folder: ImageFolder) -> None:
    root = image_folder({"cats": 30, "dogs": 30})
    shutil.copy(root / "cats" / "001.png", root / "cats" / "again.png")
    Image.open(root / "cats" / "002.png").save(root / "dogs" / "002-cat.bmp")
    found = inspect(root)
    (error,), (warning,) = found.errors, [f for f in found.findings if f.severity == WARNING]
    assert "under two classes" in error.text
    assert "002-cat.bmp" in error.details[0]
    assert "more than once" in warning.text
    assert "again.png" in warning.details[0]


def test_equal_images_in_two_splits_are_an_error(image_folder: ImageFolder) -> None:
    root = image_folder({"cats": 30, "dogs": 30}, below="train")
    (root / "val" / "cats").mkdir(parents=True)
    shutil.copy(root / "train" / "cats" / "003.png", root / "val" / "cats" / "other.png")
    found = inspect(root)
    assert "1 image(s) are in more than one split" in said(found, ERROR)[0]
    assert "The validation split has no image of dogs." in said(found, WARNING)


@pytest.mark.parametrize(
    ("counts", "severity", "text"),
    [
        ({"cats": 30, "dogs": 1}, ERROR, "two training images, but dogs"),
        ({"cats": 30, "dogs": 5}, WARNING, "1 class(es) have fewer than 20"),
        ({"cats": 300, "dogs": 25}, WARNING, "macro-F1"),
    ],
)
def test_scarce_and_rare_classes_are_told_of(
    image_folder: ImageFolder, counts: dict[str, int], severity: str, text: str
) -> None:
    assert any(text in one for one in said(inspect(image_folder(counts)), severity))


def test_mixed_kinds_sizes_and_turned_images_are_noted(image_folder: ImageFolder) -> None:
    root = image_folder({"cats": 30, "dogs": 30})
    pixels = np.random.default_rng(1).integers(0, 255, (9, 20, 4)).astype(np.uint8)
    Image.fromarray(pixels[..., :3]).convert("P").save(root / "cats" / "palette.png")
    Image.fromarray(pixels).save(root / "cats" / "alpha.png")
    Image.fromarray(pixels).convert("RGB").convert("CMYK").save(root / "cats" / "print.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(root / "cats" / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(root / "dogs" / "turned.jpg", exif=exif)
    notes = said(inspect(root), NOTE)
    assert all(kind in notes[0] for kind in ("palette", "transparency", "CMYK", "16 bits"))
    assert notes[1] == "1 image(s) are turned as their EXIF data say."
    assert "Sizes differ, from 12x10 to 20x9" in notes[2]


def test_progress_is_told_and_what_is_no_folder_refused(image_folder: ImageFolder, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    inspect(image_folder({"cats": 2, "dogs": 2}), lambda *what: told.append(what))
    assert told[-1] == ("looking at the images", 4, 4)
    with pytest.raises(ValueError, match="There is no folder"):
        inspect(tmp_path / "missing")
