"""Bundles that are damaged or that somebody has changed: `python -m pytest tests/test_hostile_bundles.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from tests.written_bundles import forge_checksums, write
from trainer.bundle import CHECKED, FILES, Bundle
from trainer.data import ImageData


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "whole"
    write(folder, digits)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    """Of the same network with other weights."""
    folder = tmp_path_factory.mktemp("bundles") / "other"
    write(folder, digits, {"training.seed": 9})
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        Bundle(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in CHECKED if name != "config.json"])
def test_a_changed_byte_is_noticed(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    place = len(content) // 2
    content[place] ^= 1 if chr(content[place]).isdigit() else 0x20 if chr(content[place]).isalpha() else 1
    (folder / name).write_bytes(content)
    refused(folder, "no whole bundle: ")


@pytest.mark.parametrize("name", CHECKED)
def test_a_file_from_another_bundle_is_noticed_by_its_checksum(folder: Path, other: Path, name: str) -> None:
    if (folder / name).read_bytes() == (other / name).read_bytes():
        assert name == "classes.json"
        return
    shutil.copy(other / name, folder / name)
    refused(folder, f"SHA256SUMS: {name} is not the file that was exported")


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx"])
def test_weights_from_another_bundle_are_noticed_under_checksums_that_fit(folder: Path, other: Path, name: str) -> None:
    shutil.copy(other / name, folder / name)
    forge_checksums(folder)
    refused(folder, r"weights\.safetensors: these are not the weights of model\.onnx")


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_truncated_file_is_noticed_also_under_checksums_that_fit(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: min(len(content) - 2, int(share * len(content)))])
    refused(folder, "no whole bundle")
    forge_checksums(folder)
    refused(folder, f"no whole bundle: {name}")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (f"{'0' * 64}  ../../etc/passwd", "must be a SHA-256 checksum and the name of a file"),
        (f"{'0' * 64}  /etc/passwd", "must be a SHA-256 checksum and the name of a file"),
        (f"{'0' * 64}  ..", "must be a SHA-256 checksum and the name of a file"),
        (f"{'0' * 64}  .hidden", "must be a SHA-256 checksum and the name of a file"),
        (f"{'0' * 64}  samples", "it lists samples, which is not there"),
        (f"{'0' * 64}  classes.json", "must be a SHA-256 checksum and the name of a file"),  # it is there already
        (f"{'0' * 63}  new.json", "must be a SHA-256 checksum and the name of a file"),
        (f"{'0' * 64}  new.json", "it lists new.json, which is not there"),
        ("x" * 70_000, "too long"),
    ],
)
def test_a_list_of_checksums_names_files_of_the_bundle_and_no_others(folder: Path, line: str, sentence: str) -> None:
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{line}\n")
    refused(folder, f"SHA256SUMS: .*{sentence}")


@pytest.mark.parametrize("name", CHECKED)
def test_every_file_needs_its_checksum(folder: Path, name: str) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(line for line in lines if not line.endswith(f" {name}\n")))
    refused(folder, f"SHA256SUMS: it has no checksum of {name}")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("classes.json", '["a", "b"]', r"model\.onnx: it must turn uint8 images \(1, 8, 8\) into 2 probabilities"),
        ("classes.json", "[]", r"classes\.json: it must be a list"),
        ("classes.json", '{"a": 1}', r"classes\.json: it must be a list"),
        ("config.json", {"channels": 3}, r"model\.onnx: it must turn uint8 images \(3, 8, 8\) into 10 probabilities"),
        ("config.json", {"channels": 2}, "an image has 1 channel or 3, but it says 2"),
        ("config.json", {"height": 10**9}, "at most 4096"),
        ("config.json", {"height": -8}, "must be whole numbers above 0"),
        ("config.json", {"height": "8"}, "must be whole numbers above 0"),
        ("config.json", 99, "it is of format 99, but this convsweep reads format 2"),
        ("metrics.json", "{", r"metrics\.json: "),
        ("metrics.json", "[" * 100_000, r"metrics\.json: "),
        ("weights.safetensors", "nothing", r"weights\.safetensors: "),
        ("model.pt2", "nothing", r"model\.pt2: File is not a zip file"),
        ("model.onnx", "nothing", r"model\.onnx: it is no ONNX graph"),
    ],
)
def test_files_that_do_not_agree_are_refused_under_checksums_that_fit(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    name: str,
    content: Any,
    sentence: str,
) -> None:
    if not isinstance(content, str):
        config = json.loads((folder / name).read_text())
        config |= {"convsweep_bundle": content} if content == 99 else {"image": config["image"] | content}
        content = json.dumps(config)
    (folder / name).write_text(content)
    forge_checksums(folder)
    refused(folder, f"is no whole bundle: .*{sentence}")
    assert "Traceback" not in capfd.readouterr().err + caplog.text


def test_a_huge_configuration_is_not_read(folder: Path) -> None:
    with (folder / "classes.json").open("wb") as file:
        file.truncate(2**33)  # it takes no room on the disk
    refused(folder, r"classes\.json: it is too large")


@pytest.mark.parametrize("damage", ["missing", "empty folder", "no graph", "a file", "a folder of the name"])
def test_what_is_no_bundle_is_refused_with_a_sentence(whole: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "bundle"
    if damage == "a file":
        folder.write_text("x")
    elif damage != "missing":
        folder.mkdir()
    if damage in ("no graph", "a folder of the name"):
        for name in FILES:
            shutil.copy(whole / name, folder / name)
        (folder / "model.onnx").unlink()
    if damage == "a folder of the name":
        (folder / "model.onnx").mkdir()
    refused(folder, "bundle")


def test_a_bundle_of_an_older_convsweep_is_told_apart(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    (folder / "model.onnx").unlink()
    refused(folder, "one that an older convsweep wrote must be exported again")


def test_an_archive_of_an_unknown_kind_is_refused(folder: Path) -> None:
    graph = bytearray((folder / "model.pt2").read_bytes())
    entry = graph.rindex(b"PK\x01\x02")  # the last of the directory at the end
    graph[entry + 6] = 80  # needs version 8.0
    (folder / "model.pt2").write_bytes(graph)
    forge_checksums(folder)
    refused(folder, r"no whole bundle: model\.pt2: .*version 8")


# ---- graphs that somebody has made up ----


def graph_of(*nodes: onnx.NodeProto, initializers: list[TensorProto] | None = None, classes: int = 10) -> bytes:
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 1, 8, 8])
    found = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])
    graph = helper.make_graph(list(nodes), "g", [images], [found], initializers or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def elsewhere(location: str) -> bytes:
    """A graph with weights in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 10], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    return graph_of(*FLAT, helper.make_node("MatMul", ["flat", "w"], ["logits"]), SOFTMAX, initializers=[weights])


FLAT = (
    helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
    helper.make_node("Flatten", ["pixels"], ["flat"]),
)
SOFTMAX = helper.make_node("Softmax", ["logits"], ["probabilities"])
ONES = numpy_helper.from_array(np.ones((64, 10), np.float32), "w")
MATMUL = helper.make_node("MatMul", ["flat", "w"], ["logits"])


@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        (lambda: elsewhere("/etc/passwd"), "it reads its weights from another file"),
        (lambda: elsewhere("../../../etc/passwd"), "it reads its weights from another file"),
        (lambda: elsewhere("weights.safetensors"), "it reads its weights from another file"),
        (lambda: graph_of(*FLAT, MATMUL, initializers=[ONES]), "onnxruntime cannot run it"),
        (lambda: graph_of(helper.make_node("Evil", ["images"], ["probabilities"], domain="x")), "onnxruntime cannot"),
        (
            lambda: graph_of(*FLAT, helper.make_node("MatMul", ["flat", "w"], ["probabilities"]), initializers=[ONES]),
            "what it gives are no probabilities",
        ),
        (
            lambda: graph_of(*FLAT, MATMUL, SOFTMAX, initializers=[ONES], classes=11),
            r"into 10 probabilities",
        ),
        (lambda: graph_of(*FLAT, MATMUL, SOFTMAX, initializers=[ONES]), "not the weights of model"),
    ],
)
def test_a_graph_that_is_no_classifier_of_these_images_is_refused(
    folder: Path, capfd: pytest.CaptureFixture[str], graph: Callable[[], bytes], sentence: str
) -> None:
    (folder / "model.onnx").write_bytes(graph())
    forge_checksums(folder)
    refused(folder, sentence)
    assert capfd.readouterr().err == ""


def test_weights_elsewhere_are_found_in_the_branches_of_a_graph(folder: Path) -> None:
    outer = onnx.load_model_from_string(elsewhere("/etc/passwd"))
    branch = helper.make_graph([], "branch", [], [], [outer.graph.initializer[0]])
    node = helper.make_node("If", ["c"], ["logits"], then_branch=branch, else_branch=branch)
    (folder / "model.onnx").write_bytes(graph_of(*FLAT, node, SOFTMAX))
    forge_checksums(folder)
    refused(folder, "it reads its weights from another file")


def test_weights_without_a_classifier_are_refused(folder: Path) -> None:
    safetensors.numpy.save_file({"a": np.zeros(3)}, folder / "weights.safetensors")
    forge_checksums(folder)
    refused(folder, r"weights\.safetensors: it has not the weights of a classifier")
