"""Weights in few bits for TensorRT: a DequantizeLinear between the stored integers and their layer.

Before:  W (float32) ------------------------> MatMul
After:   W (int4), scales -> DequantizeLinear -> MatMul

4 bits have a scale for each block along K, 8 bits one for each output. The builder takes both into the
kernel of the product; a weight that two products read gets a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.blocks import BlockWeight, PackedWeight, join_blocks
from qcompile.ir.graph import add_initializer, drop_unused, fresh_name
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
    drop_unused(model)


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
