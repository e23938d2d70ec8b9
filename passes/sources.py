"""Which layer in front of a tensor can absorb a factor or constant that is applied to it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as oir

from qcompile.ir.graph import attribute, constant, single_consumer
from qcompile.passes.linear import Linear, as_linear

__all__ = ["Source", "find_source"]

NUMBER_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice"})
"""Operators that only move elements, so that a number may be applied before them instead."""


@dataclass(frozen=True)
class Source:
    """A layer whose result reaches a tensor through moves of data (or, for a factor, a MatMul).

    Attributes:
        linear: the layer; with its bias Add where moves follow.
        axis: the negative axis of a vector at the layer's result, None for a number.
        moved: whether there is anything between the layer and the tensor.
    """

    linear: Linear
    axis: int | None
    moved: bool


def find_source(value: oir.Value, axis: int | None, factor_only: bool) -> Source | str | None:
    """The layer, the reason why it cannot take part, or None where there is no layer.

    Args:
        value: the tensor to which something is applied.
        axis: negative axis of the vector that is applied, None for a number.
        factor_only: no constant is added, so the way may lead through a product of two tensors.
    """
    path = [value]
    while (before := _before(path[-1], axis, factor_only)) is not None:
        tensor, axis = before
        path.append(tensor)
    producer = path[-1].producer()
    if len(path) > 1 and producer is not None and producer.op_type == "Add":
        path.append(_data(producer) or path[-1])
        producer = path[-1].producer()
    linear = as_linear(producer, with_bias_add=len(path) > 1)
    if isinstance(linear, str):
        return None
    for tensor in path:
        if single_consumer(tensor) is None:
            return f"'{tensor.name}' is also read elsewhere"
    return Source(linear, axis, len(path) > 1)


def _data(add: oir.Node) -> oir.Value | None:
    """The operand of an Add that is not constant, if there is just one."""
    tensors = [v for v in add.inputs if v is not None and constant(v) is None]
    return tensors[0] if len(tensors) == 1 else None


def _before(
    value: oir.Value, axis: int | None, factor_only: bool
) -> tuple[oir.Value, int | None] | None:
    """The tensor that a move reads, and where the axis is there; None if ``value`` is not moved."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    source = node.inputs[0]
    if (
        node.op_type == "MatMul"
        and factor_only
        and axis is None
        and constant(node.inputs[1]) is None
    ):
        return None if source is None or constant(source) is not None else (source, None)
    if node.op_type not in NUMBER_MOVES:
        return None
    if source is None or axis is None:
        return None if source is None else (source, None)
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    wide = source if node.op_type == "Squeeze" else value
    axes: object = attribute(node, "axes")
    if len(node.inputs) > 1:
        stored = constant(node.inputs[1])
        axes = None if stored is None else tuple(int(a) for a in stored.reshape(-1))
    if wide.shape is None or not isinstance(axes, tuple):
        return None
    rank = len(wide.shape)
    gone = {int(a) % rank for a in axes}
    kept = [i for i in range(rank) if i not in gone]
    if node.op_type == "Squeeze":
        return source, kept[axis] - rank
    here = axis + rank
    return (source, kept.index(here) - len(kept)) if here in kept else None
