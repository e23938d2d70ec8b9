"""Weights in few bits for TensorRT: a DequantizeLinear between the stored integers and their layer.

Before:  W (float32) ------------------------> MatMul
After:   W (int4), scales -> DequantizeLinear -> MatMul

4 bits have a scale for each block along K, 8 bits one for each output. The builder takes both into the
kernel of the product; a weight that two products read gets a kernel of its own. So does that of a product
behind the heads of an attention over one sample, unless it is one of two dimensions:

Before:  Transpose -> Reshape ------------> MatMul ------------>
After:   Transpose -> Reshape -> Reshape -> MatMul -> Reshape ->
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.blocks import BlockWeight, PackedWeight, join_blocks
from qcompile.ir.graph import add_initializer, drop_unused, fresh_name, replace_value
from qcompile.ir.matrices import Matrix

__all__ = ["lower_to_dequantize"]

Integers = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


def lower_to_dequantize(
    model: oir.Model,
    matrices: Sequence[Matrix],
    weights: Mapping[str, BlockWeight | PackedWeight],
) -> None:
    """Give every matrix of ``weights`` (by initializer name) its integers; ``model`` is edited.

    Args:
        model: float graph of opset 21 or later.
        matrices: of this very graph.
        weights: symmetric, in blocks that divide K, or in 8 bits with one block a row.
    """
    graph = model.graph
    for matrix in matrices:
        weight = weights.get(matrix.name)
        if weight is None:
            continue
        integers, scale = _signed(weight)
        bits, along = weight.spec.bits, 0 if matrix.turned else 1
        stored = integers.T if matrix.turned else integers
        attributes = {"axis": 1 - along}
        if bits == 8:
            scale = scale[:, 0]
        else:
            attributes = {"axis": along, "block_size": weight.spec.block}
            scale = scale.T if matrix.turned else scale
        kind = np.dtype(np.int8) if bits == 8 else np.dtype(ml_dtypes.int4)
        data = add_initializer(
            graph, f"{matrix.name}_int{bits}", np.ascontiguousarray(stored).astype(kind)
        )
        steps = add_initializer(graph, f"{matrix.name}_scale", np.ascontiguousarray(scale))
        node = oir.node(
            "DequantizeLinear",
            [data, steps],
            attributes=attributes,
            name=fresh_name(graph, f"{matrix.name}_DequantizeLinear"),
        )
        node.outputs[0].name = fresh_name(graph, f"{matrix.name}_dequantized")
        node.outputs[0].type = oir.TensorType(oir.DataType.FLOAT)
        node.outputs[0].shape = matrix.value.shape
        uses = list(matrix.value.uses())
        graph.insert_before(graph[0], node)
        for use in uses:
            use.node.replace_input_with(use.idx, node.outputs[0])
        for reader in matrix.uses:
            if _joins_heads(reader.node):
                _flatten(graph, reader.node, matrix.shape)
    drop_unused(model)


def _joins_heads(node: oir.Node) -> bool:
    read = node.inputs[0]
    made = None if read is None else read.producer()
    if node.op_type != "MatMul" or read is None or made is None or made.op_type != "Reshape":
        return False
    before = made.inputs[0]
    turned = None if before is None else before.producer()
    many = read.shape is not None and len(read.shape) > 2
    return many and turned is not None and turned.op_type == "Transpose"


def _flatten(graph: oir.Graph, node: oir.Node, shape: tuple[int, int]) -> None:
    """Multiply (rows, K); the result gets its dimensions back, and keeps its name."""
    out, width = shape
    read, result = node.inputs[0], node.outputs[0]
    name, kind, dims = result.name or "", result.type, result.shape

    def add(op_type: str, inputs: list[oir.Value | None], word: str, **attributes: int) -> oir.Node:
        made = oir.node(
            op_type, inputs, attributes=attributes, name=fresh_name(graph, f"{name}_{word}")
        )
        made.outputs[0].name = fresh_name(graph, f"{name}_{word}")
        made.outputs[0].type = kind if op_type == "Reshape" else oir.TensorType(oir.DataType.INT64)
        return made

    rows = add_initializer(graph, f"{name}_rows", np.array([-1, width], np.int64))
    last = add_initializer(graph, f"{name}_last", np.array([out], np.int64))
    flat = add("Reshape", [read, rows], "flat")
    flat.outputs[0].shape = oir.Shape([None, width])
    leading = add("Shape", [read], "leading", end=-1)
    whole = add("Concat", [leading.outputs[0], last], "whole", axis=0)
    graph.insert_before(node, [flat, leading, whole])
    node.replace_input_with(0, flat.outputs[0])
    back = add("Reshape", [result, whole.outputs[0]], "back")
    back.outputs[0].shape = dims
    graph.insert_after(node, back)
    replace_value(result, back.outputs[0])
    back.replace_input_with(0, result)
    result.name = fresh_name(graph, f"{name}_product")
    result.shape = oir.Shape([None, out])
    back.outputs[0].name = name


def _signed(weight: BlockWeight | PackedWeight) -> tuple[Integers, Floats]:
    """Integers (out, in) around zero and their scales (out, blocks), all positive."""
    spec = weight.spec
    moved = weight.integers.astype(np.int16) - spec.middle
    scale = weight.scale
    # Least squares may turn a sign; the lowest integer has no opposite and loses a step.
    turned = scale < 0
    moved = np.where(turned[:, :, None], -moved, moved)
    moved = np.minimum(moved, spec.middle - 1)
    # What a block of zeros is multiplied with is of no account, but must be a usable number.
    scale = np.where(moved.any(-1), np.abs(scale), np.float32(1))
    flat = join_blocks(moved, weight.width)  # type: ignore[arg-type]
    return flat.astype(np.int8), scale.astype(np.float32)
