"""Where a factor or a constant that was applied to a tensor can be absorbed instead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, is_graph_output
from qcompile.passes.linear import Array, as_linear

__all__ = ["Sinks", "find_sinks"]

MOVES = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Identity"}
)
"""Operators that only move elements: the same number may be applied before or after."""

POSITIVE = frozenset({"Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool"})
"""Operators with f(a x) = a f(x) for a > 0."""

DEPTH = 24


@dataclass(frozen=True)
class Sinks:
    """The layers that together can absorb a factor.

    Attributes:
        nodes: each once per path that reaches it (a factor then counts once for each).
        no_shift: why a constant cannot be absorbed as well, None if it can.
    """

    nodes: tuple[oir.Node, ...]
    no_shift: str | None


def find_sinks(value: oir.Value, scale: Array, axis: int | None, depth: int = DEPTH) -> Sinks | str:
    """The layers behind ``value`` that can absorb ``scale``, or why there is one reader that cannot.

    Args:
        value: the tensor to which the factor was applied.
        scale: ``()`` or ``(channels,)``.
        axis: negative axis of a vector, None for a number.
        depth: how many operators a path may pass.
    """
    if is_graph_output(value):
        return f"'{value.name}' is an output of the model"
    if depth == 0:
        return f"the way from '{value.name}' to the next layer is too long"
    nodes: list[oir.Node] = []
    no_shift: str | None = None
    for use in value.uses():
        node = use.node
        if node.graph is not value.graph:
            return f"'{value.name}' is read inside a branch or loop"
        here = _one(node, use.idx, scale, axis, depth)
        if isinstance(here, str):
            return here
        nodes += here.nodes
        no_shift = no_shift or here.no_shift
    if not nodes:
        return f"nothing reads '{value.name}'"
    return Sinks(tuple(nodes), no_shift)


def _one(node: oir.Node, index: int, scale: Array, axis: int | None, depth: int) -> Sinks | str:
    linear = as_linear(node)
    if not isinstance(linear, str) and index == 0:
        if axis is not None and (axis != linear.negative_axis or scale.size != linear.inputs):
            return f"its channels are not the input channels of {node.op_type} '{node.name}'"
        reason = linear.why_no_new_weight()
        return reason or Sinks((node,), linear.why_no_input_shift())
    kind = node.op_type if node.domain in ("", "ai.onnx") else ""
    passes_shift: str | None = None
    if kind in MOVES:
        if axis is not None or index != 0:
            return f"{kind} '{node.name}' may move its channels"
    elif kind in POSITIVE:
        if np.any(scale <= 0):
            return f"{kind} '{node.name}' needs a positive factor"
        if kind in ("Relu", "LeakyRelu"):
            passes_shift = f"{kind} '{node.name}' is not linear in a constant"
    elif kind in ("AveragePool", "GlobalAveragePool"):
        if kind == "AveragePool" and _counts_padding(node):
            passes_shift = f"AveragePool '{node.name}' averages padding"
    elif kind == "ReduceMean":
        if axis is not None:
            return f"ReduceMean '{node.name}' may reduce its channels"
    elif kind == "Mul":
        passes_shift = f"Mul '{node.name}' multiplies it with another tensor"
        if axis is not None and not _same_rank(node):
            return f"Mul '{node.name}' may broadcast its channels"
    else:
        return f"{node.op_type} '{node.name}' reads it"
    if len(node.outputs) > 1 and any(v.uses() for v in node.outputs[1:]):
        return f"{node.op_type} '{node.name}' has a second result"
    behind = find_sinks(node.outputs[0], scale, axis, depth - 1)
    if isinstance(behind, str):
        return behind
    return Sinks(behind.nodes, passes_shift or behind.no_shift)


def _counts_padding(node: oir.Node) -> bool:
    """Whether zeros from padding (or beyond the border) enter the averages."""
    pads = attribute(node, "pads", ())
    padded = isinstance(pads, tuple) and any(pads)
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    if node.attributes.get_int("ceil_mode", 0):
        return True
    return padded and attribute(node, "count_include_pad", 0) == 1


def _same_rank(node: oir.Node) -> bool:
    ranks = {None if v is None or v.shape is None else len(v.shape) for v in node.inputs}
    return len(ranks) == 1 and None not in ranks
