"""Write the plan's NVFP4 layers into the graph; runs when what stays float has its type.

Before:  x, W ------------------------------------------------------> MatMul
After:   x -> TRT_FP4DynamicQuantize -> DequantizeLinear -----------> MatMul
         W (float4), scales (float8) -> DequantizeLinear -----------> MatMul

TensorRT's operator finds the scale of every 16 numbers of x as it runs; the scale of those scales is from
calibration. It writes the numbers and their scales; a DequantizeLinear gives the scales their unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.errors import CalibrationError
from qcompile.ir.float4 import BLOCK, Float4, global_scale, round_float4
from qcompile.ir.graph import (
    add_initializer,
    attribute,
    constant,
    drop_unused,
    fresh_name,
    new_value,
    origin,
)
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.ir.plan import NVFP4

__all__ = ["DOMAIN", "DYNAMIC", "InsertFP4"]

DOMAIN, DYNAMIC = "trt", "TRT_FP4DynamicQuantize"

_E4M3 = oir.DataType.FLOAT8E4M3FN
_E2M1 = oir.DataType.FLOAT4E2M1
_FLOAT = oir.DataType.FLOAT


@dataclass(frozen=True)
class InsertFP4:
    """Quantizes both operands of every MatMul and Gemm that the plan has in NVFP4."""

    name: str = "insert-fp4"

    def run(self, state: CompileState) -> PassResult:
        """Edit ``state.model``.

        Raises:
            CalibrationError: an activation has no range.
        """
        plan = state.plan
        asked = [] if plan is None else [c.origin for c in plan.layers if c.precision == NVFP4]
        writer = _Writer(state)
        notes = []
        for node in list(state.model.graph):
            name = origin(node) or ""
            if name not in asked or node.op_type not in ("MatMul", "Gemm"):
                continue
            read, weight = node.inputs[0], constant(node.inputs[1])
            if read is None or weight is None:
                continue
            turned = bool(attribute(node, "transB", 0))
            stored = writer.weight(node, np.asarray(weight, np.float32), turned)
            node.replace_input_with(0, writer.activation(read))
            node.replace_input_with(1, stored)
            notes.append(Note(name, NVFP4, changed=True))
        if notes:
            state.model.opset_imports[DOMAIN] = 1
            drop_unused(state.model)
        return PassResult(len(notes), tuple(notes))


@dataclass
class _Writer:
    """Makes nodes and constants; a tensor that several layers read is quantized once."""

    state: CompileState
    written: dict[oir.Value, oir.Value] = field(default_factory=dict)
    stored: dict[tuple[oir.Value, bool], oir.Value] = field(default_factory=dict)

    @property
    def graph(self) -> oir.Graph:
        return self.state.model.graph

    def activation(self, read: oir.Value) -> oir.Value:
        """``read`` through 4 bits, in its own type."""
        if read in self.written:
            return self.written[read]
        base = read.name or ""
        whole = self._constant(
            f"{base}_scale", np.asarray(global_scale(self._peak(read)), np.float32)
        )
        attributes = {"axis": -1, "block_size": BLOCK, "scale_type": int(_E4M3)}
        name = fresh_name(self.graph, f"{base}_{DYNAMIC}")
        node = oir.node(DYNAMIC, [read, whole], attributes, domain=DOMAIN, num_outputs=2, name=name)
        words = ((node.outputs[0], "fp4", _E2M1), (node.outputs[1], "fp4_scales", _E4M3))
        for value, word, kind in words:
            value.name = fresh_name(self.graph, f"{base}_{word}")
            value.type = oir.TensorType(kind)
        node.outputs[0].shape = read.shape
        nodes = [node]
        scales = self._add(nodes, base, "DequantizeLinear", [node.outputs[1], whole], _FLOAT)
        kind = read.dtype or _FLOAT
        if kind != _FLOAT:
            scales = self._add(nodes, f"{base}_scales", "Cast", [scales], kind, to=int(kind))
        inputs = [node.outputs[0], scales]
        found = self._add(
            nodes, f"{base}_fp4", "DequantizeLinear", inputs, kind, axis=-1, block_size=BLOCK
        )
        found.shape = read.shape
        producer = read.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.insert_after(producer, nodes)
        self.written[read] = found
        return found

    def weight(self, node: oir.Node, array: npt.NDArray[np.float32], turned: bool) -> oir.Value:
        """The constant of a layer through 4 bits: (N, K) where ``turned``, else (K, N)."""
        old = node.inputs[1]
        assert old is not None  # a constant was read from it
        if (old, turned) in self.stored:
            return self.stored[old, turned]
        base, kind = old.name or "", old.dtype or _FLOAT
        made = round_float4(np.ascontiguousarray(array if turned else array.T))
        values, scales = _laid_out(made, turned)
        inputs = [
            self._constant(f"{base}_fp4_scales", scales),
            self._constant(f"{base}_scale", np.asarray(made.whole, np.float32)),
        ]
        nodes: list[oir.Node] = []
        steps = self._add(nodes, f"{base}_scales", "DequantizeLinear", inputs, _FLOAT)
        if kind != _FLOAT:
            steps = self._add(nodes, f"{base}_scales", "Cast", [steps], kind, to=int(kind))
        result = self._add(
            nodes,
            base,
            "DequantizeLinear",
            [self._constant(f"{base}_fp4", values), steps],
            kind,
            axis=1 if turned else 0,
            block_size=BLOCK,
        )
        result.shape = old.shape
        self.graph.insert_before(self.graph[0], nodes)
        self.stored[old, turned] = result
        return result

    def _peak(self, read: oir.Value) -> float:
        """Largest magnitude of a tensor as calibration saw it, whatever its type is by now."""
        value: oir.Value | None = read
        while value is not None:
            found = self.state.ranges.get(value.name or "")
            if found is not None:
                return float(max(np.max(np.abs(found.low)), np.max(np.abs(found.high))))
            producer = value.producer()
            cast = producer is not None and producer.op_type == "Cast"
            value = producer.inputs[0] if producer is not None and cast else None
        raise CalibrationError(
            f"tensor '{read.name}' needs a range for the scale of its blocks and has none; calibrate it, "
            "or keep the layer that reads it float in the plan"
        )

    def _constant(self, base: str, array: npt.NDArray[np.generic]) -> oir.Value:
        return add_initializer(self.graph, base, array)

    def _add(
        self,
        nodes: list[oir.Node],
        base: str,
        op_type: str,
        inputs: list[oir.Value],
        kind: oir.DataType,
        **attributes: int,
    ) -> oir.Value:
        node, made = new_value(self.graph, op_type, inputs, kind, base, **attributes)
        nodes.append(node)
        return made


def _laid_out(
    made: Float4, turned: bool
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    if turned:
        return made.values, made.scales
    return np.ascontiguousarray(made.values.T), np.ascontiguousarray(made.scales.T)
