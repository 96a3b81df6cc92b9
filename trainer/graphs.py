"""A trained network as graphs that run without convsweep: torch.export's, and ONNX in float32, float16 and int8."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.model import Classifier

if TYPE_CHECKING:
    import onnx

OPSET = 24
"""Of ONNX: the first that has attention with all that the exporter writes, and the newest that it converts every family to."""
INPUT, OUTPUT, BATCH = "images", "probabilities", "batch"
_CALIBRATED_AT_ONCE = 32


class Probabilities(nn.Module):
    """What is exported: raw uint8 images `(N, C, H, W)` in, probabilities float32 `(N, classes)` out."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities of uint8 images."""
        return cast(Tensor, self.model(images).softmax(1))


def write_graphs(live: Probabilities, image_shape: tuple[int, int, int], torch_path: Path, onnx_path: Path) -> None:
    """Write the network, which is on the CPU and in eval mode, as both graphs, for images (C, H, W) and any batch size."""
    example = torch.zeros(2, *image_shape, dtype=torch.uint8)
    with _quiet():
        program = torch.export.export(live, (example,), dynamic_shapes=({0: torch.export.Dim(BATCH)},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # with this machine's paths
        torch.export.save(program, torch_path)
        written = torch.onnx.export(
            program,
            (),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    assert written is not None
    model = written.model_proto
    _without_traces(model)
    _save(model, onnx_path)


def write_float16(source: Path, path: Path) -> None:
    """Write the ONNX graph at `source` with weights and arithmetic in float16; images and probabilities stay what they are."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    _save(model, path)


def write_int8(source: Path, path: Path, images: NDArray[np.uint8]) -> None:
    """Write the ONNX graph at `source` with int8 weights and uint8 activations, whose ranges are those that `images` `(N, C, H, W)` give.

    Weights have 7 bits and a scale per channel: processors without VNNI add two products in 16 bits, which overflow with 8.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter(np.array_split(images, range(_CALIBRATED_AT_ONCE, len(images), _CALIBRATED_AT_ONCE)))

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    prepared = path.with_suffix(".prepared")
    try:
        with _quiet():
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                path,
                Batches(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=[node.name for node in onnx.load(source).graph.node if node.op_type == "Softmax"],
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},  # logits of 8 bits would often be equal
            )
    finally:
        prepared.unlink(missing_ok=True)


def _without_traces(model: onnx.ModelProto) -> None:
    """Take out what the exporter says of this machine (stack traces with its paths), and name the batch's dimension."""
    for nodes in [model.graph.node, *(function.node for function in model.functions)]:
        for node in nodes:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    for part in [model.graph, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        part.ClearField("metadata_props")
    model.graph.ClearField("value_info")  # whoever runs it infers it
    model.graph.ClearField("doc_string")
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    model.producer_name = "convsweep"


def _save(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings and log lines: what they write is verified, and that is what counts."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
