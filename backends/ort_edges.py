"""What stands around an operator in a Q/DQ graph: integer tensors it reads, the one it could write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.ir.graph import attribute, constant, single_consumer

__all__ = ["EIGHT_BIT", "QTensor", "Tail", "dequantized", "quantizer", "tail", "tail_through"]

_LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "int32": (-(2**31), 2**31 - 1)}
EIGHT_BIT = ("uint8", "int8")


@dataclass(frozen=True)
class QTensor:
    """An integer tensor and its parameters: real = scale * (q - zero_point).

    Attributes:
        q: the integers.
        scale: shape () or (channels,).
        zero_point: same shape, dtype of ``q``.
        axis: of the channels; None per tensor.
        scale_value: the graph's own constant, reused by the lowered operator.
        zero_value: the same for the zero point; None when the graph left it out.
    """

    q: oir.Value
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.generic]
    axis: int | None
    scale_value: oir.Value
    zero_value: oir.Value | None

    @property
    def dtype(self) -> str:
        """Name of the stored type: "uint8", "int8", "int32"."""
        return str(self.zero_point.dtype)

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest integer."""
        return _LIMITS[self.dtype]

    def quantize(self, real: float) -> int:
        """The integer that QuantizeLinear gives ``real`` (per tensor only)."""
        low, high = self.limits
        # float32 division and round-half-even, as QuantizeLinear does it
        steps = np.rint(np.float32(real) / self.scale.reshape(-1)[0])
        return int(np.clip(steps + int(self.zero_point.reshape(-1)[0]), low, high))

    def same_parameters(self, other: QTensor) -> bool:
        """Whether integers of one can be read as integers of the other."""
        return (
            self.dtype == other.dtype
            and self.axis == other.axis
            and np.array_equal(self.scale.reshape(-1), other.scale.reshape(-1))
            and np.array_equal(self.zero_point.reshape(-1), other.zero_point.reshape(-1))
        )


def _parameters(node: oir.Node, q: oir.Value, default_dtype: str) -> QTensor | None:
    scale = constant(node.inputs[1])
    scale_value = node.inputs[1]
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    if (
        scale is None
        or scale_value is None
        or scale.dtype != np.float32
        or attribute(node, "block_size", 0)
    ):
        return None
    zero = (
        np.zeros(scale.shape, dtype=default_dtype) if zero_value is None else constant(zero_value)
    )
    if zero is None or zero.size != scale.size:
        return None
    axis: int | None = None
    if scale.size != 1:
        rank = None if q.shape is None else len(q.shape)
        found = attribute(node, "axis", 1)
        axis = found if isinstance(found, int) else 1
        if axis < 0:
            if rank is None:
                return None
            axis += rank
    return QTensor(q, scale.astype(np.float32), zero, axis, scale_value, zero_value)


def dequantized(value: oir.Value | None) -> QTensor | None:
    """The integers behind a float tensor that a DequantizeLinear writes, else None."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain not in ("", MICROSOFT):
        return None
    q = node.inputs[0]
    if q is None:
        return None
    dtype = "uint8" if q.dtype is None else q.dtype.name.lower()
    return _parameters(node, q, dtype) if dtype in ("uint8", "int8", "int32") else None


def quantizer(node: oir.Node) -> QTensor | None:
    """What a QuantizeLinear writes; None for another node or one without constant 8-bit parameters."""
    if node.op_type != "QuantizeLinear" or node.domain not in ("", MICROSOFT):
        return None
    given = attribute(node, "output_dtype", 0)
    dtype = oir.DataType(given).name.lower() if isinstance(given, int) and given else "uint8"
    if dtype not in EIGHT_BIT:
        return None
    found = _parameters(node, node.outputs[0], dtype)
    return found if found is not None and found.dtype in EIGHT_BIT else None


@dataclass(frozen=True)
class Tail:
    """The way from a node's float output to the QuantizeLinear behind it.

    Attributes:
        absorbed: Relu and Clip nodes in between, which become limits on the integers.
        quantize: the QuantizeLinear.
        out: what it writes.
        low: limits that the absorbed activations set, in integers; equal to those of the dtype when
            the saturation of the requantization does their work.
        high: see ``low``.
    """

    absorbed: tuple[oir.Node, ...]
    quantize: oir.Node
    out: QTensor
    low: int
    high: int

    @property
    def clamps(self) -> bool:
        """Whether an integer Clip must follow."""
        return (self.low, self.high) != self.out.limits


def _activation_limits(node: oir.Node) -> tuple[float, float] | None:
    if node.domain != "":
        return None
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    found: list[float] = []
    for index, name, default in ((1, "min", -float("inf")), (2, "max", float("inf"))):
        if len(node.inputs) > index and node.inputs[index] is not None:
            array = constant(node.inputs[index])
            if array is None or array.size != 1:
                return None
            found.append(float(array.reshape(-1)[0]))
        else:
            given = attribute(node, name)
            found.append(float(given) if isinstance(given, (int, float)) else default)
    return found[0], found[1]


def tail(value: oir.Value) -> Tail | None:
    """The tail behind ``value``, when it has one consumer and each Relu or Clip on the way too.

    Q is monotonic, so Q(clip(x, a, b)) = clip(Q(x), Q(a), Q(b)): an activation between an operator
    and its Q is exactly a limit on the integers, and none at all where Q(a), Q(b) saturate.
    """
    return _follow(single_consumer(value), value)


def tail_through(node: oir.Node) -> Tail | None:
    """The tail that begins with ``node`` itself, a Relu or Clip."""
    value = node.inputs[0]
    return None if value is None else _follow(node, value)


def _follow(node: oir.Node | None, value: oir.Value) -> Tail | None:
    absorbed: list[oir.Node] = []
    limits: list[tuple[float, float]] = []
    while node is not None:
        if node.op_type == "QuantizeLinear":
            out = quantizer(node)
            if out is None or out.axis is not None:
                return None
            low, high = out.limits
            for a, b in limits:
                low = max(low, low if a == -float("inf") else out.quantize(a))
                high = min(high, high if b == float("inf") else out.quantize(b))
            return Tail(tuple(absorbed), node, out, low, max(low, high))
        found = _activation_limits(node)
        if found is None or node.inputs[0] is not value:
            return None
        absorbed.append(node)
        limits.append(found)
        value = node.outputs[0]
        node = single_consumer(value)
    return None
