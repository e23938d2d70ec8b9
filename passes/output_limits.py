"""Limits that a layer's outputs keep whatever is fed, by interval arithmetic.

Where what a layer reads lies in [l, h], output channel o lies within
``b_o + sum_i min(W_oi l, W_oi h)`` and ``b_o + sum_i max(W_oi l, W_oi h)``. Padding adds zeros, so the
interval is widened to hold 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import constant
from qcompile.passes.linear import Array, Linear

__all__ = ["clip_limits", "output_limits", "value_limits"]

BOUNDED = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}
KEEPS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Transpose"}
    | {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
)
"""Operators whose results lie among, or between, what they read (and the zeros of padding)."""


def clip_limits(node: oir.Node) -> tuple[float | None, float | None]:
    """Constant ends of a Clip of any opset; None where an end is no constant."""
    ends: list[float | None] = []
    for index, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        if name in node.attributes:
            ends.append(node.attributes.get_float(name, default))
        elif index < len(node.inputs) and node.inputs[index] is not None:
            array = constant(node.inputs[index])
            ends.append(float(array.reshape(-1)[0]) if array is not None and array.size else None)
        else:
            ends.append(float(default))
    return ends[0], ends[1]


def value_limits(value: oir.Value | None, depth: int = 8) -> tuple[float, float] | None:
    """An interval around 0 that every element of a tensor lies in; None where none is known."""
    node = None if value is None else value.producer()
    if node is None or depth == 0 or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Clip":
        low, high = clip_limits(node)
        if low is None or high is None or not np.isfinite([low, high]).all():
            return None
        return min(low, 0.0), max(high, 0.0)
    if node.op_type in BOUNDED:
        return BOUNDED[node.op_type]
    if node.op_type in KEEPS:
        return value_limits(node.inputs[0], depth - 1)
    return None


def output_limits(linear: Linear) -> tuple[Array | None, Array | None]:
    """(out,) lower and upper limits of a layer's outputs, None where what it reads has no limits."""
    found = value_limits(linear.node.inputs[0])
    if found is None or linear.node.op_type == "ConvTranspose":
        return None, None
    low, high = found
    weight = linear.weight.astype(np.float64)
    if linear.node.op_type == "Conv":
        rows = weight.reshape(weight.shape[0], -1)
    else:
        rows = weight if linear.transposed else weight.T
        rows = rows * linear.node.attributes.get_float("alpha", 1.0)
    ends = np.stack([rows * low, rows * high])
    slack = 1e-5 * np.abs(ends).max(axis=0).sum(axis=1)
    bias = linear.bias
    return ends.min(axis=0).sum(axis=1) + bias - slack, ends.max(axis=0).sum(axis=1) + bias + slack
