"""Move what stays float to 16 bits, where the values fit.

Before:  x -> Conv(W) -> Softmax -> Pow -> y            (all float32)
After:   x -> Cast -> Conv(W16) -> Softmax -> Cast -> Pow -> y

A node stays in float32 when one of its tensors could leave the range of float16 (as calibration saw
it, with a margin), when a small constant of its would become zero, when its operator squares, sums or
exponentiates, when the target fuses its operator in float32 only, or when ONNX has no 16-bit form of
it. Inputs and outputs of the model keep their types. Q and DQ take 16-bit scales, for which ONNX needs
opset 19.

bfloat16 has float32's range and eight binary digits: nothing is too large or too small for it, and the
same operators stay in float32 for their digits. Many operators take it from opset 22 only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as oir

from qcompile.ir.graph import constant, default_opset, fresh_name, is_graph_output
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note

__all__ = ["HALVES", "LARGEST", "CastHalf"]

LARGEST = 65504.0
"""Largest finite float16."""

MARGIN = 4.0
"""Data to come may hold values so much larger than those calibrated with."""

SCALE_OPSET = 19
"""First opset whose Q and DQ take 16-bit scales."""

_SMALLEST_SCALE = 2.0**-14
"""Smallest normal float16: a scale below it would lose digits."""

_SUMS = frozenset(
    {"Pow", "Exp", "Log", "Reciprocal", "CumSum", "Range", "Softplus", "LogSoftmax"}
    | {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd"}
    | {"ReduceLogSum", "ReduceLogSumExp", "BatchNormalization", "InstanceNormalization"}
    | {"LpNormalization", "MeanVarianceNormalization", "LRN", "GroupNormalization"}
)
"""Operators whose result, or what they add up on the way, leaves the range or loses digits."""

_TYPED = frozenset(
    {"Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"}
    | {"RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "If", "Loop", "Scan"}
)
"""Operators whose output type stands in an attribute or in a graph of their own."""

_FLOAT = oir.DataType.FLOAT
HALVES = {"fp16": oir.DataType.FLOAT16, "bf16": oir.DataType.BFLOAT16}
"""Kinds of half precision."""


@dataclass(frozen=True)
class CastHalf:
    """Casts to float16 or bfloat16; ``state.ranges`` tell which tensors are too large for float16.

    Attributes:
        kind: "fp16" or "bf16".
    """

    kind: str = "fp16"
    name: str = "cast-half"

    def run(self, state: CompileState) -> PassResult:
        """Edit ``state.model``; nodes left in float32 for a reason of their own are noted."""
        graph = state.model.graph
        half = HALVES[self.kind]
        schemas = _Schemas(default_opset(state.model), half)
        large = {
            name
            for name, r in state.ranges.items()
            if max(np.max(np.abs(r.low)), np.max(np.abs(r.high))) * MARGIN > LARGEST
            and half == oir.DataType.FLOAT16
        }
        notes: list[Note] = []
        halves: list[oir.Node] = []
        for node in graph:
            if not any(_is_float(v) for v in (*node.inputs, *node.outputs)):
                continue
            reason = state.target.wide.get(node.op_type, "") or _reason(node, schemas, large)
            if not reason:
                halves.append(node)
            elif reason != _NOTHING:
                notes.append(Note(node.name or node.op_type, f"stays float32: {reason}"))
        apart = _uneven(graph, halves)
        notes += [Note(n.name or n.op_type, f"stays float32: {_UNEVEN}") for n in apart]
        halves = [node for node in halves if node not in apart]
        _Caster(graph, schemas.ports, half).cast(halves)
        return PassResult(len(halves), tuple(notes))


_NOTHING = "it has nothing to cast"
_UNEVEN = "the scale beside it does, and a kernel's scales must have one type"
_SCALED = ("QuantizeLinear", "DequantizeLinear")


def _uneven(graph: oir.Graph, halves: list[oir.Node]) -> dict[oir.Node, None]:
    """Q and DQ that must stay float32 because another operand of a kernel of theirs does.

    TensorRT's compiler stops on a product whose operands have scales of two types.
    """
    half = set(halves)
    found: dict[oir.Node, None] = {}
    groups = []
    for node in graph:
        made = [None if v is None else v.producer() for v in node.inputs]
        scaled = [p for p in made if p is not None and p.op_type in _SCALED]
        if node.op_type == "DequantizeLinear":
            groups.append([node, *scaled])
        elif len(scaled) > 1:
            groups.append(scaled)
    changed = True
    while changed:
        changed = False
        for group in groups:
            if all(n in half for n in group):
                continue
            for member in group:
                if member in half:
                    half.discard(member)
                    found[member] = None
                    changed = True
    return found


def _is_float(value: oir.Value | None) -> bool:
    return value is not None and value.dtype == _FLOAT


def _reason(node: oir.Node, schemas: _Schemas, large: set[str]) -> str:
    """Why a node stays float32, "" when it can have 16 bits."""
    if node.op_type in _TYPED or node.domain != "":
        return _NOTHING if node.domain == "" else "its operator is not ONNX's"
    if node.op_type in _SUMS:
        return f"{node.op_type} leaves the range of 16 bits or loses digits in them"
    if node.op_type in _SCALED:
        return _scale_reason(node, schemas)
    able = schemas.ports(node)
    if not able[0] and not able[1]:
        return _NOTHING
    if any(_is_float(v) and i not in able[1] for i, v in enumerate(node.outputs)):
        return f"ONNX has no form of it with a {schemas.word} result"
    for value in (*node.inputs, *node.outputs):
        if _is_float(value) and value is not None and (value.name or "") in large:
            return f"'{value.name}' is too large for float16"
    if schemas.half != oir.DataType.FLOAT16:
        return ""
    for index in able[0]:
        array = constant(node.inputs[index])
        if array is None or array.size == 0 or array.dtype != np.float32:
            continue
        if np.max(np.abs(array)) > LARGEST or not np.isfinite(array).all():
            return f"constant '{_name(node, index)}' is too large for float16"
        # A lone small number is an epsilon: as zero it lets a division by zero through.
        if array.size == 1 and array.reshape(()) != 0 and np.abs(array).max() < _SMALLEST_SCALE:
            return f"constant '{_name(node, index)}' is too small for float16"
    return ""


def _name(node: oir.Node, index: int) -> str:
    value = node.inputs[index]
    return "" if value is None else value.name or ""


def _scale_reason(node: oir.Node, schemas: _Schemas) -> str:
    if schemas.opset < SCALE_OPSET:
        return f"scales of 16 bits need opset {SCALE_OPSET}"
    scale = constant(node.inputs[1])
    if scale is None:
        return "its scale is computed at run time"
    if schemas.half != oir.DataType.FLOAT16:
        return ""
    if scale.size and (scale.min() < _SMALLEST_SCALE or scale.max() > LARGEST / 512):
        return "its scale does not fit float16"
    stored = constant(node.inputs[0])
    if node.op_type == "QuantizeLinear" and stored is not None and np.abs(stored).max() > LARGEST:
        return "its values are too large for float16"
    return ""


Ports = tuple[set[int], set[int]]
"""Indices of inputs and outputs."""


@dataclass(frozen=True)
class _Schemas:
    """What ONNX's operators take in an opset."""

    opset: int
    half: oir.DataType

    @property
    def word(self) -> str:
        """The type as ONNX writes it."""
        return self.half.name.lower()

    def ports(self, node: oir.Node) -> Ports:
        """Float inputs and outputs of a node that ONNX lets have 16 bits."""
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return set(), set()
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}

        def able(formal: list[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
            if not formal:
                return False
            one = formal[min(index, len(formal) - 1)]
            return f"tensor({self.word})" in allowed.get(one.type_str, {one.type_str})

        ins, outs = list(schema.inputs), list(schema.outputs)
        return (
            {i for i, v in enumerate(node.inputs) if _is_float(v) and able(ins, i)},
            {i for i, v in enumerate(node.outputs) if _is_float(v) and able(outs, i)},
        )


@dataclass
class _Caster:
    """Changes types and puts casts between nodes of 32 and 16 bits, one for each tensor."""

    graph: oir.Graph
    ports: Callable[[oir.Node], Ports]
    half: oir.DataType
    constants: dict[oir.Value, oir.Value] = field(default_factory=dict)
    casts: dict[tuple[oir.Value, oir.DataType], oir.Value] = field(default_factory=dict)

    def cast(self, halves: list[oir.Node]) -> None:
        """Give ``halves`` 16 bits."""
        ports = {node: self.ports(node) for node in halves}
        changed = [node.outputs[i] for node, (_, outputs) in ports.items() for i in outputs]
        for value in changed:
            # A clone of a model shares its types, so another one, not another dtype of this one.
            value.type = oir.TensorType(self.half)
        for node, (inputs, _) in ports.items():
            for index in sorted(inputs):
                read = node.inputs[index]
                if read is not None and read.dtype == _FLOAT:
                    node.replace_input_with(index, self._half(read))
        for value in changed:
            for use in list(value.uses()):
                able = ports.get(use.node)
                if able is None or use.idx not in able[0]:
                    wide = self._cast(value, _FLOAT)
                    if use.node is not wide.producer():
                        use.node.replace_input_with(use.idx, wide)
            if is_graph_output(value):
                self._keep_output(value)
        for old in list(self.constants):
            if not old.uses() and not is_graph_output(old) and not old.is_graph_input():
                self.graph.initializers.pop(old.name or "", None)

    def _half(self, value: oir.Value) -> oir.Value:
        array = constant(value)
        if array is None or value.producer() is not None or value.is_graph_input():
            return self._cast(value, self.half)
        if value not in self.constants:
            with np.errstate(over="ignore"):
                small = array.astype(self.half.numpy())
            name = fresh_name(self.graph, f"{value.name}_half")
            new = oir.Value(
                name=name,
                type=oir.TensorType(self.half),
                shape=value.shape,
                const_value=oir.tensor(small, name=name),
            )
            self.graph.register_initializer(new)
            self.constants[value] = new
        return self.constants[value]

    def _cast(self, value: oir.Value, to: oir.DataType) -> oir.Value:
        """``value`` in another type; one Cast behind its producer serves all."""
        if (value, to) not in self.casts:
            name = f"{value.name}_{'half' if to == self.half else 'float'}"
            result = oir.Value(
                name=fresh_name(self.graph, name), type=oir.TensorType(to), shape=value.shape
            )
            node = oir.node(
                "Cast",
                [value],
                {"to": int(to)},
                outputs=[result],
                name=fresh_name(self.graph, f"{name}_Cast"),
            )
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], node)
            else:
                self.graph.insert_after(producer, node)
            self.casts[value, to] = result
        return self.casts[value, to]

    def _keep_output(self, value: oir.Value) -> None:
        """The model's output keeps its name and type; the 16-bit tensor takes another name."""
        wide = self._cast(value, _FLOAT)
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = wide
        name = value.name
        value.name = fresh_name(self.graph, f"{name}_half")
        wide.name = name
