import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from trainer import bundle as bundle_module
from trainer.batches import ImageTensors
from trainer.bundle import FILES, Bundle, Origin, write_bundle
from trainer.evaluation import evaluate
from trainer.hyperparameters import unflatten
from trainer.images import to_image
from trainer.loop import create_model, predict_split
from trainer.predicting import predict

ORIGIN = Origin(sweep="s", trial=3, epochs=1, command="convsweep sweep --data digits")
FAMILY = [
    {},
    {"model.blocks": 1, "model.activation": "gelu", "model.pooling": "average", "model.batch_norm": False},
    {"model.convolutions": 2, "model.residual": True, "model.head": "max", "model.dense_units": 0},
    {
        "model.blocks": 2,
        "model.padding": "valid",
        "model.head": "average",
        "model.dropout": 0.3,
        "model.pool_last": False,
    },
    {"model.whitening": True, "model.test_time_flip": True, "model.convolutions": 2, "model.pool_position": "first"},
]


def write(folder, data, flat=None, samples=0):
    config = unflatten(flat or {})
    model = create_model(config, data, torch.device("cpu")).eval()
    scores = {"test": evaluate(predict_split(model, ImageTensors.of(data.test, torch.device("cpu"))))}
    difference = write_bundle(folder, model, config, data, scores, {"one image": 0.1}, ORIGIN, samples)
    return model, difference


@pytest.fixture(scope="module")
def written(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("bundles") / "digits"
    model, difference = write(folder, digits, samples=12)
    return folder, model, difference


@pytest.mark.parametrize("flat", FAMILY)
def test_the_written_graph_gives_the_live_models_probabilities(tmp_path, digits, flat):
    model, difference = write(tmp_path / "bundle", digits, flat)
    assert difference <= 1e-4
    images = np.array(digits.test.images[:100])
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).softmax(1).numpy()
    loaded = Bundle(tmp_path / "bundle")
    np.testing.assert_allclose(loaded.probabilities(images), expected, atol=1e-5)
    np.testing.assert_allclose(loaded.probabilities(images[:1]), expected[:1], atol=1e-5)


def test_a_bundle_has_all_its_files_and_they_agree(written, digits):
    folder, _, difference = written
    assert {p.name for p in folder.iterdir()} == {*FILES, "samples"}
    assert tuple(json.loads((folder / "classes.json").read_text())) == digits.classes
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["max_difference"] == difference
    assert np.sum(metrics["test"]["confusion"]) == len(digits.test)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["image"] == {"channels": 1, "height": 8, "width": 8}
    assert unflatten(settings["hyperparameters"]) == unflatten({})


def test_the_cards_example_runs_as_it_stands_in_a_fresh_process(written):
    folder, _, _ = written
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    picture = sorted((folder / "samples").iterdir())[0]
    (folder / "image.png").write_bytes(picture.read_bytes())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    (folder / "image.png").unlink()
    assert done.returncode == 0, done.stderr
    (expected,) = predict(Bundle(folder), [picture])
    assert done.stdout.split()[0] == expected.top[0][0]


def test_samples_are_one_of_each_class_in_turn_named_by_their_label(written):
    folder, _, _ = written
    labels = [
        path.stem.split("-")[1]
        for path in sorted((folder / "samples").iterdir(), key=lambda p: int(p.stem.split("-")[0]))
    ]
    assert labels == [*map(str, range(10)), "0", "1"]


def test_an_image_file_is_predicted_like_its_pixels(written, digits):
    folder, _, _ = written
    loaded = Bundle(folder)
    path = folder.parent / "one.png"
    to_image(digits.test.images[5]).save(path)
    (prediction,) = predict(loaded, [path], top=10)
    expected = loaded.probabilities(np.array(digits.test.images[5:6]))[0]
    assert prediction.path == str(path)
    assert sum(p for _, p in prediction.top) == pytest.approx(1, abs=1e-4)
    assert prediction.top[0] == (digits.classes[expected.argmax()], pytest.approx(float(expected.max()), abs=1e-6))


def test_a_graph_that_disagrees_is_refused_and_leaves_what_was_there(tmp_path, digits, monkeypatch):
    folder = tmp_path / "bundle"
    write(folder, digits)
    before = (folder / "metrics.json").read_text()

    def export_something_else(live, image_shape, path):
        other = create_model(unflatten({"training.seed": 9}), digits, torch.device("cpu")).eval()
        other = bundle_module.Probabilities(other.to(memory_format=torch.contiguous_format))
        example = torch.zeros(2, *image_shape, dtype=torch.uint8)
        program = torch.export.export(other, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, path)

    monkeypatch.setattr(bundle_module, "_export", export_something_else)
    with pytest.raises(RuntimeError, match="disagrees with the model on 256 images"):
        write(folder, digits)
    assert (folder / "metrics.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_not_overwritten(tmp_path, digits):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is no bundle"):
        write(tmp_path, digits)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_with_a_configuration_of_something_else_is_not_overwritten(tmp_path, digits):
    (tmp_path / "config.json").write_text('{"my": 1}')
    with pytest.raises(ValueError, match="exists and is no bundle"):
        write(tmp_path, digits)
    assert (tmp_path / "config.json").read_text() == '{"my": 1}'


def test_what_somebody_put_beside_a_bundle_is_not_lost(written, tmp_path, digits):
    folder = tmp_path / "bundle"
    shutil.copytree(written[0], folder)
    write(folder, digits)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'thesis\.txt' besides a bundle"):
        write(folder, digits)
    assert (folder / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("classes.json", '["a", "b"]', "size mismatch for classifier.weight"),
        ("classes.json", "[]", "classes.json: it must be a list"),
        ("classes.json", '{"a": 1}', "classes.json: it must be a list"),
        ("config.json", {"channels": 3}, "weights.safetensors does not fit to config.json"),
        ("config.json", {"height": 10**9}, "at most 4096"),
        ("config.json", {"height": -8}, "must be whole numbers above 0"),
        ("config.json", {"height": "8"}, "must be whole numbers above 0"),
        ("config.json", 99, "it is of format 99, but this convsweep reads format 1"),
        ("metrics.json", "{", "metrics.json: "),
        ("weights.safetensors", "nothing", "weights.safetensors: "),
        ("model.pt2", "nothing", "model.pt2: File is not a zip file"),
    ],
)
def test_a_bundle_whose_files_do_not_agree_is_refused(written, tmp_path, capfd, caplog, name, content, sentence):
    folder = tmp_path / "bundle"
    shutil.copytree(written[0], folder)
    if not isinstance(content, str):
        config = json.loads((folder / name).read_text())
        config |= {"convsweep_bundle": content} if content == 99 else {"image": config["image"] | content}
        content = json.dumps(config)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match="is no whole bundle") as error:
        Bundle(folder)
    assert sentence in str(error.value)
    assert "Traceback" not in capfd.readouterr().err + caplog.text


@pytest.mark.parametrize("damage", ["missing", "empty folder", "no graph", "truncated graph", "not json", "a file"])
def test_what_is_no_bundle_is_refused_with_a_sentence(written, tmp_path, damage):
    folder = tmp_path / "bundle"
    if damage == "a file":
        folder.write_text("x")
    elif damage != "missing":
        folder.mkdir()
    if damage in ("no graph", "truncated graph", "not json"):
        for name in FILES:
            (folder / name).write_bytes((written[0] / name).read_bytes())
    if damage == "no graph":
        (folder / "model.pt2").unlink()
    elif damage == "truncated graph":
        (folder / "model.pt2").write_bytes((folder / "model.pt2").read_bytes()[:1000])
    elif damage == "not json":
        (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="bundle"):
        Bundle(folder)


def test_an_archive_of_an_unknown_kind_is_refused(written, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(written[0], folder)
    graph = bytearray((folder / "model.pt2").read_bytes())
    entry = graph.rindex(b"PK\x01\x02")  # the last of the directory at the end
    graph[entry + 6] = 80  # needs version 8.0
    (folder / "model.pt2").write_bytes(graph)
    with pytest.raises(ValueError, match=r"no whole bundle: model\.pt2: .*version 8"):
        Bundle(folder)
