"""Multiply-accumulate operations of a node, for "which share of the work became integer"."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_ir as oir

from qcompile.ir.graph import attribute

__all__ = ["MAC_OPERATORS", "Shapes", "macs"]

Shapes = Mapping[str, tuple[int, ...]]

MAC_OPERATORS = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Einsum"}
)
"""Operators whose work is counted in MACs. Einsum has them but is not counted by ``macs``."""


def macs(node: oir.Node, shapes: Shapes | None = None) -> int | None:
    """MACs of one run of a node; 0 for operators without, None when a shape it depends on is unknown.

    Args:
        node: any node; quantized forms (QLinearConv, ...) are not looked into.
        shapes: tensor name -> concrete shape, used where the graph's own shape is dynamic.

    Examples:
        A 3x3 Conv from 16 to 32 channels with a (1, 32, 10, 10) output has
        1 * 32 * 10 * 10 * 16 * 3 * 3 = 460,800 MACs.
    """
    if node.domain != "" or node.op_type not in MAC_OPERATORS:
        return 0
    known = [_shape(value, shapes) for value in node.inputs]
    outputs = [_shape(value, shapes) for value in node.outputs]
    if node.op_type in ("Conv", "ConvTranspose"):
        return _conv(node, known, outputs)
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return _recurrent(node, known)
    if node.op_type in ("MatMul", "Gemm"):
        return _product(node, known, outputs)
    return None


def _shape(value: oir.Value | None, shapes: Shapes | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    if shapes is not None and value.name is not None and value.name in shapes:
        return tuple(shapes[value.name])
    if value.shape is None:
        return None
    dims = tuple(value.shape)
    return tuple(d for d in dims if isinstance(d, int)) if value.shape.is_static() else None


def _conv(
    node: oir.Node, inputs: list[tuple[int, ...] | None], outputs: list[tuple[int, ...] | None]
) -> int | None:
    """Every element on the side of weight axis 0's channels meets one filter of the weight."""
    place = outputs[0] if node.op_type == "Conv" else inputs[0]
    weight = inputs[1]
    if place is None or weight is None:
        return None
    return prod(place) * prod(weight[1:])


def _product(
    node: oir.Node, inputs: list[tuple[int, ...] | None], outputs: list[tuple[int, ...] | None]
) -> int | None:
    left, out = inputs[0], outputs[0]
    if left is None or out is None or not left:
        return None
    summed = left[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else left[-1]
    return prod(out) * summed


def _recurrent(node: oir.Node, inputs: list[tuple[int, ...] | None]) -> int | None:
    x, w, r = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if x is None or w is None or r is None:
        return None
    steps = x[0] * x[1]
    return steps * (prod(w) + prod(r))
