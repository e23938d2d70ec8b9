"""Take the Q/DQ pairs of a model that comes quantized out of the graph and keep their scales.

Before:  x -> Q(s, z) -> DQ(s, z) -> Conv        After:  x -> Conv,  state.qparams[x] = (s, z)

What is left is a float model like any other, which calibration, plan and lowering know how to treat;
where the plan makes a tensor integer, ``InsertQDQ`` puts its pair back with the very same scale. The
pass runs behind all others, so that no fold changes a tensor whose scale is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.affine import QParams
from qcompile.ir.graph import drop_unused, is_graph_output, origin, replace_value
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.ir.spec import INTEGER_BITS, QDType, QuantSpec
from qcompile.passes.lift_weights import parameters_of

__all__ = ["LiftPairs"]


MOVED = frozenset(
    {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Split", "Slice"}
    | {"DepthToSpace", "SpaceToDepth", "Gather", "Expand"}
)
"""Operators whose results hold numbers of their first input and no others."""


@dataclass(frozen=True)
class LiftPairs:
    """Removes the pairs of the main graph and fills ``state.qparams``."""

    name: str = "lift-pairs"

    def run(self, state: CompileState) -> PassResult:
        """Pairs that the target cannot have as they are stay or are measured anew, which is said."""
        lifted = _Lifted()
        for node in list(state.model.graph):
            if node.op_type == "QuantizeLinear" and node.domain in ("", "ai.onnx"):
                _lift(state, node, lifted)
        for value, qparams in lifted.given.items():
            state.qparams.setdefault(value.name or "", qparams)
        for value, qparams in lifted.given.items():
            _hand_on(state, value, qparams)
        if lifted.count:
            drop_unused(state.model)
        return PassResult(lifted.count, tuple(lifted.notes))


def _hand_on(state: CompileState, value: oir.Value, qparams: QParams) -> None:
    """What only moves a tensor leaves its grid as it is.

    The layer behind it reads the same numbers, clipped as the model's maker clipped them, also where
    the move itself runs in float.
    """
    for use in value.uses():
        node = use.node
        if use.idx == 0 and node.op_type in MOVED and node.domain in ("", "ai.onnx"):
            for result in node.outputs:
                if (result.name or "") not in state.qparams:
                    state.qparams[result.name or ""] = qparams
                    _hand_on(state, result, qparams)


@dataclass
class _Lifted:
    given: dict[oir.Value, QParams] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    count: int = 0


def _lift(state: CompileState, node: oir.Node, lifted: _Lifted) -> None:
    value, where = node.inputs[0], origin(node) or node.name or ""
    found = _pair(node)
    if value is None or isinstance(found, str):
        lifted.notes.append(Note(where, f"stays as it is: {found}"))
        return
    qparams, readers = found
    fitting = _fitting(qparams, state.target.activation)
    if qparams.spec.dtype in ("uint16", "int16") and isinstance(fitting, str):
        # 8 bits in place of 16 is not what the model's maker decided
        lifted.notes.append(Note(where, f"stays as it is: {fitting}"))
        return
    if isinstance(fitting, str):
        lifted.notes.append(Note(where, f"range of '{value.name}' measured anew: {fitting}"))
    elif value in lifted.given and not _same(lifted.given[value], fitting):
        text = f"'{value.name}' came with two scales; the first, {lifted.given[value].scale:.6g}, is kept"
        lifted.notes.append(Note(where, text))
    else:
        lifted.given[value] = fitting
    for reader in readers:
        replace_value(reader.outputs[0], value)
        state.model.graph.remove(reader, safe=True)
    state.model.graph.remove(node, safe=True)
    lifted.count += 1


def _pair(node: oir.Node) -> tuple[QParams, list[oir.Node]] | str:
    """Parameters of a Q and the DQs that read it, or why it is no pair of an activation."""
    value, result = node.inputs[0], node.outputs[0]
    if value is None or value.dtype != oir.DataType.FLOAT:
        return "it quantizes something other than float32"
    if is_graph_output(result):
        return "its integers are an output of the model"
    own = parameters_of(node)
    if isinstance(own, str):
        return own
    scale, zero, axis = own
    if axis is not None:
        return "it has a scale for each channel of an activation"
    readers = [use.node for use in result.uses()]
    for reader in readers:
        if reader.op_type != "DequantizeLinear" or reader.graph is not node.graph:
            return f"{reader.op_type} '{reader.name}' reads its integers"
        other = parameters_of(reader)
        if isinstance(other, str):
            return other
        if not (other[0] == scale and _number(other[1]) == _number(zero)):
            return f"'{reader.name}' dequantizes with other parameters"
        if reader.outputs[0].dtype not in (None, oir.DataType.FLOAT):
            return f"'{reader.name}' gives something other than float32"
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if result.dtype is not None and zero is None:
        kind = result.dtype.numpy()
    if kind.name not in INTEGER_BITS or INTEGER_BITS[kind.name][0] < 8:
        return f"its type {kind.name} is not read"
    zero_point = np.asarray(_number(zero), kind)
    return QParams(scale, zero_point, QuantSpec(cast(QDType, kind.name), symmetric=False)), readers


def _number(zero: npt.NDArray[np.generic] | None) -> int:
    return 0 if zero is None else int(zero.reshape(-1)[0])


def _same(a: QParams, b: QParams) -> bool:
    return bool(a.scale == b.scale and a.zero_point == b.zero_point)


def _fitting(qparams: QParams, wanted: QuantSpec) -> QParams | str:
    """The same grid in the target's type: signed and unsigned differ by a shift of the zero point."""
    if wanted.dtype not in INTEGER_BITS:
        return f"{qparams.spec.dtype} is not {wanted.dtype}, which the target needs"
    bits, signed = INTEGER_BITS[qparams.spec.dtype]
    needed, needs_sign = INTEGER_BITS[wanted.dtype]
    if bits != needed or wanted.bits is not None:
        return f"{qparams.spec.dtype} is not {wanted.dtype}, which the target needs"
    half = 1 << (bits - 1)
    zero = int(qparams.zero_point) + half * (int(signed) - int(needs_sign))
    middle = 0 if needs_sign else half
    if wanted.symmetric and zero != middle:
        return f"its zero point is {int(qparams.zero_point)}; the target needs a symmetric range"
    kind = np.dtype(wanted.dtype)
    return QParams(qparams.scale, np.asarray(zero, kind), wanted)
