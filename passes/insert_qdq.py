"""Write the plan into the graph as QuantizeLinear and DequantizeLinear.

Before:  x -> Conv(W, b) -> Relu -> y
After:   x -> Q -> DQ -> Conv(DQ(W_quantized), DQ(b_quantized)) -> Relu -> Q -> DQ -> y

One pair stands directly behind the producer of a tensor. Integer consumers read its DQ; float
consumers read the float tensor, unless an integer kernel writes the tensor, for then no float
tensor will exist.

The result is portable and states what was decided. ONNX Runtime's optimizer, given this file, makes
more of it than that: a float Conv between two integer ones gets its weights quantized too, per
tensor. The backend's lowering prevents it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.affine import (
    QParams,
    TensorRange,
    dequantize,
    quantize,
    solve,
    weight_range,
)
from qcompile.ir.errors import PassError
from qcompile.ir.graph import constant, is_graph_output, register_constant, used_names
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.passes.integer_region import Region, integer_region
from qcompile.passes.quantizable import Site
from qcompile.passes.quantize_weights import choose_weights, integer_bias, weight_keys
from qcompile.passes.share_scales import choose_scales

__all__ = ["InsertQDQ"]


@dataclass(frozen=True)
class InsertQDQ:
    """Inserts Q/DQ pairs and integer weights; scales and weights not yet chosen are chosen first."""

    name: str = "insert-qdq"

    def run(self, state: CompileState) -> PassResult:
        """Edit ``state.model`` as ``state.plan`` says; a second run finds nothing to do.

        Raises:
            CalibrationError: a tensor that needs a range has none.
            TargetError: the user pinned a node to int8 that the target cannot run so.
        """
        region = integer_region(state)
        choose_scales(state, region)
        notes = [*region.refused, *choose_weights(state, region).notes]
        keys = weight_keys(region)
        writer = _Writer(state.model, state.target.float_constants)
        for node, site in region.sites.items():
            _write_constants(state, writer, site, keys.get(node), wide=node in region.wide)
        for value in region.tensors:
            _write_pair(state, writer, region, value)
        writer.drop_unused_constants()
        notes += [Note(s.origin, "int8", changed=True) for s in region.sites.values()]
        return PassResult(len(region.sites), tuple(notes))


@dataclass
class _Writer:
    """Makes initializers and Q/DQ nodes under fresh names."""

    model: oir.Model
    float_constants: bool = False
    taken: set[str] = field(init=False)
    node_names: set[str] = field(init=False)
    weights: dict[str, oir.Value] = field(default_factory=dict)
    operands: dict[tuple[oir.Value, bytes], oir.Value] = field(default_factory=dict)
    replaced: dict[oir.Value, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.taken = used_names(self.model.graph)
        self.node_names = {node.name or "" for node in self.model.graph.all_nodes()}

    def fresh(self, base: str) -> str:
        return _fresh(base, self.taken)

    def initializer(self, base: str, array: npt.NDArray[np.generic]) -> oir.Value:
        name = self.fresh(base)
        return register_constant(self.model.graph, name, array)

    def parameters(self, base: str, qparams: QParams) -> list[oir.Value]:
        scale = self.initializer(f"{base}_scale", qparams.scale)
        return [scale, self.initializer(f"{base}_zero_point", qparams.zero_point)]

    def node(
        self, op_type: str, base: str, inputs: list[oir.Value], result: oir.Value, axis: int | None
    ) -> oir.Node:
        attributes = {} if axis is None else {"axis": axis}
        name = _fresh(f"{base}_{op_type}", self.node_names)
        return oir.node(op_type, inputs, attributes, outputs=[result], name=name)

    def dequantized_constant(
        self, base: str, values: npt.NDArray[np.generic], qparams: QParams, before: oir.Node
    ) -> oir.Value:
        """An integer constant and its DequantizeLinear, standing before a node.

        Where the target wants float constants, the integers are those that a QuantizeLinear makes
        of float values on their grid: q * s / s rounds to q again.
        """
        axis = qparams.spec.granularity.axis
        if self.float_constants:
            stored = self.initializer(f"{base}_on_grid", dequantize(values, qparams))
        else:
            stored = self.initializer(f"{base}_quantized", values)
        parameters = self.parameters(base, qparams)
        integers = stored
        if self.float_constants:
            integers = oir.Value(
                name=self.fresh(f"{base}_quantized"),
                type=oir.TensorType(parameters[1].dtype or oir.DataType.INT8),
                shape=oir.Shape(values.shape),
            )
            q = self.node("QuantizeLinear", base, [stored, *parameters], integers, axis)
            self.model.graph.insert_before(before, q)
        result = oir.Value(
            name=self.fresh(f"{base}_dequantized"),
            type=oir.TensorType(oir.DataType.FLOAT),
            shape=oir.Shape(values.shape),
        )
        dq = self.node("DequantizeLinear", base, [integers, *parameters], result, axis)
        self.model.graph.insert_before(before, dq)
        return result

    def drop_unused_constants(self) -> None:
        for value in self.replaced:
            if value.uses() or is_graph_output(value) or value.is_graph_input():
                continue
            producer = value.producer()
            if producer is not None:
                self.model.graph.remove(producer, safe=True)
            elif value.name is not None:
                self.model.graph.initializers.pop(value.name, None)


def _fresh(base: str, taken: set[str]) -> str:
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


def _write_constants(
    state: CompileState, writer: _Writer, site: Site, key: str | None, *, wide: bool
) -> None:
    """Weight, bias and constant operands of a site; beside 16-bit activations the bias stays float."""
    if site.weight is not None and key is not None and site.row is not None:
        chosen = state.weights[key]
        if key not in writer.weights:
            base = site.weight.name or key
            writer.weights[key] = writer.dequantized_constant(
                base, chosen.values, chosen.qparams, site.node
            )
        _replace_input(writer, site.node, site.row.weight, writer.weights[key])
        if site.bias is not None and not wide:
            values, qparams = integer_bias(state, site, chosen)
            base = site.bias.name or f"{key}_bias"
            result = writer.dequantized_constant(base, values, qparams, site.node)
            _replace_input(writer, site.node, site.row.bias, result)
    for index, value in site.constants.items():
        array = constant(value)
        if array is None:
            continue
        qparams = _operand_qparams(state, site, value, array)
        if wide and site.role == "passthrough":
            qparams = _widened(state, qparams)
        same = (value, qparams.scale.tobytes() + qparams.zero_point.tobytes())
        if same not in writer.operands:
            writer.operands[same] = writer.dequantized_constant(
                value.name or "", quantize(array, qparams), qparams, site.node
            )
        _replace_input(writer, site.node, index, writer.operands[same])


def _operand_qparams(
    state: CompileState, site: Site, value: oir.Value, array: npt.NDArray[np.generic]
) -> QParams:
    """A mover's constant shares the scale of what it writes; any other has its own."""
    if site.role == "passthrough":
        return state.qparams[site.outputs[0].name or ""]
    spec = state.target.activation
    given = state.qparams.get(value.name or "")
    # The name may stand for the same constant as a weight, in the weight's type.
    if given is not None and given.spec.dtype == spec.dtype:
        return given
    own = solve(weight_range(array, spec), spec)
    state.qparams.setdefault(value.name or "", own)
    return own


def _replace_input(writer: _Writer, node: oir.Node, index: int | None, new: oir.Value) -> None:
    if index is None:
        return
    old = node.inputs[index]
    if old is not None:
        writer.replaced[old] = None
    node.replace_input_with(index, new)


def _widened(state: CompileState, qparams: QParams) -> QParams:
    """The same range of values in 16 bits, so that tensors which share a scale share this one too."""
    spec = state.target.wide_activation
    if spec is None:
        raise PassError("the plan asks for 16-bit activations, which the target does not have")
    steps = np.array([qparams.spec.qmin, qparams.spec.qmax], np.float64)
    ends = qparams.scale.astype(np.float64) * (steps - qparams.zero_point.astype(np.float64))
    low, high = (np.asarray(end, np.float64) for end in ends)
    return solve(TensorRange(low, high, "widened"), spec)


def _write_pair(state: CompileState, writer: _Writer, region: Region, value: oir.Value) -> None:
    """Q and DQ behind the producer of ``value``; a pair for each width that is read.

    Where an integer kernel writes the tensor, its pair comes first and the other one reads that.
    """
    base = value.name or ""
    by_width: dict[bool, list[tuple[oir.Node, int]]] = {}
    for use in value.uses():
        if use.node in region.sites and region.sites[use.node].activations.get(use.idx) is value:
            by_width.setdefault(use.node in region.wide, []).append(use)

    def qparams(wide: bool) -> QParams:
        return _widened(state, state.qparams[base]) if wide else state.qparams[base]

    if value not in region.written:
        for wide, uses in sorted(by_width.items()):
            _redirect(uses, _pair(writer, base, value, value, qparams(wide)))
        return
    own = value in region.wide_written
    everyone = list(value.uses())
    result = _pair(writer, base, value, value, qparams(own))
    _redirect(everyone, result)
    others = by_width.get(not own, [])
    if others:
        _redirect(others, _pair(writer, base, value, result, qparams(not own)))
    if is_graph_output(value):
        # The model's output keeps its name; the tensor before the pair gives it up.
        for index, output in enumerate(writer.model.graph.outputs):
            if output is value:
                writer.model.graph.outputs[index] = result
        value.name = writer.fresh(f"{base}_float")
        result.name = base


def _redirect(uses: Sequence[tuple[oir.Node, int]], to: oir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, to)


def _pair(
    writer: _Writer, base: str, value: oir.Value, source: oir.Value, qparams: QParams
) -> oir.Value:
    """Q and DQ behind what writes ``source``; the DQ's result, which nothing reads yet."""
    graph = writer.model.graph
    parameters = writer.parameters(base, qparams)
    quantized = oir.Value(
        name=writer.fresh(f"{base}_quantized"),
        type=oir.TensorType(parameters[1].dtype or oir.DataType.UINT8),
        shape=value.shape,
    )
    result = oir.Value(
        name=writer.fresh(f"{base}_dequantized"),
        type=oir.TensorType(oir.DataType.FLOAT),
        shape=value.shape,
    )
    q = writer.node("QuantizeLinear", base, [source, *parameters], quantized, None)
    dq = writer.node("DequantizeLinear", base, [quantized, *parameters], result, None)
    producer = source.producer()
    if producer is None:
        graph.insert_before(graph[0], [q, dq])
    else:
        graph.insert_after(producer, [q, dq])
    return result
