"""Sparse initializers and sparse Constant nodes written out densely.

Neither onnx_ir nor the integer kernels know sparse weights, and a pruned weight is as large as a
dense one once it is int8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from qcompile.ir.errors import ModelError
from qcompile.ir.notes import Note

__all__ = ["densify"]

_LIMIT = 2**31
"""Bytes above which a sparse tensor is not written out."""


def densify(model: onnx.ModelProto) -> list[Note]:
    """Replace sparse tensors by dense ones, in subgraphs and functions too.

    Raises:
        ModelError: indices do not fit the shape, or the dense tensor would exceed 2 GB.
    """
    notes: list[Note] = []
    for graph in _graphs(model.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.add().CopyFrom(_dense(sparse, sparse.values.name))
            notes.append(Note(sparse.values.name, "sparse initializer written out densely", True))
        graph.ClearField("sparse_initializer")
        notes += _densify_constants(graph.node)
    for function in model.functions:
        notes += _densify_constants(function.node)
        for node in function.node:
            for inner in _inner_graphs(node):
                for graph in _graphs(inner):
                    notes += _densify_constants(graph.node)
    return notes


def _densify_constants(nodes: list[onnx.NodeProto]) -> list[Note]:
    notes: list[Note] = []
    for node in nodes:
        for attr in node.attribute:
            if node.op_type == "Constant" and attr.type == onnx.AttributeProto.SPARSE_TENSOR:
                name = node.output[0]
                dense = _dense(attr.sparse_tensor, name)
                attr.Clear()
                attr.name, attr.type = "value", onnx.AttributeProto.TENSOR
                attr.t.CopyFrom(dense)
                notes.append(Note(name, "sparse constant written out densely", True))
    return notes


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in _inner_graphs(node):
            yield from _graphs(inner)


def _inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attr in node.attribute:
        if attr.type == onnx.AttributeProto.GRAPH:
            yield attr.g
        elif attr.type == onnx.AttributeProto.GRAPHS:
            yield from attr.graphs


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    shape = list(sparse.dims)
    for part in (sparse.values, sparse.indices):
        if part.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"sparse tensor '{name}' has external data, which is not supported; save the model "
                "with its sparse tensors inside"
            )
    try:
        values = numpy_helper.to_array(sparse.values)
        indices = numpy_helper.to_array(sparse.indices)
    except (TypeError, ValueError, KeyError) as e:
        raise ModelError(f"sparse tensor '{name}' cannot be read: {e}") from e
    if math.prod(shape) * values.itemsize > _LIMIT:
        raise ModelError(f"sparse tensor '{name}' of shape {shape} exceeds 2 GB when written out")
    dense = np.zeros(math.prod(shape), dtype=values.dtype)
    if indices.ndim == 2:
        if indices.shape[1] != len(shape):
            raise ModelError(f"sparse tensor '{name}': its indices do not fit the shape {shape}")
        inside = bool(np.all((indices >= 0) & (indices < np.array(shape))))
        places = indices @ np.cumprod([1, *shape[:0:-1]])[::-1]
    else:
        places = indices
        inside = bool(np.all((indices >= 0) & (indices < dense.size)))
    if not inside or len(places) != len(values):
        raise ModelError(f"sparse tensor '{name}': its indices do not fit the shape {shape}")
    dense[places] = values
    return numpy_helper.from_array(dense.reshape(shape), name)
