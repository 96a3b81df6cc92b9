"""An ONNX graph that classifies images, run by onnxruntime. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx
    import onnxruntime


class OnnxSession:
    """A graph of uint8 images `(N, C, H, W)` to float32 probabilities `(N, classes)`, on the CPU.

    It can be pickled: the graph goes along, and the session is made where it arrives. `threads` are those of one pass; None: as many
    as this process has cores.
    """

    def __init__(self, graph: bytes, threads: int | None = None) -> None:
        self._graph, self._threads = graph, threads
        self._session = _start(graph, threads)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probabilities of the images."""
        [found] = self._session.run(None, {self._session.get_inputs()[0].name: images})
        return cast(NDArray[np.float32], found)

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxSession, (self._graph, self._threads)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_graph(graph: bytes, image_shape: tuple[int, int, int], classes: int) -> onnx.ModelProto:
    """The parsed graph. Raises ValueError unless it is whole, takes images (C, H, W), gives that many classes, and reads no other file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(graph)
    except DecodeError as error:
        raise ValueError(f"it is no ONNX graph ({error})") from error
    if any(_is_elsewhere(tensor) for tensor in _tensors(model)):
        raise ValueError("it reads its weights from another file, which a bundle's graph never does")
    signature = [_signature(value) for value in (*model.graph.input, *model.graph.output)]
    wanted = [(onnx.TensorProto.UINT8, image_shape), (onnx.TensorProto.FLOAT, (classes,))]
    if signature != wanted:
        raise ValueError(
            f"it must turn uint8 images {image_shape} into {classes} probabilities, as the other files say"
        )
    return model


def initializer(model: onnx.ModelProto, name: str) -> NDArray[Any] | None:
    """The values of a weight in the graph, None when it has none of that name."""
    from onnx import numpy_helper

    found = next((tensor for tensor in model.graph.initializer if tensor.name == name), None)
    return None if found is None else numpy_helper.to_array(found)


def _start(graph: bytes, threads: int | None) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 4  # what is wrong is raised
    # Threads that wait by spinning take the cores from those that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with _refusals():
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=False)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turns whatever onnxruntime raises for a graph, each a class of its own without a common base, into a ValueError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"onnxruntime cannot run it: {reason}") from error


def _signature(value: onnx.ValueInfoProto) -> tuple[int, tuple[int, ...]]:
    """Its type and its shape without the batch."""
    kind = value.type.tensor_type
    return kind.elem_type, tuple(dim.dim_value for dim in kind.shape.dim[1:])


def _is_elsewhere(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == 1 or len(tensor.external_data) > 0  # 1: TensorProto.EXTERNAL


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that is stored in the graph, in its attributes and in its functions."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors_of_graph(graph)
