"""Classifying many images: their order, what is in memory, threads: `python -m pytest tests/test_predicting.py`."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer import predicting
from trainer.images import SMALL_FILE, read_image
from trainer.predicting import Failure, Prediction, predict, read_json

LONG = 60.0


class Brightness:
    """Stands in for a bundle: the brighter an image is, the likelier it is of the first class. It notes the sizes of its batches."""

    image_shape = (3, 8, 8)
    classes = ("bright", "dark", "darker")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert images.dtype == np.uint8
        assert images.shape[1:] == self.image_shape
        self.batches.append(len(images))
        bright = images.reshape(len(images), -1).mean(1) / 255
        return np.stack([bright, (1 - bright) / 3, (1 - bright) * 2 / 3], 1).astype(np.float32)

    def expected(self, path: Path) -> tuple[tuple[str, float], ...]:
        """What it says of a file by itself."""
        (row,) = self.probabilities(read_image(path, 8, 8, 3)[None])
        named = zip(self.classes, row.astype(float), strict=True)
        return tuple((name, round(value, 6)) for name, value in sorted(named, key=lambda pair: -pair[1]))


@pytest.fixture
def bundle() -> Any:
    return Brightness()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Small and large files in turn, three of them, at places 2, 7 and 19, no images."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number:02d}.png" for number in range(20)]
    for number, path in enumerate(paths):
        side = 80 if number % 2 else 8
        Image.fromarray(rng.integers(0, 12 * (number + 1), (side, side, 3), np.uint8)).save(path)
    for number in (2, 7):
        paths[number].write_bytes(b"no image" * (2000 if number == 7 else 1))
    paths[19].unlink()
    assert paths[1].stat().st_size > SMALL_FILE > paths[0].stat().st_size
    return paths


BROKEN = (2, 7, 19)


@pytest.mark.parametrize("decoders", [0, 1, 3, None])
@pytest.mark.parametrize("batch_size", [1, 3, 20, 64])
def test_every_source_is_answered_in_its_place(
    bundle: Any, pictures: list[Path], decoders: int | None, batch_size: int
) -> None:
    found = list(predict(bundle, pictures, 3, batch_size, decoders))
    assert [one.path for one in found] == [str(path) for path in pictures]
    assert [number for number, one in enumerate(found) if isinstance(one, Failure)] == [*BROKEN]
    assert [one.top for one in found if isinstance(one, Prediction)] == [
        Brightness().expected(path) for number, path in enumerate(pictures) if number not in BROKEN
    ]


@pytest.mark.parametrize("decoders", [0, 2])
def test_a_failure_says_why_and_leaves_its_place_in_the_batch_empty(
    bundle: Any, pictures: list[Path], decoders: int
) -> None:
    found = list(predict(bundle, pictures, 3, 5, decoders))
    assert bundle.batches == [4, 4, 5, 4]
    errors = [one.error for one in found if isinstance(one, Failure)]
    assert errors == [
        *(f"{str(pictures[n])!r} cannot be read as an image: no image format that is known." for n in (2, 7)),
        f"There is no image {str(pictures[19])!r}.",
    ]


def test_what_is_known_to_be_no_image_keeps_its_place(bundle: Any, pictures: list[Path]) -> None:
    known = Failure("folder", "The folder 'folder' cannot be read.")
    found = list(predict(bundle, [pictures[0], known, pictures[1]]))
    assert [one.path for one in found] == [str(pictures[0]), "folder", str(pictures[1])]
    assert found[1] is known
    assert list(predict(bundle, [known])) == [known]
    assert list(predict(bundle, [])) == []


def test_top_is_how_many_classes_there_are_at_most(bundle: Any, pictures: list[Path]) -> None:
    for top, expected in ((1, 1), (2, 2), (3, 3), (99, 3)):
        (one,) = predict(bundle, pictures[:1], top)
        assert isinstance(one, Prediction)
        assert one.top == Brightness().expected(pictures[0])[:expected]


def test_of_equally_likely_classes_the_first_comes_first(bundle: Any, pictures: list[Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(bundle, "probabilities", lambda images: np.full((len(images), 3), 1 / 3, np.float32))
    (one,) = predict(bundle, pictures[:1])
    assert isinstance(one, Prediction)
    assert one.top == (("bright", 0.333333), ("dark", 0.333333), ("darker", 0.333333))


# ---- what is in memory ----


@pytest.mark.parametrize(("decoders", "batches"), [(0, 1), (1, 3), (3, 3)])
def test_no_more_than_three_batches_are_asked_for_ahead(
    bundle: Any, pictures: list[Path], decoders: int, batches: int
) -> None:
    asked = 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        while True:
            asked += 1
            yield pictures[asked % 2]

    found = predict(bundle, endless(), batch_size=4, decoders=decoders)
    for number in range(1, 41):
        next(found)
        assert asked <= 4 * (-(-number // 4) - 1 + batches)
    found.close()


@pytest.mark.parametrize("decoders", [0, 1, 3])
def test_what_is_ready_does_not_wait_for_the_next_source(bundle: Any, pictures: list[Path], decoders: int) -> None:
    seen = threading.Event()

    def slow() -> Iterator[Path]:
        yield pictures[0]
        assert seen.wait(LONG)
        yield pictures[1]

    found = predict(bundle, slow(), batch_size=1, decoders=decoders)
    assert next(found).path == str(pictures[0])
    seen.set()
    assert [one.path for one in found] == [str(pictures[1])]


@pytest.mark.parametrize("decoders", [0, 1, 3])
def test_what_the_sources_raise_is_raised_after_what_came_before(
    bundle: Any, pictures: list[Path], decoders: int
) -> None:
    def failing() -> Iterator[Path]:
        yield from pictures[:2]
        raise RuntimeError("the pipe is gone")

    found = predict(bundle, failing(), batch_size=2, decoders=decoders)
    assert [next(found).path, next(found).path] == [str(path) for path in pictures[:2]]
    with pytest.raises(RuntimeError, match="the pipe is gone"):
        next(found)


# ---- threads ----


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("preparer", "decoder"))]


@pytest.mark.parametrize("taken", [1, 5, 20])
@pytest.mark.parametrize("decoders", [1, 3])
def test_the_threads_end_with_the_predictions_also_when_nobody_wants_the_rest(
    bundle: Any, pictures: list[Path], decoders: int, taken: int
) -> None:
    found = predict(bundle, pictures * 10, batch_size=2, decoders=decoders)
    for _ in range(taken):
        next(found)
    working = threads()
    assert working
    found.close()
    for thread in working:
        thread.join(LONG)
        assert not thread.is_alive(), thread.name


def test_one_core_spends_nothing_on_threads(bundle: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "cores", lambda: 1)
    found = predict(bundle, pictures, batch_size=2)
    for _ in pictures:
        next(found)
        assert threads() == []


# ---- open files, and JSON ----


def test_an_open_file_is_classified_as_its_path_is_and_keeps_its_name(bundle: Any, pictures: list[Path]) -> None:
    files = [io.BytesIO(path.read_bytes()) for path in pictures[:2]]
    files[0].name = "mine.png"
    from_paths, from_files = list(predict(bundle, pictures[:2])), list(predict(bundle, files))
    assert [one.top for one in from_files if isinstance(one, Prediction)] == [
        one.top for one in from_paths if isinstance(one, Prediction)
    ]
    assert [one.path for one in from_files] == ["mine.png", "the image"]


@pytest.mark.parametrize(
    "found",
    [
        Prediction("a b.png", (("cat", 0.75), ("dog", 0.25))),
        Prediction("\udcff.png", (("\ud800", 1e-06),)),
        Failure("x", "There is no image 'x'."),
    ],
)
def test_what_is_written_as_json_is_read_as_it_was(found: Prediction | Failure) -> None:
    assert read_json(json.loads(json.dumps(found.to_json()))) == found
