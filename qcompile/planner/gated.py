"""One graph that can be any plan: each unit becomes an If between its float and its rounded form.

    y = If(rounded) {
            x' = If(dynamic) {round x at run time} else {Q/DQ of x}
            y' = node(x', rounded weights)
            If(written) {Q/DQ of y'} else {y'}
        } else {the float node}

All constants stand inside the branch that reads them: ONNX Runtime packs and fuses only those (with
weights outside, a float run of mobilenetv2_fmnist took 7 times as long as the plain model, so 2
times; ``Where(flag, DQ(Q(x)), x)`` costs 37 times). All flags are one extra input, a vector of
bools that is split in the graph. Q/DQ twice with equal parameters is Q/DQ once, so a unit may round
its inputs whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.affine import QParams, dequantize
from qcompile.ir.errors import PassError
from qcompile.ir.graph import (
    attribute,
    constant,
    default_opset,
    drop_unused,
    replace_value,
    used_names,
)
from qcompile.ir.spec import PER_TENSOR, QDType, QuantSpec, per_axis, per_block
from qcompile.ir.target import Target
from qcompile.passes.quantizable import quantizable
from qcompile.planner.branch import Branch
from qcompile.planner.units import Unit, identified, units

__all__ = ["FLAGS", "Gate", "Gated", "gate", "weight_bytes"]

FLAGS = "qcompile_flags"
"""Name of the extra input (made fresh when the model uses it)."""


@dataclass(frozen=True)
class Gate:
    """Where the flags of one unit stand in the vector.

    Attributes:
        unit: the unit; its nodes are gone from the gated graph, only what it says is used.
        rounded: flag of both rounded forms.
        dynamic: flag that rounds inputs at run time; None where that is not offered.
        written: flag that rounds what the int8 form writes; None where nothing can.
        static: whether there is an int8 form here.
    """

    unit: Unit
    rounded: int
    dynamic: int | None
    written: int | None
    static: bool


@dataclass(frozen=True)
class Gated:
    """A gated graph.

    Attributes:
        model: takes the vector of flags beside its own inputs.
        flags: name of that input.
        count: how many flags.
        gates: origin -> gate, in graph order.
    """

    model: oir.Model
    flags: str
    count: int
    gates: dict[str, Gate]


def weight_bytes(unit: Unit) -> int:
    """Bytes that gating a unit adds: its rounded weights, and those again as the kernel packs them."""
    arrays = [constant(value) for value in unit.site.node.inputs]
    return 2 * sum(array.nbytes for array in arrays if array is not None)


def gate(
    model: oir.Model,
    quantized: oir.Model,
    target: Target,
    *,
    only: Collection[str] | None = None,
) -> Gated:
    """Gate the units of a prepared float model.

    Args:
        model: the prepared float model; stays as it is.
        quantized: the same with Q/DQ on every unit that can be int8 (all others stay float here).
        target: its table says what a unit is.
        only: origins to gate; the others stay float.
    """
    work = model.clone()
    builder = _Builder(work, identified(quantized))
    found = [u for u in units(quantizable(work, target)) if only is None or u.origin in only]
    # A value that another unit replaces must be looked up when its reader is built, so in order.
    for unit in found:
        builder.add(unit)
    return builder.finish()


class _Builder:
    def __init__(self, work: oir.Model, quantized: dict[str, oir.Node]) -> None:
        self.work = work
        self.quantized = quantized
        self.gates: dict[str, Gate] = {}
        self._taken = used_names(work.graph)
        self._counts: dict[str, int] = {}
        self._flags: list[oir.Value] = []
        self._vector = oir.Value(name=self.fresh(FLAGS), type=oir.TensorType(oir.DataType.BOOL))

    # -- a unit ------------------------------------------------------------------------------

    def add(self, unit: Unit) -> None:
        """Replace the unit's nodes by an If, unless the quantized model left it float."""
        rounders = self._rounders(unit)
        weights = self._weights(unit, static=bool(rounders))
        dynamic = unit.dynamic and default_opset(self.work) >= 11
        if not rounders and not dynamic:
            return
        rounded, rounded_value = self._flag()
        dynamic_flag, dynamic_value = self._flag() if dynamic else (None, None)
        branch = Branch(self.fresh)
        inputs = {i: branch.constant(f"{unit.origin}_{i}", w) for i, w in weights.items()}
        done: dict[oir.Value, oir.Value] = {}
        for index in dict.fromkeys([*rounders, *((0,) if dynamic else ())]):
            value = unit.site.node.inputs[index]
            if value is None:
                continue
            if value not in done:
                at_run_time = dynamic_value if index == 0 else None
                done[value] = self._rounded(branch, value, rounders.get(index), at_run_time)
            inputs[index] = done[value]
        outputs = self._copy(branch, unit, inputs)
        written, outputs = self._write(branch, unit, outputs) if rounders else (None, outputs)
        plain = Branch(self.fresh)
        float_outputs = self._copy(plain, unit, {})
        outer = Branch(self.fresh)
        choice = self._if(
            outer, rounded_value, branch.graph(outputs), plain.graph(float_outputs), unit.outputs
        )
        self._replace(unit, choice)
        self.gates[unit.origin] = Gate(unit, rounded, dynamic_flag, written, bool(rounders))

    def _twin(self, unit: Unit) -> oir.Node:
        found = self.quantized.get(unit.origin)
        if found is None:
            raise PassError(f"node '{unit.origin}' is missing in the quantized model")
        return found

    def _rounders(self, unit: Unit) -> dict[int, oir.Node]:
        """Input -> the QuantizeLinear that stands before it in the quantized model."""
        found: dict[int, oir.Node] = {}
        if unit.static:
            for index in unit.site.activations:
                dq = _producer(self._twin(unit).inputs[index], "DequantizeLinear")
                q = None if dq is None else _producer(dq.inputs[0], "QuantizeLinear")
                if q is not None:
                    found[index] = q
        return found

    def _weights(self, unit: Unit, *, static: bool) -> dict[int, npt.NDArray[np.generic]]:
        """Constant inputs (weight, bias, operands) as the rounded forms read them."""
        found: dict[int, npt.NDArray[np.generic]] = {}
        if unit.static:
            bias = None if unit.site.row is None else unit.site.row.bias
            for index, value in enumerate(self._twin(unit).inputs):
                dq = _producer(value, "DequantizeLinear")
                if static and index == bias and (shifted := constant(value)) is not None:
                    found[index] = shifted  # a form that keeps its bias in float, corrected
                if dq is None or constant(dq.inputs[0]) is None:
                    continue
                # Biases are rounded with the static input's scale: not in a form that has none.
                if static or index in unit.weights:
                    found[index] = _dequantized(dq)
        for index in unit.weights:
            if index not in found:
                found[index] = _rounded_rows(unit.site.node.inputs[index])
        return found

    def _rounded(
        self, branch: Branch, value: oir.Value, q: oir.Node | None, flag: oir.Value | None
    ) -> oir.Value:
        """``value`` rounded statically, at run time, or whichever a flag says."""
        if flag is None and q is not None:
            return self._round(branch, value, q)
        if q is None:
            return self._round_at_run_time(branch, value)
        then, otherwise = Branch(self.fresh), Branch(self.fresh)
        choice = self._if(
            branch,
            flag,
            then.graph([self._round_at_run_time(then, value)]),
            otherwise.graph([self._round(otherwise, value, q)]),
            [value],
        )
        return choice.outputs[0]

    def _write(
        self, branch: Branch, unit: Unit, outputs: list[oir.Value]
    ) -> tuple[int | None, list[oir.Value]]:
        """Let a flag round the outputs that the quantized model rounds."""
        last = _last(self._twin(unit), unit)
        quantizers = [_reader(value, "QuantizeLinear") for value in last.outputs]
        if not any(quantizers):
            return None, outputs
        written, condition = self._flag()
        then, otherwise = Branch(self.fresh), Branch(self.fresh)
        rounded = [
            self._round(then, v, q) if q is not None else self._same(then, v)
            for v, q in zip(outputs, quantizers, strict=True)
        ]
        same = [self._same(otherwise, v) for v in outputs]
        choice = self._if(branch, condition, then.graph(rounded), otherwise.graph(same), outputs)
        return written, list(choice.outputs)

    # -- parts -------------------------------------------------------------------------------

    def _copy(self, branch: Branch, unit: Unit, inputs: dict[int, oir.Value]) -> list[oir.Value]:
        """The unit's nodes again, with some inputs of the anchor exchanged; their outputs."""
        same: dict[oir.Value, oir.Value] = {}
        for node in unit.nodes:
            values = [None if v is None else same.get(v, v) for v in node.inputs]
            if node is unit.site.node:
                values = [inputs.get(i, v) for i, v in enumerate(values)]
            outputs = [self._value(v) for v in node.outputs]
            same.update(zip(node.outputs, outputs, strict=True))
            branch.add(
                node.op_type,
                values,
                outputs,
                *node.attributes.values(),
                name=node.name or "",
                domain=node.domain,
            )
        return [same[v] for v in unit.outputs]

    def _round(self, branch: Branch, value: oir.Value, q: oir.Node) -> oir.Value:
        integers, result = oir.Value(name=self.fresh("q")), self._value(value)
        branch.add("QuantizeLinear", [value, *q.inputs[1:]], [integers], *q.attributes.values())
        branch.add("DequantizeLinear", [integers, *q.inputs[1:]], [result], *q.attributes.values())
        return result

    def _round_at_run_time(self, branch: Branch, value: oir.Value) -> oir.Value:
        parts = [oir.Value(name=self.fresh("dynamic")) for _ in range(3)]
        result = self._value(value)
        branch.add("DynamicQuantizeLinear", [value], parts)
        branch.add("DequantizeLinear", parts, [result])
        return result

    def _same(self, branch: Branch, value: oir.Value) -> oir.Value:
        result = self._value(value)
        branch.add("Identity", [value], [result])
        return result

    def _if(
        self,
        branch: Branch,
        condition: oir.Value | None,
        then: oir.Graph,
        otherwise: oir.Graph,
        like: Sequence[oir.Value],
    ) -> oir.Node:
        return branch.add(
            "If",
            [condition],
            [self._value(v) for v in like],
            oir.AttrGraph("then_branch", then),
            oir.AttrGraph("else_branch", otherwise),
            name="gate",
        )

    def _replace(self, unit: Unit, node: oir.Node) -> None:
        graph = self.work.graph
        graph.insert_before(unit.nodes[-1], node)
        for old, new in zip(unit.outputs, node.outputs, strict=True):
            replace_value(old, new)
        for part in reversed(unit.nodes):
            graph.remove(part, safe=True)

    def _flag(self) -> tuple[int, oir.Value]:
        value = oir.Value(
            name=self.fresh("flag"), type=oir.TensorType(oir.DataType.BOOL), shape=oir.Shape([1])
        )
        self._flags.append(value)
        return len(self._flags) - 1, value

    def finish(self) -> Gated:
        """Add the vector of flags and its split."""
        count = len(self._flags)
        if count:
            self._vector.shape = oir.Shape([count])
            self.work.graph.inputs.append(self._vector)
            attributes = [oir.AttrInt64("axis", 0)]
            if default_opset(self.work) >= 18:
                attributes.append(oir.AttrInt64("num_outputs", count))
            split = oir.Node("", "Split", [self._vector], attributes, outputs=self._flags)
            self.work.graph.insert_before(self.work.graph[0], split)
        drop_unused(self.work)
        return Gated(self.work, self._vector.name or FLAGS, count, self.gates)

    def _value(self, like: oir.Value) -> oir.Value:
        return oir.Value(name=self.fresh(like.name or "value"), type=like.type)

    def fresh(self, base: str) -> str:
        """A name that nothing uses yet, subgraphs included."""
        name = base
        while name in self._taken:
            # Bases repeat by the thousand ("flag", "q"), so counting goes on where it stopped.
            self._counts[base] = self._counts.get(base, -1) + 1
            name = f"{base}_g{self._counts[base]}"
        self._taken.add(name)
        return name


def _producer(value: oir.Value | None, op_type: str) -> oir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _reader(value: oir.Value, op_type: str) -> oir.Node | None:
    return next((use.node for use in value.uses() if use.node.op_type == op_type), None)


def _last(twin: oir.Node, unit: Unit) -> oir.Node:
    """The quantized model's node that stands for the unit's last one."""
    node = twin
    for site in unit.absorbed:
        following = _reader(node.outputs[0], site.op_type)
        if following is None:
            raise PassError(
                f"'{site.origin}' does not follow '{unit.origin}' in the quantized model"
            )
        node = following
    return node


def _array(value: oir.Value | None) -> npt.NDArray[np.generic]:
    found = constant(value)
    if found is None:
        raise PassError(f"'{value.name if value else ''}' is not constant")
    return found


def _dequantized(dq: oir.Node) -> npt.NDArray[np.float32]:
    q, scale = _array(dq.inputs[0]), _array(dq.inputs[1]).astype(np.float32)
    zero_point = _array(dq.inputs[2]) if len(dq.inputs) > 2 else np.zeros(scale.shape, q.dtype)
    axis, block = attribute(dq, "axis", 1), attribute(dq, "block_size", 0)
    granularity = PER_TENSOR
    if scale.ndim and isinstance(axis, int) and isinstance(block, int):
        granularity = per_block(axis, block) if block else per_axis(axis)
    spec = QuantSpec(cast(QDType, q.dtype.name), symmetric=False, granularity=granularity)
    return dequantize(q, QParams(scale, zero_point, spec))


def _rounded_rows(value: oir.Value | None) -> npt.NDArray[np.generic]:
    """A weight rounded to int8 per output channel: (in, out) of MatMul, (dirs, out, in) of LSTM."""
    array = _array(value).astype(np.float32)
    scale = np.abs(array).max(axis=-1 if array.ndim == 3 else 0, keepdims=True) / np.float32(127)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.asarray(np.rint(array / scale) * scale, np.float32)
