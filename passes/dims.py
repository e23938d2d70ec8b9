"""Shapes with provenance: which dimensions of which tensors are the same number.

A dimension is an int, or a token: a string that names an unknown number, "batch" for a symbolic
dimension of an input, "tensor:2" for one that arises at a tensor. Equal tokens are equal numbers. The same
holds for the elements of small integer tensors, so ``Concat(Shape(x)[0], 12, -1)`` is
``("batch", 12, -1)``. Tokens are never guessed from symbols that shape inference or an exporter
wrote on inner tensors, because those are not always true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant

__all__ = ["Dim", "Dims", "Tracker"]

Dim = int | str
Dims = tuple[Dim, ...]
MAX_ELEMENTS = 64

# fmt: off
SAME_SHAPE = frozenset(
    {
        "Abs", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "CumSum", "Dropout", "Elu", "Erf",
        "Exp", "FastGelu", "Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish",
        "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax",
        "Mish", "Neg", "Not", "PRelu", "QuickGelu", "RMSNormalization", "Reciprocal", "Relu", "Round",
        "Selu", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh", "Trilu"
    }
)
BROADCAST = frozenset(
    {
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min",
        "Mod", "Mul", "Or", "Pow", "Sub", "Where"
    }
)
POOLS = frozenset(
    {
        "AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "LpPool",
        "MaxPool"
    }
)
# fmt: on


class Tracker:
    """Dimensions of tensors and elements of integer vectors of one graph, computed in graph order."""

    def __init__(self, graph: oir.Graph) -> None:
        """Walk the whole graph once."""
        self._dims: dict[oir.Value, Dims | None] = {}
        self._elements: dict[oir.Value, Dims | None] = {}
        for value in graph.inputs:
            self._dims[value] = _input_dims(value)
        for node in graph:
            self.visit(node)

    def dims(self, value: oir.Value | None) -> Dims | None:
        """The shape of a tensor, None when not even the rank is known."""
        if value is None:
            return None
        if value not in self._dims:
            array = constant(value)
            self._dims[value] = self._stated(value) if array is None else tuple(array.shape)
        return self._dims[value]

    def elements(self, value: oir.Value | None) -> Dims | None:
        """The elements of a small integer tensor of rank 0 or 1."""
        if value is None:
            return None
        if value not in self._elements:
            array = constant(value)
            known = array is not None and array.ndim <= 1 and array.size <= MAX_ELEMENTS
            if array is not None and known and array.dtype.kind in "iu":
                self._elements[value] = tuple(int(i) for i in array.reshape(-1))
            else:
                self._elements[value] = None
        return self._elements[value]

    def visit(self, node: oir.Node) -> None:
        """Compute what ``node`` yields from what it reads (again, after an edit)."""
        if node.domain not in ("", "ai.onnx", "com.microsoft"):
            return
        out = node.outputs[0]
        if node.op_type == "Split":
            for one in node.outputs:
                self._dims[one] = self._merge(one, self._partly(node, 0, _axis(node, 0)))
            return
        rule = ELEMENT_RULES.get(node.op_type)
        if rule is not None:
            self._elements[out] = rule(self, node)
        found = self._shape_of(node)
        if found is None and (elements := self._elements.get(out)) is not None:
            rank = None if out.shape is None else len(out.shape)
            found = () if rank == 0 else (len(elements),)
        merged = self._merge(out, found)
        self._dims[out] = merged
        if merged is not None and len(merged) > 1:
            self._elements[out] = None

    def _shape_of(self, node: oir.Node) -> Dims | None:
        kind = node.op_type
        first = self.dims(node.inputs[0]) if node.inputs else None
        if kind in SAME_SHAPE:
            return first
        if kind in BROADCAST:
            return _broadcast([self.dims(v) for v in node.inputs], str(node.outputs[0].name))
        if kind == "MatMul":
            return _matmul(first, self.dims(node.inputs[1]), str(node.outputs[0].name))
        if kind == "Gemm":
            return self._gemm(node)
        if kind in POOLS:
            return self._spatial(node)
        rule = SHAPE_RULES.get(kind)
        return None if rule is None else rule(self, node)

    def _stated(self, value: oir.Value) -> Dims | None:
        """What the value itself says: its rank and fixed dimensions."""
        if value.shape is None:
            return None
        return tuple(
            d if isinstance(d, int) else f"{value.name}:{i}" for i, d in enumerate(value.shape)
        )

    def _merge(self, value: oir.Value, found: Dims | None) -> Dims | None:
        """Prefer an int from either source, then the token that was found."""
        stated = self._stated(value)
        if found is None or stated is None or len(found) != len(stated):
            return stated if found is None else found
        return tuple(s if isinstance(s, int) else f for s, f in zip(stated, found, strict=True))

    def _partly(self, node: oir.Node, index: int, *axes: int | None) -> Dims | None:
        """The shape of an input with the dimensions along ``axes`` unknown."""
        dims = self.dims(node.inputs[index])
        if dims is None or None in axes:
            return None
        fresh = list(dims)
        for axis in axes:
            if axis is not None and -len(dims) <= axis < len(dims):
                fresh[axis] = f"{node.outputs[0].name}:{axis % len(dims)}"
        return tuple(fresh)

    def _gemm(self, node: oir.Node) -> Dims | None:
        a, b = self.dims(node.inputs[0]), self.dims(node.inputs[1])
        if a is None or b is None or len(a) != 2 or len(b) != 2:
            return None
        rows = a[1] if node.attributes.get_int("transA", 0) else a[0]
        return rows, b[0] if node.attributes.get_int("transB", 0) else b[1]

    def _spatial(self, node: oir.Node) -> Dims | None:
        """Batch and channels of Conv and pools; spatial dimensions as stated."""
        dims = self.dims(node.inputs[0])
        if dims is None or len(dims) < 3:
            return None
        channels: Dim = dims[1]
        if node.op_type.startswith("Conv"):
            weight = self.dims(node.inputs[1])
            if weight is None:
                return None
            transposed = node.op_type == "ConvTranspose"
            channels = weight[1] if transposed else weight[0]
            group = node.attributes.get_int("group", 1)
            if transposed:
                channels = (
                    channels * group if isinstance(channels, int) else f"{node.outputs[0].name}:1"
                )
        if node.op_type.startswith("Global"):
            return (dims[0], channels, *(1 for _ in dims[2:]))
        return (dims[0], channels, *(f"{node.outputs[0].name}:{i}" for i in range(2, len(dims))))

    def reshape(self, node: oir.Node) -> Dims | None:
        """The result of a Reshape, with a -1 resolved by cancelling equal factors."""
        dims, target = self.dims(node.inputs[0]), self.elements(node.inputs[1])
        if target is None:
            return None
        if not node.attributes.get_int("allowzero", 0):
            if any(t == 0 and (dims is None or i >= len(dims)) for i, t in enumerate(target)):
                return None
            target = tuple(
                dims[i] if t == 0 and dims is not None else t for i, t in enumerate(target)
            )
        if -1 not in target:
            return target
        at = target.index(-1)
        rest = None if dims is None else _quotient(dims, target[:at] + target[at + 1 :])
        missing: Dim = f"{node.outputs[0].name}:{at}" if rest is None else rest
        return (*target[:at], missing, *target[at + 1 :])


def _input_dims(value: oir.Value) -> Dims | None:
    if value.shape is None:
        return None
    names = Counter(d.value for d in value.shape if isinstance(d, oir.SymbolicDim) and d.value)
    dims: list[Dim] = []
    for i, d in enumerate(value.shape):
        symbol = d.value if isinstance(d, oir.SymbolicDim) else None
        # A symbol written on two axes of one input is rarely meant as "these are equal".
        unique = symbol is not None and names[symbol] == 1
        dims.append(d if isinstance(d, int) else f"{symbol}" if unique else f"{value.name}:{i}")
    return tuple(dims)


def _axis(node: oir.Node, default: int) -> int:
    return int(node.attributes.get_int("axis", default))


def _broadcast(shapes: Sequence[Dims | None], name: str) -> Dims | None:
    """The shape of an elementwise result; ``name`` makes tokens where two unknown numbers meet."""
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return None
    rank = max(len(s) for s in known)
    result: list[Dim] = []
    for i in range(-rank, 0):
        here = {s[i] for s in known if len(s) >= -i} - {1}
        ints = [d for d in here if isinstance(d, int)]
        if len(here) > 1 and not ints:
            result.append(f"{name}:{i + rank}")  # which of the two may be 1 is not known
        else:
            result.append(ints[0] if ints else next(iter(here), 1))
    return tuple(result)


def _matmul(a: Dims | None, b: Dims | None, name: str) -> Dims | None:
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = _broadcast([a[:-2], b[:-2]], name)
    return None if batch is None else (*batch, a[-2], b[-1])


def _quotient(dims: Dims, divisors: Dims) -> Dim | None:
    """prod(dims) / prod(divisors) if that is an int or one token."""
    left = Counter(d for d in dims if isinstance(d, str))
    left.subtract(Counter(d for d in divisors if isinstance(d, str)))
    tokens = +left
    if -left or sum(tokens.values()) > 1:
        return None
    top = int(np.prod([d for d in dims if isinstance(d, int)], dtype=np.int64))
    bottom = int(np.prod([d for d in divisors if isinstance(d, int)], dtype=np.int64))
    if bottom == 0 or top % bottom:
        return None
    number = top // bottom
    if not tokens:
        return number
    return next(iter(tokens)) if number == 1 else None


def _transpose(t: Tracker, node: oir.Node) -> Dims | None:
    dims = t.dims(node.inputs[0])
    perm = attribute(node, "perm")
    if dims is None:
        return None
    return tuple(dims[i] for i in perm) if isinstance(perm, tuple) else dims[::-1]


def _axes_of(t: Tracker, node: oir.Node, index: int = 1) -> list[int] | None:
    """Axes as attribute or input; None if absent or unknown."""
    axes = attribute(node, "axes")
    if isinstance(axes, tuple):
        return [int(a) for a in axes]
    found = t.elements(node.inputs[index]) if len(node.inputs) > index else None
    if found is None or not all(isinstance(a, int) for a in found):
        return None
    return [int(a) for a in found]


def _unsqueeze(t: Tracker, node: oir.Node) -> Dims | None:
    dims, axes = t.dims(node.inputs[0]), _axes_of(t, node)
    if dims is None or axes is None:
        return None
    rank = len(dims) + len(axes)
    ones = {a % rank for a in axes}
    rest = iter(dims)
    return tuple(1 if i in ones else next(rest) for i in range(rank))


def _squeeze(t: Tracker, node: oir.Node) -> Dims | None:
    dims, axes = t.dims(node.inputs[0]), _axes_of(t, node)
    if dims is None or axes is None:
        return None
    gone = {a % len(dims) for a in axes}
    return tuple(d for i, d in enumerate(dims) if i not in gone)


def _reduce(t: Tracker, node: oir.Node) -> Dims | None:
    dims, axes = t.dims(node.inputs[0]), _axes_of(t, node)
    if dims is None or axes is None or not axes:
        return None
    gone = {a % len(dims) for a in axes}
    if node.attributes.get_int("keepdims", 1):
        return tuple(1 if i in gone else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in gone)


def _expand(t: Tracker, node: oir.Node) -> Dims | None:
    return _broadcast(
        [t.dims(node.inputs[0]), t.elements(node.inputs[1])], str(node.outputs[0].name)
    )


def _slice(t: Tracker, node: oir.Node) -> Dims | None:
    dims = t.dims(node.inputs[0])
    axes = t.elements(node.inputs[3]) if len(node.inputs) > 3 else None
    if dims is None or len(node.inputs) < 3:
        return None
    if axes is None:
        starts = t.elements(node.inputs[1])
        axes = None if starts is None or len(node.inputs) > 3 else tuple(range(len(starts)))
    if axes is None or not all(isinstance(a, int) for a in axes):
        return None
    return t._partly(node, 0, *(int(a) for a in axes))


def _concat(t: Tracker, node: oir.Node) -> Dims | None:
    shapes = [t.dims(v) for v in node.inputs]
    axis = _axis(node, 0)
    known = [s for s in shapes if s is not None]
    if len(known) != len(shapes) or not known:
        return None
    sizes = [s[axis] for s in known]
    total = sum(s for s in sizes if isinstance(s, int))
    result = list(known[0])
    fixed = all(isinstance(s, int) for s in sizes)
    result[axis] = total if fixed else f"{node.outputs[0].name}:{axis % len(result)}"
    return tuple(result)


def _gather(t: Tracker, node: oir.Node) -> Dims | None:
    data, index = t.dims(node.inputs[0]), t.dims(node.inputs[1])
    if data is None or index is None:
        return None
    axis = _axis(node, 0) % len(data)
    return (*data[:axis], *index, *data[axis + 1 :])


def _constant_of_shape(t: Tracker, node: oir.Node) -> Dims | None:
    return t.elements(node.inputs[0])


def _pad(t: Tracker, node: oir.Node) -> Dims | None:
    dims, pads = (
        t.dims(node.inputs[0]),
        t.elements(node.inputs[1]) if len(node.inputs) > 1 else None,
    )
    if dims is None or pads is None or len(pads) != 2 * len(dims):
        return None
    return t._partly(node, 0, *(i for i in range(len(dims)) if pads[i] or pads[i + len(dims)]))


SHAPE_RULES: dict[str, Callable[[Tracker, oir.Node], Dims | None]] = {
    "Reshape": Tracker.reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Slice": _slice,
    "Concat": _concat,
    "Gather": _gather,
    "Pad": _pad,
    "ConstantOfShape": _constant_of_shape,
    **{f"Reduce{k}": _reduce for k in ("Mean", "Sum", "Max", "Min", "L2", "Prod", "SumSquare")},
}


def _shape_elements(t: Tracker, node: oir.Node) -> Dims | None:
    dims = t.dims(node.inputs[0])
    if dims is None:
        return None
    start = node.attributes.get_int("start", 0)
    return dims[start : node.attributes.get_int("end", len(dims))]


def _same_elements(t: Tracker, node: oir.Node) -> Dims | None:
    return t.elements(node.inputs[0])


def _cast_elements(t: Tracker, node: oir.Node) -> Dims | None:
    if node.attributes.get_int("to", 0) not in (int(oir.DataType.INT32), int(oir.DataType.INT64)):
        return None
    return t.elements(node.inputs[0])


def _gather_elements(t: Tracker, node: oir.Node) -> Dims | None:
    data, index = t.elements(node.inputs[0]), t.elements(node.inputs[1])
    rank = t.dims(node.inputs[0])
    if (
        data is None
        or index is None
        or rank is None
        or len(rank) != 1
        or _axis(node, 0) not in (0, -1)
    ):
        return None
    if not all(isinstance(i, int) and -len(data) <= i < len(data) for i in index):
        return None
    return tuple(data[int(i)] for i in index)


def _slice_elements(t: Tracker, node: oir.Node) -> Dims | None:
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


def _concat_elements(t: Tracker, node: oir.Node) -> Dims | None:
    parts = [t.elements(v) for v in node.inputs]
    if any(p is None for p in parts) or any(len(t.dims(v) or ()) != 1 for v in node.inputs):
        return None
    joined = tuple(e for p in parts if p is not None for e in p)
    return joined if len(joined) <= MAX_ELEMENTS else None


def _arithmetic(t: Tracker, node: oir.Node) -> Dims | None:
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
    if not isinstance(x, int) or not isinstance(y, int):
        return None
    if kind == "Div":
        return x // y if x >= 0 and y > 0 else None
    return {"Add": x + y, "Sub": x - y, "Mul": x * y}[kind]


ELEMENT_RULES: dict[str, Callable[[Tracker, oir.Node], Dims | None]] = {
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
}
