"""Shapes that a graph computes for itself: Shape, Slice, Concat ... feeding Reshape.

ONNX's inference gives up on a Reshape whose target is not constant, and with it on all that
follows. Here small integer vectors are followed element by element, each an integer, a named
dimension or unknown; a target's length alone already gives the rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant

__all__ = ["complete_shapes", "own_name"]

Element = int | str | None
"""An integer, a named dimension, or unknown."""

_LONGEST = 64


def complete_shapes(graph: oir.Graph) -> set[oir.Value]:
    """Fill in what the outputs of Reshape, Expand and ConstantOfShape lack; returns those improved."""
    known: dict[oir.Value, list[Element] | None] = {}
    improved: set[oir.Value] = set()
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                known[value] = _constant_elements(value)
        known.update(dict.fromkeys(node.outputs))
        if node.domain or not node.outputs:
            continue
        known[node.outputs[0]] = _elements(node, known)
        before, found = _dims(node.outputs[0]), _output_dims(node, known)
        if found is None or (before is not None and len(before) != len(found)):
            continue
        after = found if before is None else list(map(_better, before, found))
        if after != before:
            node.outputs[0].shape = oir.Shape(after)
            improved.add(node.outputs[0])
    return improved


def own_name(name: str | None) -> str | None:
    """The name of a dimension, or None for those ("unk__7") that ONNX gives to the unknown."""
    return None if name is None or name.startswith("unk__") else name


def _better(old: Element, new: Element) -> Element:
    """The old element, unless it is unknown and the new one is not."""
    made_up = old is None or (isinstance(old, str) and own_name(old) is None)
    named = new is not None and not (isinstance(new, str) and own_name(new) is None)
    return new if made_up and named else old


def _constant_elements(value: oir.Value) -> list[Element] | None:
    tensor = value.const_value
    if tensor is not None and (not tensor.dtype.is_integer() or tensor.size > _LONGEST):
        return None
    array = constant(value)
    if array is None or array.dtype.kind not in "iu" or array.size > _LONGEST or array.ndim > 1:
        return None
    return [int(v) for v in array.reshape(-1)]


def _dims(value: oir.Value | None) -> list[Element] | None:
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def _elements(node: oir.Node, known: dict[oir.Value, list[Element] | None]) -> list[Element] | None:
    """The elements of a node's first output, if it is a small vector that can be followed."""
    inputs = [known.get(v) if v is not None else None for v in node.inputs]
    first = inputs[0] if inputs else None
    op = node.op_type
    if op == "Constant":
        return _constant_elements(node.outputs[0])
    if op == "Shape":
        dims = _dims(node.inputs[0])
        start, end = attribute(node, "start", 0), attribute(node, "end", None)
        if dims is None or not isinstance(start, int):
            return None
        return dims[start : end if isinstance(end, int) else None]
    if op == "Concat" and all(p is not None for p in inputs):
        return [e for part in inputs if part is not None for e in part][:_LONGEST]
    if first is None:
        return None
    if op in {"Cast", "Identity", "Squeeze", "Unsqueeze"}:
        return first
    if op == "Gather" and len(inputs) > 1 and inputs[1] is not None:
        places = [p for p in inputs[1] if isinstance(p, int) and -len(first) <= p < len(first)]
        return [first[p] for p in places] if len(places) == len(inputs[1]) else None
    if op == "Slice":
        return _sliced(node, first, inputs)
    if op in {"Add", "Sub", "Mul", "Div"} and len(inputs) == 2 and inputs[1] is not None:
        return _arithmetic(op, first, inputs[1])
    return None


def _sliced(
    node: oir.Node, first: list[Element], inputs: Sequence[list[Element] | None]
) -> list[Element] | None:
    if "starts" in node.attributes:
        starts, ends = attribute(node, "starts"), attribute(node, "ends")
        if isinstance(starts, tuple) and isinstance(ends, tuple):
            return first[int(starts[0]) : int(ends[0])]
        return None
    starts, ends = inputs[1], inputs[2] if len(inputs) > 2 else None
    step = inputs[4] if len(inputs) > 4 else [1]
    if starts is None or ends is None or step is None:
        return None
    bounds = (starts[0], ends[0], step[0])
    if len(starts) != 1 or not all(isinstance(b, int) for b in bounds):
        return None
    low, high, stride = (b for b in bounds if isinstance(b, int))
    return first[low:high:stride] if stride > 0 else None


def _arithmetic(op: str, a: list[Element], b: list[Element]) -> list[Element] | None:
    if len(a) != len(b):
        if 1 not in (len(a), len(b)):
            return None
        a, b = (a * len(b), b) if len(a) == 1 else (a, b * len(a))
    out: list[Element] = []
    for x, y in zip(a, b, strict=True):
        if not isinstance(x, int) or not isinstance(y, int) or (op == "Div" and not y):
            out.append(None)
        else:
            quotient = int(np.trunc(x / y)) if op == "Div" else 0
            out.append({"Add": x + y, "Sub": x - y, "Mul": x * y, "Div": quotient}[op])
    return out


def _output_dims(
    node: oir.Node, known: dict[oir.Value, list[Element] | None]
) -> list[Element] | None:
    index = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}.get(node.op_type)
    if index is None or len(node.inputs) <= index:
        return None
    wanted = node.inputs[index]
    if wanted is None:
        return None
    target = known.get(wanted)
    if target is None:
        length = _dims(wanted)
        if not length or not isinstance(length[0], int):
            return None
        target = [None] * length[0]
        return target if node.op_type != "Expand" else None
    source = _dims(node.inputs[0])
    if node.op_type == "ConstantOfShape":
        return [d if d != -1 else None for d in target]
    if node.op_type == "Expand":
        return _broadcast(source, target)
    return _reshaped(source, target, attribute(node, "allowzero", 0) == 1)


def _broadcast(source: list[Element] | None, target: list[Element]) -> list[Element] | None:
    if source is None:
        return None
    rank = max(len(source), len(target))
    a = [1] * (rank - len(source)) + source
    b = [1] * (rank - len(target)) + target
    return [y if x == 1 else x if y in {1, x} else None for x, y in zip(a, b, strict=True)]


def _reshaped(
    source: list[Element] | None, target: list[Element], allow_zero: bool
) -> list[Element]:
    dims = list(target)
    if not allow_zero:
        for i, one in enumerate(dims):
            if one == 0:
                dims[i] = source[i] if source is not None and i < len(source) else None
    if dims.count(-1) == 1:
        dims[dims.index(-1)] = _rest(source, [d for d in dims if d != -1])
    return [d if d != -1 else None for d in dims]


def _rest(source: list[Element] | None, others: list[Element]) -> Element:
    """What -1 stands for: the source's elements over the others', named dimensions cancelled."""
    if source is None or None in others:
        return None
    left = list(source)
    for one in [d for d in others if isinstance(d, str)]:
        if one not in left:
            return None
        left.remove(one)
    divisor = math.prod(d for d in others if isinstance(d, int))
    names = [d for d in left if not isinstance(d, int)]
    number = math.prod(d for d in left if isinstance(d, int))
    if not names and divisor and number % divisor == 0:
        return number // divisor
    return names[0] if len(names) == 1 and number == divisor else None
