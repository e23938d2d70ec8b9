"""What a target refuses, or silently runs in float, in any model with Q/DQ, whoever wrote it.

Found before anything is built, from the rules of the capability tables; what it lists for TensorRT was
tried with TensorRT for RTX 1.7 or stands in the vendor's documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant, default_opset, origin, writer_past_cast
from qcompile.ir.target import Target

__all__ = ["FLOATS", "REFUSED", "Illegal", "check_legality"]

REFUSED = "refused"
"""The target's library takes the model not at all."""

FLOATS = "runs in float"
"""The library takes it and loses the 8 bits without a word."""

PAIR = ("QuantizeLinear", "DequantizeLinear")
PRODUCTS = ("Conv", "Gemm", "MatMul")
MOVERS = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
INTEGER_OPERATORS = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
)

_BITS16 = (oir.DataType.INT16, oir.DataType.UINT16)
_LEAST_SM = {
    oir.DataType.INT8: (80, "INT8"),
    oir.DataType.INT4: (80, "INT4"),
    oir.DataType.FLOAT8E4M3FN: (89, "FP8"),
    oir.DataType.FLOAT4E2M1: (100, "FP4"),
}


@dataclass(frozen=True)
class Illegal:
    """One thing that a target does not take as it stands.

    Attributes:
        node: origin id or name of the node.
        op_type: its operator.
        tensor: the tensor that it is about.
        effect: ``REFUSED`` or ``FLOATS``.
        found: what stands there, and what is needed.
        remedy: what to do.
    """

    node: str
    op_type: str
    tensor: str
    effect: str
    found: str
    remedy: str

    @property
    def text(self) -> str:
        """One line for people."""
        where = f"node '{self.node}' ({self.op_type}), tensor '{self.tensor}'"
        return f"{where}: {self.effect}: {self.found}; {self.remedy}"


def check_legality(model: oir.Model, target: Target) -> tuple[Illegal, ...]:
    """Everything in ``model`` that ``target`` refuses or runs in float against what Q/DQ ask, in graph order.

    The one function for it: a compile, ``qcompile verify --against`` and tests ask the same rules. The
    model is any ONNX model, with or without Q/DQ, and stays as it is; an empty answer says that no rule
    speaks against it, not that it was built.

    Example:
        ``check_legality(oir.load("model.onnx"), get_target("tensorrt-int8", "sm89"))``
    """
    opset = default_opset(model)
    rules = None
    if target.backend == "trt":
        rules = _TensorRT(_capability(target), target.weights is not None)
    found: list[Illegal] = []
    for node in model.graph:
        if node.op_type in PAIR and node.domain in ("", "ai.onnx"):
            found += _by_opset(node, opset)
        if rules is not None:
            found += rules.check(node)
    return tuple(found)


def _capability(target: Target) -> int:
    return next((int(f[2:]) for f in target.features if f.startswith("sm")), 80)


def _illegal(node: oir.Node, index: int, effect: str, found: str, remedy: str) -> Illegal:
    value = node.inputs[index] if index < len(node.inputs) else None
    name = "" if value is None else value.name or ""
    return Illegal(origin(node) or node.name or "", node.op_type, name, effect, found, remedy)


def _by_opset(node: oir.Node, opset: int) -> Iterator[Illegal]:
    """What ONNX itself has only from some opset on."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    scale = constant(value)
    upgrade = "upgrade the model (qcompile does, when it compiles)"
    if scale is not None and scale.size > 1 and opset < 13:
        text = f"a scale for each channel needs opset 13, found {opset}"
        yield _illegal(node, 1, REFUSED, text, upgrade)
    half = value is not None and value.dtype in (oir.DataType.FLOAT16, oir.DataType.BFLOAT16)
    if half and opset < 19:
        text = f"a scale of 16 bits needs opset 19, found {opset}"
        yield _illegal(node, 1, REFUSED, text, upgrade)
    if attribute(node, "block_size", 0) and opset < 21:
        text = f"scales for blocks need opset 21, found {opset}"
        yield _illegal(node, 1, REFUSED, text, upgrade)


@dataclass(frozen=True)
class _TensorRT:
    """TensorRT's rules of placement for one compute capability.

    Attributes:
        capability: compute capability times ten.
        weights_alone: weights are what is to be quantized, activations are not.
    """

    capability: int
    weights_alone: bool = False

    def check(self, node: oir.Node) -> Iterator[Illegal]:
        if node.op_type in INTEGER_OPERATORS or node.domain == "com.microsoft":
            text = "TensorRT's parser has no such operator; integers are asked for by Q/DQ"
            yield _illegal(node, 0, REFUSED, text, "compile the float model for this target")
        elif node.op_type in PAIR and node.domain in ("", "ai.onnx"):
            yield from self._pair(node)
        elif node.op_type in (*PRODUCTS, "ConvTranspose") and node.domain in ("", "ai.onnx"):
            yield from self._product(node)

    def _pair(self, node: oir.Node) -> Iterator[Illegal]:
        again = "compile it for this target: its range is measured anew"
        kind = _stored_type(node)
        stored = constant(node.inputs[1])
        scale = None if stored is None else stored.astype(np.float32)
        if scale is None and not _scales_have_scales(node):
            text = "its scale is computed at run time; needed: a constant"
            yield _illegal(node, 1, REFUSED, text, "fold constants, or compile the float model")
        elif scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
            text = f"a scale of {scale.min():.3g}; needed: finite and above 0"
            yield _illegal(node, 1, REFUSED, text, again)
        if kind in (oir.DataType.UINT8, *_BITS16):
            text = f"activations of {kind.name.lower()}; needed: int8, symmetric"
            yield _illegal(node, 0, REFUSED, text, again)
            return
        if kind == oir.DataType.INT32:
            text = "a DequantizeLinear on an int32 bias; needed: the bias in float"
            yield _illegal(node, 0, REFUSED, text, "compile it for this target: it is folded back")
            return
        least, word = _LEAST_SM.get(kind, (0, "")) if kind is not None else (0, "")
        if self.capability < least and word != "INT8":
            text = f"{word} needs SM{least} or later, this is SM{self.capability}"
            yield _illegal(node, 0, REFUSED, text, "name another --device or --target")
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is not None:
            yield from self._zero(node, constant(zero), again)
        activation = node.op_type == "QuantizeLinear" and constant(node.inputs[0]) is None
        if activation and scale is not None and scale.size > 1:
            text = f"{scale.size} scales for one activation; needed: one"
            yield _illegal(node, 1, FLOATS, text, again)

    @staticmethod
    def _zero(
        node: oir.Node, zero: npt.NDArray[np.generic] | None, remedy: str
    ) -> Iterator[Illegal]:
        if zero is None:
            text = "its zero point is computed at run time; needed: 0"
            yield _illegal(node, 2, REFUSED, text, remedy)
        elif zero.astype(np.float32).any():
            shown = zero.reshape(-1)[np.flatnonzero(zero.astype(np.float32))[0]]
            text = f"its zero point is {shown}; needed: 0 (symmetric)"
            yield _illegal(node, 2, REFUSED, text, remedy)

    def _product(self, node: oir.Node) -> Iterator[Illegal]:
        pairs = [_dequantizer(v) for v in node.inputs[:2]]
        asked = [p for p in pairs if p is not None]
        if not asked:
            return
        if node.op_type == "ConvTranspose":
            text = "TensorRT has no 8-bit ConvTranspose"
            yield _illegal(node, 0, FLOATS, text, "leave it in float and spare its Q/DQ")
            return
        if self.weights_alone and pairs[0] is None and node.op_type in ("MatMul", "Gemm"):
            yield from self._axis(node, pairs[1])
            return
        if len(asked) == 1:
            index = pairs.index(None)
            what = "weight" if constant(node.inputs[index]) is not None else "activation"
            text = f"only one operand is quantized, the {what} is not; needed: both"
            yield _illegal(node, index, FLOATS, text, "quantize both operands, or none")
            return
        if self.capability < 80 and _stored_type(asked[0]) == oir.DataType.INT8:
            effect = FLOATS if node.op_type == "Conv" else REFUSED
            text = f"no INT8 kernel on SM{self.capability}; needed: SM80 or later"
            yield _illegal(node, 0, effect, text, "use a float16 target, or another --device")
        yield from self._axis(node, pairs[1])

    @staticmethod
    def _axis(node: oir.Node, dequantizer: oir.Node | None) -> Iterator[Illegal]:
        """The weight's scales must lie along output channels."""
        value = node.inputs[1]
        direct = value is not None and value.producer() is dequantizer
        scale = None if dequantizer is None else constant(dequantizer.inputs[1])
        if dequantizer is None or scale is None or scale.size <= 1 or not direct:
            return
        if attribute(dequantizer, "block_size", 0) or value is None or value.shape is None:
            return
        rank = len(value.shape)
        axis = cast(int, attribute(dequantizer, "axis", 1)) % rank
        if node.op_type == "Gemm":
            right = 0 if attribute(node, "transB", 0) else 1
        else:
            right = 0 if node.op_type == "Conv" else rank - 1
        if axis != right:
            text = f"its weight's scales lie along axis {axis}; needed: axis {right}"
            yield _illegal(node, 1, FLOATS, text, "compile the float model for this target")


def _dequantizer(value: oir.Value | None) -> oir.Node | None:
    """The DequantizeLinear that an operand comes out of, through what only moves values."""
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in MOVERS:
        before = producer.inputs[0]
        producer = None if before is None else before.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return producer
    return None


def _scales_have_scales(node: oir.Node) -> bool:
    """Whether the scales of a DQ are numbers of 8 bits with a scale of their own, as NVFP4 has them."""
    maker = writer_past_cast(node.inputs[1])
    return (
        maker is not None
        and maker.op_type == "DequantizeLinear"
        and _stored_type(maker) == oir.DataType.FLOAT8E4M3FN
    )


def _stored_type(node: oir.Node) -> oir.DataType | None:
    """Type of the integers (or small floats) of a Q or DQ."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    if node.op_type == "DequantizeLinear":
        return None if node.inputs[0] is None else node.inputs[0].dtype
    asked = cast(int, attribute(node, "output_dtype", 0))
    return oir.DataType(asked) if asked else oir.DataType.UINT8
