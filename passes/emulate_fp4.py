"""Write NVFP4 in operators that any runtime has, to compute here what TensorRT computes there.

Before:  x -> TRT_FP4DynamicQuantize -> DequantizeLinear -> MatMul
After:   x -> blocks of 16 -> largest / 6 / g, through E4M3 -> divide, round to E2M1, multiply -> MatMul

Weights become the floats that they stand for. E2M1 has steps of 0.5 below 2, of 1 below 4, of 2 up to 6;
ties go to the even digit, as Round does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.float4 import BLOCK, LARGEST, LARGEST_SCALE
from qcompile.ir.graph import (
    add_initializer,
    constant,
    drop_unused,
    fresh_name,
    new_value,
    register_constant,
    writer_past_cast,
)
from qcompile.ir.manager import CompileState, PassResult
from qcompile.passes.insert_fp4 import DOMAIN, DYNAMIC

__all__ = ["EmulateFP4", "emulate_fp4"]

_FLOAT, _E4M3 = oir.DataType.FLOAT, oir.DataType.FLOAT8E4M3FN
_STORED = (oir.DataType.FLOAT4E2M1, _E4M3)


@dataclass(frozen=True)
class EmulateFP4:
    """Replaces what only TensorRT computes; a model without it stays as it is."""

    name: str = "emulate-fp4"

    def run(self, state: CompileState) -> PassResult:
        """Edit ``state.model``."""
        return PassResult(emulate_fp4(state.model))


def emulate_fp4(model: oir.Model) -> int:
    """The same on a model alone; returns how many operands were rewritten."""
    if DOMAIN not in model.opset_imports:
        return 0
    changed = 0
    for node in list(model.graph):
        if node.op_type == DYNAMIC and node.domain == DOMAIN:
            _activation(model.graph, node)
            changed += 1
        elif node.op_type == "DequantizeLinear" and _stored(node.inputs[0]):
            changed += _weight(model.graph, node)
    drop_unused(model)
    del model.opset_imports[DOMAIN]
    return changed


def _stored(value: oir.Value | None) -> bool:
    held = value is not None and value.const_value is not None
    return held and value is not None and value.dtype == oir.DataType.FLOAT4E2M1


def _weight(graph: oir.Graph, node: oir.Node) -> int:
    """Values times scales times the scale of those, as a constant."""
    maker = writer_past_cast(node.inputs[1])
    if maker is None:
        return 0
    parts = [constant(v) for v in (node.inputs[0], *maker.inputs[:2])]
    if any(p is None for p in parts):
        return 0
    values, steps, whole = (np.asarray(p).astype(np.float32) for p in parts)
    axis = node.attributes["axis"].as_int()
    floats = values * np.repeat(steps * whole, BLOCK, axis=axis)
    result = node.outputs[0]
    kind = result.dtype or _FLOAT
    name = fresh_name(graph, f"{result.name}_floats")
    made = register_constant(graph, name, floats.astype(kind.numpy()))
    for use in list(result.uses()):
        use.node.replace_input_with(use.idx, made)
    return 1


def _activation(graph: oir.Graph, node: oir.Node) -> None:
    read, whole = node.inputs[0], constant(node.inputs[1])
    kind = _FLOAT if read is None or read.dtype is None else read.dtype
    results = [use.node.outputs[0] for use in node.outputs[0].uses()]
    writer = _Writer(graph, node, (results[0].name if results else "") or "fp4")
    unit = float(np.asarray(whole, np.float32).reshape(()))

    def step(value: oir.Value, size: float) -> oir.Value:
        if size == 1.0:
            return writer.add("Round", value)
        ratio = writer.add("Div", value, writer.number(size))
        return writer.add("Mul", writer.add("Round", ratio), writer.number(size))

    def below(limit: float) -> oir.Value:
        return writer.add("Less", size, writer.number(limit), kind=oir.DataType.BOOL)

    wide = read if kind == _FLOAT else writer.cast(read, _FLOAT)
    rows = writer.add("Reshape", wide, writer.array([-1, BLOCK]))
    size = writer.add("Abs", rows)
    peak = writer.add("ReduceMax", size, writer.array([1]), keepdims=1)
    scale = writer.add("Mul", peak, writer.number(1.0 / (LARGEST * unit)))
    scale = writer.add("Min", scale, writer.number(LARGEST_SCALE))
    scale = writer.cast(writer.cast(scale, _E4M3), _FLOAT)
    scale = writer.add("Mul", scale, writer.number(unit))
    # Where the scale is zero, so is the block's result, whatever it is divided by.
    ratio = writer.add("Div", rows, writer.add("Max", scale, writer.number(1e-30)))
    ratio = writer.add("Clip", ratio, writer.number(-LARGEST), writer.number(LARGEST))
    size = writer.add("Abs", ratio)
    coarse = writer.add("Where", below(4.0), step(ratio, 1.0), step(ratio, 2.0))
    near = writer.add("Where", below(2.0), step(ratio, 0.5), coarse)
    found = writer.add("Mul", near, scale)
    shape = writer.add("Shape", read, kind=oir.DataType.INT64)
    found = writer.add("Reshape", found, shape)
    if kind != _FLOAT:
        found = writer.cast(found, kind)
    for result in results:
        for use in list(result.uses()):
            use.node.replace_input_with(use.idx, found)


@dataclass
class _Writer:
    """Puts nodes in front of another one."""

    graph: oir.Graph
    before: oir.Node
    base: str

    def add(
        self,
        op_type: str,
        *inputs: oir.Value | None,
        kind: oir.DataType = _FLOAT,
        **attributes: int,
    ) -> oir.Value:
        """The result of an operator."""
        node, made = new_value(self.graph, op_type, inputs, kind, self.base, **attributes)
        self.graph.insert_before(self.before, node)
        return made

    def cast(self, value: oir.Value | None, to: oir.DataType) -> oir.Value:
        """``value`` in another type."""
        return self.add("Cast", value, kind=to, to=int(to))

    def number(self, value: float) -> oir.Value:
        """A scalar."""
        return add_initializer(self.graph, f"{self.base}_number", np.float32(value).reshape(()))

    def array(self, values: list[int]) -> oir.Value:
        """Integers."""
        return add_initializer(self.graph, f"{self.base}_sizes", np.array(values, np.int64))
