"""`convsweep predict` as a user runs it: `python -m pytest tests/test_predict_command.py`."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster import cli, predict_command, prediction_progress
from cluster.prediction_progress import PredictionProgress
from tests.nodes import LocalNodes
from trainer.bundle import Bundle
from trainer.data import ImageData
from trainer.images import to_image
from trainer.predicting import Failure, Prediction
from trainer.predicting import predict as classify

ODD = ['comma, quote".png', "line\nbreak.png", os.fsdecode(b"\xffbytes.png"), "übung.png"]
IMAGES = 70  # more than a batch


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """One that knows the digits a little."""
    folder = tmp_path_factory.mktemp("bundles") / "digits"
    words = ["train", "--data", "digits", "--epochs", "1", "--set", "model.blocks=1", "--to", str(folder)]
    done = CliRunner().invoke(cli.build(), [*words, "--cache", str(cache)])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def pictures(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `pictures` in the working folder: 70 images, some with odd names, one file that is broken, and notes."""
    monkeypatch.chdir(tmp_path)
    folder = Path("pictures")
    (folder / "more").mkdir(parents=True)
    for number in range(IMAGES):
        name = ODD[number] if number < len(ODD) else f"{'more/' if number % 3 else ''}{number:03d}.png"
        to_image(digits.test.images[number]).save(folder / name)
    (folder / "more" / "broken.png").write_text("no image")
    (folder / "notes.txt").write_text("of the photographer")
    return folder


@dataclass(frozen=True)
class Done:
    status: int
    out: bytes
    err: str


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, capfdbinary: Any, bundle: Path) -> Callable[..., Done]:
    """Run `convsweep predict BUNDLE WORDS` in this process, with `given` on standard input."""

    def run(*words: object, given: bytes = b"", of: Path = bundle) -> Done:
        monkeypatch.setattr(sys, "argv", ["convsweep", "predict", str(of), *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfdbinary.readouterr()
        status = end.value.code or 0
        assert isinstance(status, int)
        return Done(status, out, err.decode())

    return run


@pytest.fixture
def expected(bundle: Path, pictures: Path) -> list[Prediction | Failure]:
    """What is to be found of the folder, the files in the order of the command."""
    files = [path for path in sorted(pictures.rglob("*")) if path.is_file() and path.suffix != ".txt"]
    return list(classify(Bundle(bundle), files))


SUMMARY = f"convsweep: 1 of {IMAGES + 1} images could not be read.\n"
LEFT_OUT = "Left out 1 file that is no image by its ending (1 .txt)"


# ---- what is written ----


def test_a_line_for_each_image_has_its_classes_and_the_rest_is_told_beside(
    predict: Callable[..., Done], pictures: Path, expected: list[Prediction | Failure]
) -> None:
    done = predict(pictures, "--top", 3)
    assert done.status == 1
    lines = []
    for one in expected:
        if isinstance(one, Prediction):
            (a, p), (b, q), (c, r) = one.top[:3]
            path = one.path.replace("\n", "\\n").replace("\udcff", "\\udcff")
            lines.append(f"{path}: {a} {p:.3f}   [{b} {q:.3f}  {c} {r:.3f}]")
    assert done.out.decode().splitlines() == lines
    told = "'pictures/more/broken.png' cannot be read as an image: no image format that is known.\n"
    assert done.err.startswith(told + LEFT_OUT)
    assert done.err.endswith(SUMMARY)


def test_one_class_needs_no_brackets(predict: Callable[..., Done], pictures: Path) -> None:
    done = predict(pictures / ODD[3], "--top", 1)
    assert done.status == 0
    assert b"[" not in done.out


def test_json_is_one_list_of_what_was_found(
    predict: Callable[..., Done], pictures: Path, expected: list[Prediction | Failure]
) -> None:
    done = predict(pictures, "--json")
    assert done.status == 1
    document = json.loads(done.out)
    assert document == json.loads(json.dumps([one.to_json() for one in expected]))
    keys = {tuple(one) for one in document}
    assert keys == {("path", "label", "probability", "top"), ("path", "error")}
    assert len(done.out.splitlines()) == len(expected) + 2  # an image in a line


def test_csv_is_read_back_as_what_was_found(
    predict: Callable[..., Done], pictures: Path, expected: list[Prediction | Failure]
) -> None:
    done = predict(pictures, "--csv", "--top", 2)
    assert done.status == 1
    assert done.out.startswith(b"path,label,probability,label2,probability2,error\r\n")
    rows = list(csv.DictReader(io.StringIO(done.out.decode("utf-8", "surrogateescape"), newline="")))
    assert [row["path"] for row in rows] == [one.path for one in expected]
    for row, one in zip(rows, expected, strict=True):
        if isinstance(one, Failure):
            assert row == {"path": one.path, "error": one.error} | dict.fromkeys(list(row)[1:-1], "")
        else:
            (first, second) = one.top[:2]
            assert (row["label"], float(row["probability"])) == first
            assert (row["label2"], float(row["probability2"])) == second
            assert row["error"] == ""


def test_there_are_no_more_columns_than_classes(predict: Callable[..., Done], pictures: Path) -> None:
    head = predict(pictures, "--csv", "--top", 99).out.split(b"\r\n")[0]
    assert head.split(b",")[-3:] == [b"label10", b"probability10", b"error"]


@pytest.mark.parametrize("words", [[], ["--json"], ["--csv"]])
def test_a_file_has_what_standard_output_would_have(
    predict: Callable[..., Done], pictures: Path, words: list[str]
) -> None:
    done = predict(pictures, *words, "--to", "found")
    assert (done.status, done.out) == (1, b"")
    assert Path("found").read_bytes() == predict(pictures, *words).out
    assert sorted(path.name for path in Path().iterdir()) == ["found", "pictures"]


@pytest.mark.parametrize(("name", "option"), [("found.csv", "--csv"), ("found.JSON", "--json")])
def test_the_ending_of_a_file_says_its_form(
    predict: Callable[..., Done], pictures: Path, name: str, option: str
) -> None:
    predict(pictures, "--to", name)
    assert Path(name).read_bytes() == predict(pictures, option).out


def test_an_option_wins_over_the_ending(predict: Callable[..., Done], pictures: Path) -> None:
    predict(pictures, "--csv", "--to", "found.json")
    assert Path("found.json").read_bytes().startswith(b"path,")


def test_a_run_that_fails_leaves_the_file_as_it_was(
    predict: Callable[..., Done], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("found.json").write_text("of yesterday")

    def failing(*words: object) -> Any:
        yield Prediction("a.png", (("cat", 1.0),))
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(predict_command, "predict_here", failing)
    done = predict(pictures, "--to", "found.json")
    assert (done.status, done.err) == (1, "convsweep: the disk is gone\n")
    assert Path("found.json").read_text() == "of yesterday"
    assert sorted(path.name for path in Path().iterdir()) == ["found.json", "pictures"]


def test_a_pipe_is_written_into(predict: Callable[..., Done], pictures: Path) -> None:
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        assert predict(pictures / ODD[3], "--json", "--to", "pipe").status == 0
        out, _ = reader.communicate(timeout=60)
    assert json.loads(out)[0]["path"] == "pictures/übung.png"


# ---- where images come from ----


def test_files_folders_and_globs_can_be_mixed(predict: Callable[..., Done], pictures: Path) -> None:
    first = pictures / ODD[3]
    done = predict(first, pictures / "more", "pictures/**/0[67]*.png", "--json")
    found = [one["path"] for one in json.loads(done.out)]
    matching = sorted(str(path) for path in pictures.rglob("0[67]*.png"))
    assert found == [str(first), *sorted(map(str, (pictures / "more").iterdir())), *matching]


def test_an_image_on_standard_input_is_classified_as_its_file_is(predict: Callable[..., Done], pictures: Path) -> None:
    file = pictures / ODD[3]
    from_file = json.loads(predict(file, "--json").out)
    done = predict("-", "--json", given=file.read_bytes())
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == [from_file[0] | {"path": "-"}]


@pytest.mark.parametrize("separator", [b"\n", b"\0"])
def test_paths_on_standard_input_are_classified_as_if_they_were_named(
    predict: Callable[..., Done], pictures: Path, separator: bytes
) -> None:
    paths = [str(path) for path in sorted((pictures / "more").iterdir())] + ["gone.png"]
    done = predict("-", "--json", given=separator.join(map(os.fsencode, paths)))
    assert done.status == 1
    assert [one["path"] for one in json.loads(done.out)] == paths
    assert json.loads(done.out)[-1] == {"path": "gone.png", "error": "There is no image 'gone.png'."}
    assert done.err.endswith(f"convsweep: 2 of {len(paths)} images could not be read.\n")


# ---- mistakes ----


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gone.png"], "There is no image 'gone.png'."),
        (["pictures/*.gif"], "There is no image 'pictures/*.gif', and nothing that matches it as a pattern."),
        (["empty"], "There are no images in 'empty'."),
        (["-"], "There are no images: standard input has neither an image nor the path of one."),
        (["-", "-"], "Standard input can be read once, but - is there more than once."),
        (["pictures", "--top", 0], "--top must be at least 1, but got 0."),
        (["pictures", "--batch-size", 0], "--batch-size must be at least 1, but got 0."),
        (["pictures", "--json", "--csv"], "Say one of --json and --csv."),
        (["pictures", "--to", "empty"], "--to names the file to write, but 'empty' is a folder."),
        (["pictures", "--to", "no/x.csv"], "--to 'no/x.csv' cannot be written: there is no folder 'no'."),
        (["pictures", "--address", "127.0.0.1:1"], "Nobody answers at '127.0.0.1:1'"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    predict: Callable[..., Done], pictures: Path, words: list[object], sentence: str
) -> None:
    Path("empty").mkdir()
    done = predict(*words)
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"convsweep: {sentence}")
    assert done.err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["empty", "pictures"]


def test_of_many_failures_the_first_are_told_and_the_others_counted(
    predict: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = predict("-", "--json", given=b"".join(b"%d.png\n" % number for number in range(30)))
    assert done.status == 1
    assert done.err.splitlines() == [
        *(f"There is no image '{number}.png'." for number in range(20)),
        "What else cannot be read is only counted.",
        "convsweep: 30 of 30 images could not be read.",
    ]
    assert len(json.loads(done.out)) == 30


# ---- progress ----


def test_without_a_terminal_a_line_says_now_and_then_how_far_it_is(
    predict: Callable[..., Done], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "images/s" not in predict(pictures, "--json").err  # in less than twenty seconds
    monkeypatch.setattr(prediction_progress, "SILENT_SECONDS", -1.0)
    done = predict(pictures / "more", "--json")
    total = len(json.loads(done.out))
    assert f"1 of {total} images  " in done.err
    assert "images/s  about 0s left\n" in done.err
    assert json.loads(predict("-", "--json", given=b"gone.png").out)  # where the total is not known


def test_on_a_terminal_a_bar_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_progress, "SHOWN_SECONDS", -1.0)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    with PredictionProgress(1234, alone=True, console=console) as progress:
        for _ in range(10):
            progress.found(Prediction("a.png", (("cat", 1.0),)))
        progress.found(Failure("b.png", "There is no image 'b.png'."))
    assert "11 of 1,234 images" in screen.getvalue()
    assert "There is no image 'b.png'." in screen.getvalue()
    assert (progress.done, progress.failed) == (11, 1)


def test_what_is_written_onto_the_terminal_is_not_disturbed_by_a_bar() -> None:
    screen = io.StringIO()
    with PredictionProgress(1, alone=False, console=Console(file=screen, force_terminal=True)) as progress:
        progress.found(Prediction("a.png", (("cat", 1.0),)))
    assert screen.getvalue() == ""


# ---- as a process ----


def started(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cluster.cli", "predict", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)


def test_whoever_closes_the_pipe_ends_it_quietly(bundle: Path, pictures: Path) -> None:
    process = started(bundle, "-", "--json")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(os.fsencode(pictures / ODD[3]), timeout=120)
    assert err == b""
    assert process.returncode == 1


def test_an_interrupt_ends_it_while_it_waits_for_paths(bundle: Path, pictures: Path) -> None:
    process = started(bundle, "-", "--json", "--batch-size", 1)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(os.fsencode(pictures / ODD[3]) + b"\n")
    process.stdin.flush()
    assert b'"path": ' in process.stdout.readline() + process.stdout.read1()  # it does not wait for more
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    assert process.stderr is not None
    assert (process.returncode, process.stderr.read()) == (130, b"")
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def test_it_needs_neither_ray_nor_pandas(bundle: Path, pictures: Path) -> None:
    code = (
        "import sys; from cluster import cli\n"
        f"sys.argv = ['convsweep', 'predict', {str(bundle)!r}, {str(pictures / ODD[3])!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*(name for name in ('ray', 'pandas', 'streamlit') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [""]


# ---- on a cluster ----


UNREADABLE = """
import sys
from pathlib import Path
from cluster.distributed_predict import predict_on_cluster
from cluster.prediction_progress import PredictionProgress

class Bundle:
    def __reduce__(self):
        return int, ("no number",)

try:
    list(predict_on_cluster(Bundle(), [Path("a.png")], sys.argv[1], 5, 64, PredictionProgress(1, False)))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_and_says_in_a_sentence_what_it_cannot_do(
    bundle: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("gone1.png").symlink_to("nowhere")
    image = (pictures / ODD[3]).read_bytes()

    def run(*words: object, given: bytes = b"") -> tuple[int, bytes, str]:
        process = started(bundle, *words)
        out, err = process.communicate(given, timeout=300)
        told = [line for line in err.decode().splitlines() if " images/s" not in line]  # on a busy machine
        return process.returncode, out, "\n".join(told)

    with LocalNodes(2) as nodes:
        on_it = ("--address", nodes.address)
        here = run(pictures, "gone?.png", "--json", "--batch-size", 8)
        assert here[0] == 1
        assert b"broken.png" in here[1]
        assert run(pictures, "gone?.png", "--json", "--batch-size", 8, *on_it) == here
        here = run(pictures.absolute(), "--csv", "--top", 2)
        there = run(pictures.absolute(), "--to", "found.csv", "--top", 2, *on_it)
        assert there == (here[0], b"", here[2])
        assert Path("found.csv").read_bytes() == here[1]
        paths = os.fsencode(pictures / ODD[2])
        here = run("-", given=paths)
        assert here[0] == 0
        assert run("-", *on_it, given=paths) == here
        assert run("-", *on_it, given=image) == (
            2,
            b"",
            "convsweep: The nodes of a cluster cannot see standard input: for the image there, leave out --address.",
        )
        words = [sys.executable, "-c", UNREADABLE, nodes.address]
        failed = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert failed.stdout.startswith("The cluster could not classify the images: "), failed.stderr
        assert "no number" in failed.stdout
        assert (failed.stdout.count("\n"), failed.stderr) == (1, "")
