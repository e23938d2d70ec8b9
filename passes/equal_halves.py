"""Whether the two halves of a tensor's last axis are the same numbers, proven from the graph.

A rotary embedding turns channel i and channel i + n / 2 by one angle, so exporters write the table of n / 2
cosines twice, side by side. Nothing is looked at but constants and how tensors are made of each other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant
from qcompile.passes.tracker import Tracker

__all__ = ["halves_equal"]

DEEPEST = 16
"""Nodes that are followed."""


def halves_equal(value: oir.Value, tracker: Tracker, depth: int = DEEPEST) -> bool:
    """Whether ``value[..., : n // 2]`` is ``value[..., n // 2 :]`` to the bit, n even."""
    dims = tracker.dims(value)
    if not dims or not isinstance(width := dims[-1], int) or width % 2 or depth == 0:
        return False
    array = constant(value)
    if array is not None:
        half = width // 2
        return bool(np.array_equal(array[..., :half], array[..., half:]))
    node = value.producer()
    rule = None if node is None or node.domain not in ("", "ai.onnx") else _RULES.get(node.op_type)
    return node is not None and rule is not None and rule(node, tracker, depth - 1)


def _first(node: oir.Node, tracker: Tracker, depth: int) -> bool:
    source = node.inputs[0]
    return source is not None and halves_equal(source, tracker, depth)


def _joined(node: oir.Node, tracker: Tracker, depth: int) -> bool:
    """The same tensors twice along the last axis, or such tensors along another."""
    dims = tracker.dims(node.outputs[0])
    axis = attribute(node, "axis")
    if dims is None or not isinstance(axis, int):
        return False
    parts = [part for part in node.inputs if part is not None]
    if axis % len(dims) != len(dims) - 1:
        return all(halves_equal(part, tracker, depth) for part in parts)
    half = len(parts) // 2
    return len(parts) % 2 == 0 and all(
        a is b for a, b in zip(parts[:half], parts[half:], strict=True)
    )


def _elementwise(node: oir.Node, tracker: Tracker, depth: int) -> bool:
    """Each operand repeats itself, or is one number along the last axis."""
    return all(
        part is not None and (_one_last(part, tracker) or halves_equal(part, tracker, depth))
        for part in node.inputs
    )


def _one_last(value: oir.Value, tracker: Tracker) -> bool:
    dims = tracker.dims(value)
    return dims is not None and (not dims or dims[-1] == 1)


def _product(node: oir.Node, tracker: Tracker, depth: int) -> bool:
    """Columns of a product are those of its right side."""
    right = node.inputs[1]
    if right is None or len(tracker.dims(right) or ()) < 2:
        return False
    return halves_equal(right, tracker, depth)


def _same_last(node: oir.Node, tracker: Tracker, depth: int) -> bool:
    """The last axis goes through as it is: rows of it are moved, dropped or repeated."""
    source, out = node.inputs[0], node.outputs[0]
    before, after = tracker.dims(source), tracker.dims(out)
    if not before or not after or before[-1] != after[-1]:
        return False
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        if not isinstance(perm, tuple) or perm[-1] != len(before) - 1:
            return False
    if node.op_type == "Gather":
        axis = attribute(node, "axis", 0)
        if not isinstance(axis, int) or axis % len(before) == len(before) - 1:
            return False
    if node.op_type == "Slice" and not _other_axes(node, len(before)):
        return False
    return _first(node, tracker, depth)


def _other_axes(node: oir.Node, rank: int) -> bool:
    """Whether a Slice leaves the last axis alone."""
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    return axes is not None and all(int(a) % rank != rank - 1 for a in axes.reshape(-1))


_RULES: dict[str, Callable[[oir.Node, Tracker, int], bool]] = {
    **dict.fromkeys(("Cast", "Cos", "Identity", "Neg", "Sin"), _first),
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), _elementwise),
    **dict.fromkeys(
        ("Expand", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"), _same_last
    ),
    "Concat": _joined,
    "MatMul": _product,
}
