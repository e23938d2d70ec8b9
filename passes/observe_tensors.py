"""Observe tensors inside the graph.

Before, a tensor T is read by its consumers alone; after, also by

    low = ReduceMin(T)      high = ReduceMax(T)      sum = ReduceSum(T)
    sample = Slice(Reshape(T, [-1]), start, end, stride)

and these four small tensors are the only outputs, so that next to nothing crosses into Python.
Whatever no observed tensor depends on is dropped, and so are the model's own outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.errors import CalibrationError
from qcompile.ir.graph import add_initializer, default_opset, drop_unused

__all__ = ["STARTS", "STRIDES", "Probe", "observable", "observe_tensors", "same_values"]

STARTS = "qcompile_starts"
"""Graph input, int64 (tensors,): the first element that each sample takes."""

STRIDES = "qcompile_strides"
"""Graph input, int64 (tensors,): the step of each sample."""

_FLOATS = frozenset(
    {oir.DataType.FLOAT, oir.DataType.FLOAT16, oir.DataType.BFLOAT16, oir.DataType.DOUBLE}
)


_MOVES = frozenset(
    [
        "DepthToSpace",
        "Flatten",
        "Identity",
        "Reshape",
        "SpaceToDepth",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators whose output holds each element of their first input once."""


@dataclass(frozen=True)
class Probe:
    """The graph outputs that describe one observed tensor.

    Attributes:
        tensor: its name in the model.
        low: scalar, its minimum (NaN is not reliably seen).
        high: scalar, its maximum (the same).
        total: scalar, its sum: NaN or infinite when any element is.
        size: (1,) or scalar int64, its number of elements; "" when not sampled.
        sample: (k,) float32, every stride-th element; "" when not sampled. With an opset that has
            no stepped Slice the whole tensor, flattened.
    """

    tensor: str
    low: str
    high: str
    total: str
    size: str = ""
    sample: str = ""


def observable(model: oir.Model) -> dict[str, oir.Value]:
    """The float tensors of the main graph that can be observed, by name: inputs and node outputs."""
    found: dict[str, oir.Value] = {}
    for value in model.graph.inputs:
        if value.name and not value.is_initializer() and value.dtype in _FLOATS:
            found[value.name] = value
    for node in model.graph:
        if node.op_type == "Constant" and node.domain == "":
            continue
        for value in node.outputs:
            if value.name and value.dtype in _FLOATS and isinstance(value.type, oir.TensorType):
                found[value.name] = value
    return found


def same_values(model: oir.Model, tensors: Sequence[str]) -> dict[str, str]:
    """For each tensor the first tensor with just its elements, before they were moved around.

    Observing that one is enough for all that follow from it.
    """
    known = observable(model)
    found: dict[str, str] = {}
    for name in tensors:
        value = known.get(name)
        root = name
        while value is not None and (node := value.producer()) is not None:
            if node.domain or node.op_type not in _MOVES or node.inputs[0] is None:
                break
            value = known.get(node.inputs[0].name or "")
            if value is not None and value.name:
                root = value.name
        found[name] = root
    return found


def observe_tensors(
    model: oir.Model, tensors: Sequence[str], *, sample: bool = True
) -> tuple[Probe, ...]:
    """Instrument ``model`` in place; with ``sample``, it gains the inputs STARTS and STRIDES.

    Raises:
        CalibrationError: a tensor is no float tensor of the main graph.
    """
    graph = model.graph
    known = observable(model)
    for name in tensors:
        if name not in known:
            raise CalibrationError(
                f"tensor '{name}' cannot be observed: it is no float tensor of the main graph"
            )
    values = [known[name] for name in tensors]
    position = {node: i for i, node in enumerate(graph)}
    depth = [-1 if (p := v.producer()) is None else position[p] for v in values]
    graph.outputs.clear()
    builder = _Builder(graph, default_opset(model))
    steps = builder.steps(len(values)) if sample and builder.opset >= 10 else None
    probes: dict[int, Probe] = {}
    # Deepest first: ONNX Runtime walks back from the last leaf, so that in this order each tensor is
    # reduced as soon as it exists and is not kept until the end of the run.
    for i in sorted(range(len(values)), key=lambda i: -depth[i]):
        step = (steps[0][i], steps[1][i]) if steps else None
        probes[i] = builder.probe(tensors[i], values[i], i, step, sample=sample)
    drop_unused(model)
    return tuple(probes[i] for i in range(len(values)))


class _Builder:
    """Appends nodes to a graph under names that nothing else uses."""

    def __init__(self, graph: oir.Graph, opset: int) -> None:
        self.graph = graph
        self.opset = opset
        # One look at all names: fresh_name for each of thousands of values would be quadratic.
        names = {v.name or "" for v in graph.inputs} | set(graph.initializers)
        names.update(v.name or "" for node in graph.all_nodes() for v in node.outputs)
        self.prefix = "qcompile_probe"
        while any(name.startswith(self.prefix) for name in names):
            self.prefix += "_"
        self.flat = self._constant("flat", -1)
        self.axis = self._constant("axis", 0)
        self.end = self._constant("end", 2**31 - 1)

    def _constant(self, name: str, number: int) -> oir.Value:
        return add_initializer(self.graph, f"{self.prefix}_{name}", np.array([number], np.int64))

    def steps(self, count: int) -> tuple[list[oir.Value], list[oir.Value]]:
        """The start and stride of each sample, cut from the two new graph inputs."""
        return self._split(STARTS, count), self._split(STRIDES, count)

    def _split(self, name: str, count: int) -> list[oir.Value]:
        kind = oir.TensorType(oir.DataType.INT64)
        vector = oir.Value(name=name, type=kind, shape=oir.Shape([count]))
        self.graph.inputs.append(vector)
        parts = [oir.Value(name=f"{self.prefix}_{name}_{i}", type=kind) for i in range(count)]
        parts_attribute = [_integer("num_outputs", count)] if self.opset >= 18 else []
        self.graph.append(
            oir.Node("", "Split", [vector], [_integer("axis", 0), *parts_attribute], outputs=parts)
        )
        return parts

    def probe(
        self,
        tensor: str,
        value: oir.Value,
        index: int,
        step: tuple[oir.Value, oir.Value] | None,
        *,
        sample: bool,
    ) -> Probe:
        """The outputs that describe ``value``."""
        if value.dtype != oir.DataType.FLOAT:
            # The CPU provider reduces float32 (it puts such casts around float16 nodes itself).
            value = self._node(
                f"cast_{index}", "Cast", [value], _integer("to", int(oir.DataType.FLOAT))
            )
        drawn = size = ""
        if sample:
            line = self._node(f"line_{index}", "Reshape", [value, self.flat])
            if step is not None:
                start, stride = step
                cut = [line, start, self.end, self.axis, stride]
                line = self._node(f"sample_{index}", "Slice", cut)
            drawn = self._output(line, [None])
            count = self._node(f"size_{index}", "Size", [value], dtype=oir.DataType.INT64)
            size = self._output(count, [])
        scalar = _integer("keepdims", 0)
        total = self._node(f"total_{index}", "ReduceSum", [value], scalar)
        high = self._node(f"high_{index}", "ReduceMax", [value], scalar)
        low = self._node(f"low_{index}", "ReduceMin", [value], scalar)
        return Probe(
            tensor,
            low=self._output(low, []),
            high=self._output(high, []),
            total=self._output(total, []),
            size=size,
            sample=drawn,
        )

    def _output(self, value: oir.Value, shape: list[None]) -> str:
        value.shape = oir.Shape(shape)
        self.graph.outputs.append(value)
        return value.name or ""

    def _node(
        self,
        name: str,
        op_type: str,
        inputs: list[oir.Value],
        attribute: oir.Attr | None = None,
        dtype: oir.DataType = oir.DataType.FLOAT,
    ) -> oir.Value:
        full = f"{self.prefix}_{name}"
        result = oir.Value(name=full, type=oir.TensorType(dtype))
        attributes = [attribute] if attribute else []
        self.graph.append(oir.Node("", op_type, inputs, attributes, outputs=[result], name=full))
        return result


def _integer(name: str, number: int) -> oir.Attr:
    return oir.Attr(name, oir.AttributeType.INT, number)
