"""What words mean as images: `python -m pytest tests/test_sources.py`."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import pytest
from PIL import Image

from trainer import sources
from trainer.images import UPLOAD_FORMATS
from trainer.predicting import Failure, Source
from trainer.sources import Sources


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def names(found: Sources) -> list[str]:
    return [str(source) for source in found]


# ---- files and folders ----


def test_the_words_are_read_in_their_order() -> None:
    touch("b.png", "a.png", "photos/2.png", "photos/1.png")
    assert names(Sources(["b.png", "photos", "a.png"])) == ["b.png", "photos/1.png", "photos/2.png", "a.png"]


def test_a_folder_is_what_is_below_it_sorted_by_name() -> None:
    touch("f/b.png", "f/a/2.JPG", "f/a/1.webp", "f/c/d/e.gif", "f/a.png", "f/a-z.png")
    found = names(Sources(["f"]))
    assert found == [str(path) for path in sorted(Path("f").rglob("*")) if path.is_file()]
    assert len(found) == 6


def test_what_is_hidden_or_a_systems_own_is_passed_over_in_silence() -> None:
    touch("f/.hidden.png", "f/.thumbnails/a.png", "f/Thumbs.db", "f/desktop.ini", "f/a.png")
    found = Sources(["f"])
    assert names(found) == ["f/a.png"]
    assert found.left_out == {}


def test_in_a_folder_what_is_no_image_by_its_ending_is_left_out_and_counted() -> None:
    touch(
        "f/labels.json",
        "f/a/notes.TXT",
        "f/b/notes.txt",
        "f/a.png",
        "f/b/IMG.20240101",
        "f/b/0123abcd",
        "f/c.jpg_large",
    )
    found = Sources(["f"])
    assert names(found) == ["f/a.png", "f/b/0123abcd", "f/b/IMG.20240101", "f/c.jpg_large"]
    assert found.left_out == {"txt": 2, "json": 1}
    assert found.said_left_out() == (
        "Left out 3 files that are no images by their endings (2 .txt, 1 .json); one that is named, or that a glob matches, is tried."
    )


def test_a_file_that_is_named_is_tried_whatever_its_ending() -> None:
    touch("labels.json", ".hidden.png")
    assert names(Sources(["labels.json", ".hidden.png"])) == ["labels.json", ".hidden.png"]


@pytest.mark.parametrize("ending", [ending for endings in UPLOAD_FORMATS.values() for ending in endings])
def test_the_endings_of_uploads_are_those_of_images(ending: str) -> None:
    touch(f"f/a.{ending}", f"f/A.{ending.upper()}")
    assert len(names(Sources(["f"]))) == 2


def test_links_to_folders_are_not_followed_and_of_those_that_lead_nowhere_one_is_told() -> None:
    touch("f/a.png", "elsewhere/b.png")
    Path("f/linked").symlink_to(Path("elsewhere").absolute())
    Path("f/round").symlink_to(Path("f").absolute())
    Path("f/c.png").symlink_to(Path("elsewhere/b.png").absolute())
    Path("f/nowhere.png").symlink_to("gone.png")
    assert names(Sources(["f"])) == ["f/a.png", "f/c.png", "f/nowhere.png"]
    assert names(Sources(["f/linked"])) == ["f/linked/b.png"]  # the user's own word


def test_what_would_wait_for_ever_is_not_opened() -> None:
    touch("f/a.png")
    os.mkfifo("f/pipe")
    assert names(Sources(["f"])) == ["f/a.png"]


def test_a_folder_that_goes_away_is_a_failure_in_its_place() -> None:
    touch("f/a.png", "f/b/1.png", "f/c.png")
    found = iter(Sources(["f"]))
    assert next(found) == Path("f/a.png")
    shutil.rmtree("f/b")
    assert [*found] == [Failure("f/b", "The folder 'f/b' cannot be read: No such file or directory."), Path("f/c.png")]


def test_a_word_that_names_nothing_is_refused_before_anything_is_read() -> None:
    touch("a.png")
    for word in ("b.png", ""):
        with pytest.raises(ValueError, match=rf"There is no image '{word}'\.$"):
            Sources(["a.png", word])


# ---- globs ----


def test_a_glob_is_the_files_that_match_sorted() -> None:
    touch("p/b.jpg", "p/a.jpg", "p/a.png", "p/.hidden.jpg", "p/deep/c.jpg", "p/deep/er/d.jpg")
    assert names(Sources(["p/*.jpg"])) == ["p/a.jpg", "p/b.jpg"]
    assert names(Sources(["p/**/*.jpg"])) == ["p/a.jpg", "p/b.jpg", "p/deep/c.jpg", "p/deep/er/d.jpg"]
    assert names(Sources(["p/?.[pj]*g"])) == ["p/a.jpg", "p/a.png", "p/b.jpg"]


def test_what_a_glob_matches_is_tried_whatever_its_ending() -> None:
    touch("p/a.txt", "p/b.png")
    assert names(Sources(["p/*"])) == ["p/a.txt", "p/b.png"]


def test_a_folder_that_a_glob_matches_is_read_once() -> None:
    touch("p/2024/a.png", "p/2024/b.txt", "p/2025/c.png")
    assert names(Sources(["p/20*"])) == ["p/2024/a.png", "p/2025/c.png"]
    assert names(Sources(["p/**"])) == ["p/2024/a.png", "p/2024/b.txt", "p/2025/c.png"]


def test_a_name_that_exists_is_no_glob() -> None:
    touch("a[1].png", "a1.png", "[x]/b.png")
    assert names(Sources(["a[1].png", "[x]"])) == ["a[1].png", "[x]/b.png"]


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"There is no image 'p/\*\.jpg', and nothing that matches it as a pattern\.$"):
        Sources(["p/*.jpg"])


# ---- standard input ----


class Pieces:
    """A stream that gives a piece at a time, as a pipe does, and counts how many were asked for."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = list(pieces)
        self.read_so_far = 0

    def read(self, size: int = -1) -> bytes:
        self.read_so_far += 1
        return self._pieces.pop(0) if self._pieces else b""


def given(*pieces: bytes) -> list[Source]:
    return list(Sources(["-"], cast(IO[bytes], Pieces(pieces))))


def byte_by_byte(text: bytes) -> list[bytes]:
    return [text[place : place + 1] for place in range(len(text))]


LISTS = [
    (b"a.png\nb/c d.png\n", ["a.png", "b/c d.png"]),
    (b"a.png\nb.png", ["a.png", "b.png"]),
    (b"a.png\r\n\r\nb.png\r\n", ["a.png", "b.png"]),
    (b"a.png\0b.png\0", ["a.png", "b.png"]),
    (b"a.png\0b\nc.png", ["a.png", "b\nc.png"]),
    (b"only.png", ["only.png"]),
    (b"\n\n", []),
    (b"", []),
    (b"BMW/1.png\nII.png\n", ["BMW/1.png", "II.png"]),
    (b"GIF89a.png\nGIF87a\n", ["GIF89a.png", "GIF87a"]),
    (b"RIFF/a.webp\0MM\0", ["RIFF/a.webp", "MM"]),
    (b"I\n", ["I"]),
    (b"\xff\xfe.png\n", ["\udcff\udcfe.png"]),
]


@pytest.mark.parametrize(("text", "expected"), LISTS)
@pytest.mark.parametrize("cut", [lambda text: [text], byte_by_byte], ids=["whole", "byte by byte"])
def test_a_list_of_paths_has_one_in_a_line_or_before_a_nul(text: bytes, expected: list[str], cut: Any) -> None:
    assert given(*cut(text)) == [Path(name) for name in expected]


def test_paths_are_given_as_they_come() -> None:
    stream = Pieces([b"a.png\nb.", b"png\n", b"c.png\n"])
    found = iter(Sources(["-"], cast(IO[bytes], stream)))
    assert (next(found), stream.read_so_far) == (Path("a.png"), 1)
    assert (next(found), stream.read_so_far) == (Path("b.png"), 2)
    assert list(found) == [Path("c.png")]


@pytest.mark.parametrize("kind", UPLOAD_FORMATS)
@pytest.mark.parametrize("cut", [lambda text: [text], byte_by_byte], ids=["whole", "byte by byte"])
def test_an_image_on_standard_input_is_one_and_is_called_so(kind: str, cut: Any) -> None:
    file = io.BytesIO()
    Image.effect_noise((33, 21), 50).save(file, kind)
    (image,) = given(*cut(file.getvalue()))
    assert isinstance(image, io.BytesIO)
    assert image.getvalue() == file.getvalue()
    assert image.name == "-"  # type: ignore[attr-defined]
    with Image.open(image) as opened:
        assert opened.format == kind


def test_an_image_on_standard_input_has_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    monkeypatch.setattr(sources, "MOST_BYTES", len(file.getvalue()))
    assert isinstance(given(file.getvalue())[0], io.BytesIO)
    assert given(file.getvalue() + b"x") == [
        Failure("-", f"The image on standard input has more than {len(file.getvalue())} bytes.")
    ]


def test_standard_input_is_read_once() -> None:
    with pytest.raises(ValueError, match="once"):
        Sources(["-", "-"])


def test_standard_input_has_its_place_among_the_words() -> None:
    touch("a.png", "b.png")
    assert names(Sources(["a.png", "-", "b.png"], io.BytesIO(b"c.png\n"))) == ["a.png", "c.png", "b.png"]


# ---- counting ----


def test_what_can_be_listed_is_counted_without_noting_what_is_left_out() -> None:
    touch("f/a.png", "f/b/c.png", "f/notes.txt", "d.png", "g1.png", "g2.png")
    found = Sources(["f", "d.png", "g*.png"])
    assert (found.count(), found.left_out) == (5, {})
    assert len(names(found)) == 5


def test_what_only_reading_tells_or_what_takes_too_long_is_not_counted() -> None:
    touch("a.png")
    assert Sources(["a.png", "-"]).count() is None
    many = Sources(["a.png"] * 1000)
    assert (many.count(), many.count(seconds=-1.0)) == (1000, None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["f"], "There are no images in 'f'. Left out 1 file that is no image by its ending (1 .txt); one that"),
        (["f/empty", "f"], "There are no images in 'f/empty', 'f'. Left out"),
        (["f/empty"], "There are no images in 'f/empty'."),
        (["-"], "There are no images: standard input has neither an image nor the path of one."),
    ],
)
def test_nothing_is_said_in_a_sentence(words: list[str], sentence: str) -> None:
    touch("f/notes.txt")
    Path("f/empty").mkdir()
    found = Sources(words, io.BytesIO())
    assert list(found) == []
    assert found.nothing().startswith(sentence)
