"""What the page of a trial is made of: pictures, tables, charts, the drawing. `python -m pytest tests/test_trial_pictures.py -q`."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.config import make_config
from cluster.record import SweepRecord, TrialRecord
from dashboard import analysis_tables, network_chart, parts, pictures, trial_charts, trial_tables
from dashboard.network_layout import WIDTH, Layout
from trainer.analysis import Analysis, Pictures
from trainer.domains import Value
from trainer.evaluation import CALIBRATION_BINS, Calibration, Scores
from trainer.hyperparameters import TrialConfig, flatten, unflatten
from trainer.layers import describe_layers
from trainer.metrics import EpochMetrics, history

SVG = "{http://www.w3.org/2000/svg}"


def record(number: int = 0, state: str = "COMPLETE", value: float | None = 0.5, **more: Any) -> TrialRecord:
    epochs = [EpochMetrics(1, 0.5, math.nan, 0.4, 0.001, 900.0, 0.1), EpochMetrics(2, 0.4, 0.3, 0.5, 0.0, 1100.0, 0.1)]
    given: dict[str, Any] = {"config": flatten(TrialConfig()), "history": history(epochs)}
    return TrialRecord(number, state, value, **given | more)


def sweep(*trials: TrialRecord) -> SweepRecord:
    config = make_config({"name": "s", "data": "digits", "trials": 7, "epochs": 4})
    return SweepRecord("s", "FINISHED", config, ("a", "b"), (1, 8, 8), (), trials)


def analysis(confusion: NDArray[np.int64], classes: tuple[str, ...] | None = None) -> Analysis:
    count = len(confusion)
    none = Pictures(
        np.zeros((1, 1, 4, 4), np.uint8), *(np.zeros(1, np.int64),) * 2, np.ones(1, np.float32), np.zeros(1, np.int64)
    )
    empty = np.full(CALIBRATION_BINS, np.nan)
    return Analysis(
        classes or tuple(f"class {i}" for i in range(count)),
        Scores(int(confusion.sum()), 0.1, 0.9, 0.9, 0.0, confusion.tolist()),
        Calibration(empty, empty, np.zeros(CALIBRATION_BINS, np.int64)),
        none,
        none,
    )


# ---- pictures ----


@pytest.mark.parametrize(("channels", "shape"), [(1, (224, 224)), (3, (224, 224, 3))])
def test_every_pixel_of_a_small_image_becomes_a_square(channels: int, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 28, 28), dtype=np.uint8)
    picture = pictures.enlarged(image)
    assert picture.shape == shape
    assert (picture[::8, ::8] == (image[0] if channels == 1 else image.transpose(1, 2, 0))).all()
    assert (picture[:8, :8] == picture[0, 0]).all()


def test_a_large_image_stays_as_it_is_but_is_small_in_a_table() -> None:
    image = np.zeros((3, 600, 400), np.uint8)
    assert pictures.enlarged(image).shape == (600, 400, 3)
    assert len(pictures.data_url(image)) < 2000


def test_weights_are_blue_white_and_red() -> None:
    kernels = np.array([[[[-2.0, 0.0, 2.0]] * 3], [[[0.0, 0.0, 0.0]] * 3]], np.float32)
    negative, zero, positive = pictures.kernel_pictures(kernels)[0, 0].astype(int)
    assert negative[2] > negative[0] + 100
    assert positive[0] > positive[2] + 100
    assert len(set(zero)) == 1
    assert (pictures.kernel_pictures(kernels)[1] == zero).all()  # without any weight there is nothing to divide by


def test_kernels_for_colours_are_shown_in_them() -> None:
    kernels = np.zeros((1, 3, 3, 3), np.float32)
    kernels[0, 0, 1, 1] = 0.3
    picture = pictures.kernel_pictures(kernels)[0]
    assert picture[1, 1].tolist() == [255, 128, 128]
    assert (picture[0, 0] == 128).all()


def test_a_kernels_answer_is_reddest_where_it_fits() -> None:
    image = np.zeros((1, 9, 7), np.uint8)
    image[0, 3, 2] = 255
    kernels = np.zeros((1, 1, 3, 3), np.float32)
    kernels[0, 0, 0, 0] = 1.0  # takes the pixel above and to the left
    answer = pictures.response_pictures(kernels, image)[0].astype(int)
    assert answer.shape == (9, 7, 3)
    redness = answer[..., 0] - answer[..., 2]
    assert np.unravel_index(redness.argmax(), redness.shape) == (4, 3)


def test_the_answers_to_a_large_image_are_not_large() -> None:
    kernels = np.ones((2, 3, 5, 5), np.float32)
    assert pictures.response_pictures(kernels, np.zeros((3, 400, 300), np.uint8)).shape == (2, 100, 75, 3)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (16, 4, 4), (32, 8, 4), (128, 16, 8), (500, 16, 8)])
def test_a_mosaic_has_no_gap_at_its_end_where_that_can_be(count: int, columns: int, rows: int) -> None:
    tiles = np.full((count, 3, 3, 3), 7, np.uint8)
    whole = pictures.mosaic(tiles)
    opaque = whole[..., 3] == 255
    assert (whole[opaque][:, :3] == 7).all()
    assert len(np.flatnonzero(np.diff(opaque.any(0).astype(int)) == 1)) + 1 == columns
    assert len(np.flatnonzero(np.diff(opaque.any(1).astype(int)) == 1)) + 1 == rows
    assert opaque[-1, -1]


def test_where_nothing_is_hot_the_picture_is_the_gray_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 20), dtype=np.uint8)
    heat = np.zeros((28, 20), np.float32)
    assert (pictures.heat_picture(image, heat)[..., 0] == pictures.enlarged(image)).all()
    heat[5, 5] = 1.0
    hot = pictures.heat_picture(image, heat)
    assert hot.shape == (224, 160, 3)
    assert (hot[40:48, 40:48].max(-1) != hot[40:48, 40:48].min(-1)).any()


# ---- the network's drawing ----


NETWORKS: list[tuple[dict[str, Value], tuple[int, int, int], int]] = [
    ({}, (1, 28, 28), 10),
    ({"model.blocks": 1, "model.kernel_size.1": 5, "model.padding": "valid", "model.dense_units": 0}, (1, 8, 8), 2),
    ({"model.blocks": 2, "model.residual": True, "model.filters.1": 1, "model.batch_norm": False}, (3, 32, 20), 10),
    (
        {"model.blocks": 5, "model.convolutions": 2, "model.residual": True, "model.dropout": 0.5, "model.head": "max"}
        | {f"model.filters.{i}": 2048 for i in range(1, 6)},
        (3, 1024, 1024),
        1000,
    ),
]


@pytest.mark.parametrize(("config", "image_shape", "classes"), NETWORKS)
def test_every_network_fits_into_its_drawing(
    config: dict[str, Value], image_shape: tuple[int, int, int], classes: int
) -> None:
    layers = describe_layers(unflatten(config).model, image_shape, classes)
    drawing = network_chart.draw(layers)
    root = ET.fromstring(drawing)
    height = int(root.attrib["height"])
    assert height < 420
    for element in root.iter():
        points = element.attrib.get("points") or element.attrib.get("d", "")
        numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", points)]
        assert all(-0.01 <= n <= WIDTH for n in numbers)
        assert 0 <= float(element.attrib.get("x", 0)) <= WIDTH
        assert 0 <= float(element.attrib.get("y", 0)) <= height
    said = [text.text for text in root.iter(f"{SVG}text")]
    assert f"{classes:,}" in said
    assert f"{sum(layer.parameters for layer in layers if layer.group == 'block 1'):,} parameters" in said
    signs = [circle for circle in root.iter(f"{SVG}circle") if circle.attrib["r"] == "8"]
    assert len(signs) == sum(layer.kind == "addition" for layer in layers)


def test_boxes_tell_how_large_the_maps_are_and_how_many() -> None:
    layers = describe_layers(unflatten({"model.filters": [8, 64, 8]}).model, (1, 32, 32), 10)
    layout = Layout(layers)
    first, _, second = layout.stages[1], layout.stages[2], layout.stages[3]
    assert layout.size(first)[0] > layout.size(second)[0]
    assert layout.thickness(first) < layout.thickness(second)
    places = [stage.x for stage in layout.stages]
    assert places == sorted(places)


def test_a_dark_page_gets_light_ink() -> None:
    layers = describe_layers(TrialConfig().model, (1, 8, 8), 10)
    assert 'fill="#f3f4f6"' in network_chart.draw(layers, dark=True)
    assert 'fill="#f3f4f6"' not in network_chart.draw(layers)


# ---- tables of the record ----


def test_the_gain_is_over_the_presets_trial() -> None:
    best, baseline = record(1, value=0.7), record(0, value=0.65, preset="default")
    gains = {
        t.number: f.value
        for t in (best, baseline)
        for f in trial_tables.headline(sweep(best, baseline), t)
        if f.label == "Gain"
    }
    assert gains == {1: "+5.00 pp", 0: "+0.00 pp"}


def test_the_default_of_a_value_per_block_is_for_as_many_blocks() -> None:
    blocks = flatten(unflatten({"model.blocks": 5, "model.filters.2": 16}))
    rows = trial_tables.configuration(record(config=blocks)).set_index("hyperparameter")
    assert rows.loc["filters", ["value", "default", "differs"]].tolist() == ["32-16-64-64-64", "32-64-64-64-64", True]
    assert not rows.loc["kernel size", "differs"]
    assert rows.loc["blocks", ["value", "default", "differs"]].tolist() == ["5", "3", True]


def test_a_hyperparameter_of_another_version_is_shown_and_said_to_be_one() -> None:
    rows = trial_tables.configuration(record(config={"model.breadth": 7})).set_index("hyperparameter")
    assert rows.loc["model.breadth", ["value", "default", "differs"]].tolist() == ["7", "", True]
    assert "Not a hyperparameter of this version" in rows.loc["model.breadth", "meaning"]
    with pytest.raises(ValueError, match=r"model\.breadth"):
        trial_tables.model_config(record(config={"model.breadth": 7}))


def test_a_loss_that_is_not_finite_is_missing_in_the_curves() -> None:
    rows = trial_tables.epochs(record())
    assert rows[rows["metric"] == "val_loss"]["value"].isna().tolist() == [True, False]
    chart = trial_charts.curves(rows, {"train_loss": "training", "val_loss": "validation"}, "loss", 200).to_dict()
    (data,) = chart["datasets"].values()
    assert {row["name"] for row in data} == {"training", "validation"}


# ---- tables of the analysis ----


def test_a_confusion_matrix_tells_mistakes_from_what_is_right() -> None:
    cells = analysis_tables.confusion_cells(analysis(np.array([[8, 2, 0], [0, 5, 0], [0, 1, 0]])), as_share=True)
    assert len(cells) == 9
    by_place = cells.set_index(["true", "predicted"])
    assert by_place.loc[("class 0", "class 0"), ["count", "kind", "text"]].tolist() == [8, "right", "80"]
    assert by_place.loc[("class 0", "class 1"), ["count", "kind", "text"]].tolist() == [2, "wrong", "20"]
    assert by_place.loc[("class 0", "class 2"), ["count", "kind", "text"]].tolist() == [0, "none", ""]
    strengths = by_place["strength"]
    assert strengths["class 2", "class 1"] > strengths["class 0", "class 1"] > strengths["class 0", "class 2"]


def test_of_many_classes_the_confusion_matrix_has_those_with_the_most_mistakes() -> None:
    confusion = np.diag(np.full(120, 9))
    confusion[7, 119] = 4
    found = analysis(confusion)
    chosen = analysis_tables.most_confused(found)
    assert len(chosen) == 100
    assert {7, 119} < set(chosen.tolist())
    cells = analysis_tables.confusion_cells(found, as_share=False)
    assert set(cells["kind"]) == {"right", "wrong"}
    assert len(cells) == 101
    names = [found.classes[i] for i in chosen]
    (squares,) = trial_charts.confusion(cells, names, 440).to_dict()["layer"]
    assert squares["encoding"]["y"]["axis"]["labels"] is False


def test_the_commonest_mistakes_come_first() -> None:
    pairs = analysis_tables.confused_pairs(analysis(np.array([[90, 2, 0], [5, 5, 0], [2, 0, 8]])))
    assert pairs[["true", "taken for", "images"]].to_numpy().tolist() == [
        ["class 1", "class 0", 5],
        ["class 2", "class 0", 2],
        ["class 0", "class 1", 2],
    ]
    assert pairs["share"].round(1).tolist() == [50.0, 20.0, 2.2]
    assert analysis_tables.confused_pairs(analysis(np.diag([3, 4]))).empty


def test_calibration_leaves_out_what_has_no_images() -> None:
    confidence, accuracy = np.full(15, np.nan), np.full(15, np.nan)
    confidence[14], accuracy[14] = 0.99, 0.9
    count = np.zeros(15, np.int64)
    count[14] = 100
    bins = analysis_tables.calibration_bins(Calibration(confidence, accuracy, count))
    assert bins["gap"].round(2).tolist() == [-0.09]
    assert bins["end"].tolist() == [1.0]


def test_a_heat_map_without_heat_is_said_to_be_one() -> None:
    heat = np.zeros((4, 4), np.float32)
    assert analysis_tables.heat_caption("cat", 0.456, heat) == "nothing speaks for cat (0.46)"
    assert analysis_tables.heat_caption("cat", 0.456, heat + 0.5) == "speaks for cat (0.46)"


def test_the_likeliest_classes_come_first() -> None:
    table = analysis_tables.probability_table("abc", np.array([0.2, 0.1, 0.7], np.float32), label=0, most=2)
    assert table["class"].tolist() == ["c", "a"]
    assert table["true"].tolist() == [False, True]


def test_text_is_shown_as_it_is() -> None:
    assert parts.plain("a_b *c* – [d](e) · é") == r"a\_b \*c\* – \[d\]\(e\) · é"
