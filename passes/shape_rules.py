"""The shape of what a node yields, from the shapes of what it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute
from qcompile.passes.dims import Dim, Dims, Known, total

__all__ = ["SHAPE_RULES"]

# fmt: off
SAME_SHAPE = frozenset(
    {
        "Abs", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "CumSum", "Dropout", "Elu", "Erf",
        "Exp", "FastGelu", "Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish",
        "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax",
        "Mish", "Neg", "Not", "PRelu", "QuickGelu", "RMSNormalization", "Reciprocal", "Relu", "Round",
        "RotaryEmbedding", "Selu", "Sigmoid", "Sign", "SimplifiedLayerNormalization", "Sin",
        "SkipSimplifiedLayerNormalization", "Softmax", "Softplus", "Sqrt", "Tanh", "Trilu"
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


def _transpose(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    dims = t.dims(node.inputs[0])
    perm = attribute(node, "perm")
    if dims is None:
        return None
    return tuple(dims[i] for i in perm) if isinstance(perm, tuple) else dims[::-1]


def _axes_of(t: Known, node: oir.Node, index: int = 1) -> list[int] | None:
    """Axes as attribute or input; None if absent or unknown."""
    axes = attribute(node, "axes")
    if isinstance(axes, tuple):
        return [int(a) for a in axes]
    found = t.elements(node.inputs[index]) if len(node.inputs) > index else None
    if found is None or not all(isinstance(a, int) for a in found):
        return None
    return [int(a) for a in found]


def _unsqueeze(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    dims, axes = t.dims(node.inputs[0]), _axes_of(t, node)
    if dims is None or axes is None:
        return None
    rank = len(dims) + len(axes)
    ones = {a % rank for a in axes}
    rest = iter(dims)
    return tuple(1 if i in ones else next(rest) for i in range(rank))


def _squeeze(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    dims, axes = t.dims(node.inputs[0]), _axes_of(t, node)
    if dims is None or axes is None:
        return None
    gone = {a % len(dims) for a in axes}
    return tuple(d for i, d in enumerate(dims) if i not in gone)


def _reduce(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    dims, axes = t.dims(node.inputs[0]), _axes_of(t, node)
    if dims is None or axes is None or not axes:
        return None
    gone = {a % len(dims) for a in axes}
    if node.attributes.get_int("keepdims", 1):
        return tuple(1 if i in gone else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in gone)


def _expand(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    return _broadcast([t.dims(node.inputs[0]), t.elements(node.inputs[1])], str(out.name))


def _slice(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    dims = t.dims(node.inputs[0])
    axes = t.elements(node.inputs[3]) if len(node.inputs) > 3 else None
    if dims is None or len(node.inputs) < 3:
        return None
    if axes is None:
        starts = t.elements(node.inputs[1])
        axes = None if starts is None or len(node.inputs) > 3 else tuple(range(len(starts)))
    if axes is None or not all(isinstance(a, int) for a in axes):
        return None
    return _partly(t, node, out, *(int(a) for a in axes))


def _concat(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    shapes = [t.dims(v) for v in node.inputs]
    axis = _axis(node, 0)
    known = [s for s in shapes if s is not None]
    if len(known) != len(shapes) or not known:
        return None
    result = list(known[0])
    result[axis] = total(s[axis] for s in known)
    return tuple(result)


def _gather(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    data, index = t.dims(node.inputs[0]), t.dims(node.inputs[1])
    if data is None or index is None:
        return None
    axis = _axis(node, 0) % len(data)
    return (*data[:axis], *index, *data[axis + 1 :])


def _constant_of_shape(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    return t.elements(node.inputs[0])


def _pad(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    dims, pads = (
        t.dims(node.inputs[0]),
        t.elements(node.inputs[1]) if len(node.inputs) > 1 else None,
    )
    if dims is None or pads is None or len(pads) != 2 * len(dims):
        return None
    return _partly(t, node, out, *(i for i in range(len(dims)) if pads[i] or pads[i + len(dims)]))


def _same_shape(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    return t.dims(node.inputs[0])


def _elementwise(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    return _broadcast([t.dims(v) for v in node.inputs], str(out.name))


def _matmul(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    a, b = t.dims(node.inputs[0]), t.dims(node.inputs[1])
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = _broadcast([a[:-2], b[:-2]], str(out.name))
    return None if batch is None else (*batch, a[-2], b[-1])


def _packed_matmul(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    """A product with a matrix that is stored in few bits, N by K."""
    x, columns = t.dims(node.inputs[0]), attribute(node, "N")
    return None if not x or not isinstance(columns, int) else (*x[:-1], columns)


def _packed_lookup(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    """Rows of a table that is stored in few bits; how wide they are is what was stated."""
    index, stated = t.dims(node.inputs[1]), out.shape
    if index is None or stated is None or attribute(node, "gather_axis", 0) != 0:
        return None
    width = stated[-1] if len(stated) == len(index) + 1 else None
    return (*index, width) if isinstance(width, int) else None


def _gemm(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    a, b = t.dims(node.inputs[0]), t.dims(node.inputs[1])
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    rows = a[1] if node.attributes.get_int("transA", 0) else a[0]
    return rows, b[0] if node.attributes.get_int("transB", 0) else b[1]


def _spatial(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    """Batch and channels of Conv and pools; spatial dimensions as stated."""
    dims = t.dims(node.inputs[0])
    if dims is None or len(dims) < 3:
        return None
    channels: Dim = dims[1]
    if node.op_type.startswith("Conv"):
        weight = t.dims(node.inputs[1])
        if weight is None:
            return None
        channels = weight[0]
        if node.op_type == "ConvTranspose":
            group, per_group = node.attributes.get_int("group", 1), weight[1]
            channels = per_group * group if isinstance(per_group, int) else f"{out.name}:1"
    if node.op_type.startswith("Global"):
        return (dims[0], channels, *(1 for _ in dims[2:]))
    return (dims[0], channels, *(f"{out.name}:{i}" for i in range(2, len(dims))))


def _reshape(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    """The result of a Reshape, with a -1 resolved by cancelling equal factors."""
    dims, target = t.dims(node.inputs[0]), t.elements(node.inputs[1])
    if target is None:
        return None
    if not node.attributes.get_int("allowzero", 0):
        if any(d == 0 and (dims is None or i >= len(dims)) for i, d in enumerate(target)):
            return None
        target = tuple(dims[i] if d == 0 and dims is not None else d for i, d in enumerate(target))
    if -1 not in target:
        return target
    at = target.index(-1)
    rest = None if dims is None else _quotient(dims, target[:at] + target[at + 1 :])
    missing: Dim = f"{out.name}:{at}" if rest is None else rest
    return (*target[:at], missing, *target[at + 1 :])


def _split(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    return _partly(t, node, out, _axis(node, 0))


def _partly(t: Known, node: oir.Node, out: oir.Value, *axes: int) -> Dims | None:
    """The shape of the first input with the dimensions along ``axes`` unknown."""
    dims = t.dims(node.inputs[0])
    if dims is None:
        return None
    fresh = list(dims)
    for axis in axes:
        if -len(dims) <= axis < len(dims):
            fresh[axis] = f"{out.name}:{axis % len(dims)}"
    return tuple(fresh)


def _range(t: Known, node: oir.Node, out: oir.Value) -> Dims | None:
    start, limit, step = (t.elements(v) for v in node.inputs)
    return (
        limit if start == (0,) and step == (1,) and limit is not None and len(limit) == 1 else None
    )


SHAPE_RULES: dict[str, Callable[[Known, oir.Node, oir.Value], Dims | None]] = {
    **dict.fromkeys(SAME_SHAPE, _same_shape),
    **dict.fromkeys(BROADCAST, _elementwise),
    **dict.fromkeys(POOLS, _spatial),
    "MatMul": _matmul,
    **dict.fromkeys(("MatMulBnb4", "MatMulNBits"), _packed_matmul),
    "GatherBlockQuantized": _packed_lookup,
    "Gemm": _gemm,
    "Split": _split,
    "Range": _range,
    "Reshape": _reshape,
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
