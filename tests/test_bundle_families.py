"""A bundle of every family of networks gives what the live model gives: `python -m pytest tests/test_bundle_families.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.family_networks import OF_EACH, Flat
from tests.written_bundles import write
from trainer.bundle import GRAPHS, Bundle
from trainer.bundle_writing import VERIFIED_IMAGES, Smaller
from trainer.data import ImageData
from trainer.graphs import BATCH, OPSET
from trainer.torchvision_names import PREFIX

CONVNETS: dict[str, Flat] = {
    "convnet": {},
    "convnet, gelu": {
        "model.blocks": 1,
        "model.activation": "gelu",
        "model.pooling": "average",
        "model.batch_norm": False,
    },
    "convnet, residual": {
        "model.convolutions": 2,
        "model.residual": True,
        "model.head": "max",
        "model.dense_units": 0,
    },
    "convnet, unpadded": {
        "model.blocks": 2,
        "model.padding": "valid",
        "model.head": "average",
        "model.dropout": 0.3,
        "model.pool_last": False,
    },
    "convnet, whitening": {
        "model.whitening": True,
        "model.test_time_flip": True,
        "model.convolutions": 2,
        "model.pool_position": "first",
    },
}
QUICK = ("resnet18", "mobilenet_v3_small")
KINDS = ("densenet121", "efficientnet_b0", "swin_t")
"""`python -m bench.bundles` has one of each kind; these take little time, and each has layers that the others have not."""

SIMPLE = "rnn, simple"
"""onnxruntime 1.31 dies of its steps in float16, which the verification of the bundle notices."""


def small(name: str) -> Flat:
    """A network of torchvision's for images that are enlarged to few pixels."""
    return {"model.family": PREFIX + name, "model.input_size": 64}


def check(folder: Path, digits: ImageData, flat: Flat, precisions: tuple[str, ...] = ("int8", "fp16")) -> None:
    """Write the bundle and hold point by point what it promises."""
    model, written = write(folder, digits, flat, smaller=Smaller(precisions, max_drop=1.0))
    for name in ("model.onnx", "model.pt2", "weights.safetensors"):
        found = written.checks[name]
        assert found.images == VERIFIED_IMAGES
        assert found.max_difference <= 1e-4
        assert found.different_labels == 0
    graph = onnx.load(folder / "model.onnx")
    assert [(x.domain, x.version) for x in graph.opset_import if not x.domain] == [("", OPSET)]
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == BATCH
    assert digits.test is not None
    images = np.array(digits.test.images[:50])
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).softmax(1).numpy()
    bundle, exported = Bundle(folder), torch.export.load(folder / "model.pt2").module()
    for count in (1, 3, 50):
        from_graph = exported(torch.from_numpy(images[:count])).detach().numpy()
        np.testing.assert_allclose(from_graph, expected[:count], atol=1e-4)
        np.testing.assert_allclose(bundle.probabilities(images[:count]), expected[:count], atol=1e-4)
    for precision in precisions:
        probabilities = Bundle(folder, precision).probabilities(images)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-3)
        np.testing.assert_allclose(probabilities, expected, atol={"fp16": 0.03, "int8": 0.5}[precision])


@pytest.mark.parametrize("kind", [*CONVNETS, *OF_EACH])
def test_every_kind_of_network_of_ours(kind: str, digits: ImageData, tmp_path: Path) -> None:
    precisions = ("int8",) if kind == SIMPLE else ("int8", "fp16")
    check(tmp_path / "bundle", digits, (CONVNETS | OF_EACH)[kind], precisions)


@pytest.mark.parametrize("name", QUICK)
def test_some_of_torchvision(name: str, digits: ImageData, tmp_path: Path) -> None:
    check(tmp_path / "bundle", digits, small(name))
    sizes = [(tmp_path / "bundle" / GRAPHS[precision]).stat().st_size for precision in ("fp32", "fp16", "int8")]
    assert sizes[0] > 1.8 * sizes[1] > 2.5 * sizes[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_others_of_torchvision(name: str, digits: ImageData, tmp_path: Path) -> None:
    check(tmp_path / "bundle", digits, small(name), ())
