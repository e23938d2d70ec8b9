"""The elements of a small integer tensor, from those that its producer reads: shape arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute
from qcompile.passes.dims import MAX_ELEMENTS, Dim, Dims, Known, total

__all__ = ["ELEMENT_RULES"]


def _shape_elements(t: Known, node: oir.Node) -> Dims | None:
    dims = t.dims(node.inputs[0])
    if dims is None:
        return None
    start = node.attributes.get_int("start", 0)
    return dims[start : node.attributes.get_int("end", len(dims))]


def _same_elements(t: Known, node: oir.Node) -> Dims | None:
    return t.elements(node.inputs[0])


def _cast_elements(t: Known, node: oir.Node) -> Dims | None:
    if node.attributes.get_int("to", 0) not in (int(oir.DataType.INT32), int(oir.DataType.INT64)):
        return None
    return t.elements(node.inputs[0])


def _gather_elements(t: Known, node: oir.Node) -> Dims | None:
    data, index = t.elements(node.inputs[0]), t.elements(node.inputs[1])
    rank = t.dims(node.inputs[0])
    if (
        data is None
        or index is None
        or rank is None
        or len(rank) != 1
        or node.attributes.get_int("axis", 0) not in (0, -1)
    ):
        return None
    if not all(isinstance(i, int) and -len(data) <= i < len(data) for i in index):
        return None
    return tuple(data[int(i)] for i in index)


def _slice_elements(t: Known, node: oir.Node) -> Dims | None:
    if len(node.inputs) < 3:
        return None
    data, *rest = (t.elements(v) for v in node.inputs)
    start, end = rest[0], rest[1]
    step = rest[3] if len(rest) > 3 else (1,)
    if data is None or start is None or end is None or step is None or len(start) != 1:
        return None
    bounds = (start[0], end[0], step[0])
    if not all(isinstance(b, int) for b in bounds) or bounds[2] == 0:
        return None
    first, last, by = (int(b) for b in bounds)
    if by < 0 and last < -len(data):
        return data[first::by]
    return data[first:last:by]


def _concat_elements(t: Known, node: oir.Node) -> Dims | None:
    parts = [t.elements(v) for v in node.inputs]
    if any(p is None for p in parts) or any(len(t.dims(v) or ()) != 1 for v in node.inputs):
        return None
    joined = tuple(e for p in parts if p is not None for e in p)
    return joined if len(joined) <= MAX_ELEMENTS else None


def _arithmetic(t: Known, node: oir.Node) -> Dims | None:
    a, b = t.elements(node.inputs[0]), t.elements(node.inputs[1])
    if not a or not b or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    size = max(len(a), len(b))
    result: list[Dim] = []
    for i, (x, y) in enumerate(zip(a * (size // len(a)), b * (size // len(b)), strict=True)):
        one = _calculate(node.op_type, x, y)
        result.append(f"{node.outputs[0].name}#{i}" if one is None else one)
    return tuple(result)


def _calculate(kind: str, x: Dim, y: Dim) -> Dim | None:
    """The number or token that ``x kind y`` is, None if it is a new unknown."""
    neutral = 1 if kind in ("Mul", "Div") else 0
    if y == neutral:
        return x
    if x == neutral and kind in ("Mul", "Add"):
        return y
    if kind == "Add":
        return total((x, y))
    if kind == "Sub" and isinstance(y, int):
        return total((x, -y))
    if not isinstance(x, int) or not isinstance(y, int):
        return None
    if kind == "Div":
        return x // y if x >= 0 and y > 0 else None
    return x * y if kind == "Mul" else None


def _equal_elements(t: Known, node: oir.Node) -> Dims | None:
    """1 or 0 for each pair of numbers; a dimension is never negative."""
    a, b = t.elements(node.inputs[0]), t.elements(node.inputs[1])
    if not a or not b or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    size = max(len(a), len(b))
    result: list[Dim] = []
    for x, y in zip(a * (size // len(a)), b * (size // len(b)), strict=True):
        if isinstance(x, int) and isinstance(y, int):
            result.append(int(x == y))
        elif (isinstance(x, int) and x < 0) or (isinstance(y, int) and y < 0):
            result.append(0)
        else:
            return None
    return tuple(result)


def _where_elements(t: Known, node: oir.Node) -> Dims | None:
    flags, a, b = (t.elements(v) for v in node.inputs)
    if not flags or not a or not b:
        return None
    size = max(len(flags), len(a), len(b))
    if any(len(one) not in (1, size) for one in (flags, a, b)):
        return None
    flags, a, b = (one * (size // len(one)) for one in (flags, a, b))
    if not all(isinstance(f, int) for f in flags):
        return None
    return tuple(x if f else y for f, x, y in zip(flags, a, b, strict=True))


def _filled_elements(t: Known, node: oir.Node) -> Dims | None:
    size = t.elements(node.inputs[0])
    if size is None or len(size) != 1 or not isinstance(size[0], int) or size[0] > MAX_ELEMENTS:
        return None
    filler = attribute(node, "value")
    number = (
        0
        if filler is None
        else np.asarray(getattr(filler, "numpy", lambda: filler)()).reshape(-1)[0]
    )
    return (int(number),) * size[0] if float(number).is_integer() else None


ELEMENT_RULES: dict[str, Callable[[Known, oir.Node], Dims | None]] = {
    "Shape": _shape_elements,
    "Identity": _same_elements,
    "Unsqueeze": _same_elements,
    "Squeeze": _same_elements,
    "Reshape": _same_elements,
    "Cast": _cast_elements,
    "Gather": _gather_elements,
    "Slice": _slice_elements,
    "Concat": _concat_elements,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Equal": _equal_elements,
    "Where": _where_elements,
    "ConstantOfShape": _filled_elements,
}
