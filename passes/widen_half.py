"""Float16 arithmetic as float32, for runtimes that compute float16 in float32 anyway.

Before:  x -> Cast(float16) -> Conv (float16 weights) -> Cast(float) -> y
After:   x -> Cast(float)   -> Conv (float32 weights) -> Cast(float) -> y

ONNX Runtime's CPU kernels have no float16 forms of most operators: it writes casts around each. Graph
inputs and outputs keep their type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import fresh_name, subgraphs_of
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.passes.widen_bf16 import widen_constant

__all__ = ["WidenHalf"]

_HALF, _FLOAT = oir.DataType.FLOAT16, oir.DataType.FLOAT


@dataclass(frozen=True)
class WidenHalf:
    """Makes a float16 model one whose layers can be integer; a model with control flow is left alone."""

    name: str = "widen-half"

    def run(self, state: CompileState) -> PassResult:
        """Edit ``state.model``; float16 is left at graph inputs and outputs alone."""
        graph = state.model.graph
        given = [v for v in graph.initializers.values() if v.dtype == _HALF]
        outputs = [v for node in graph for v in node.outputs if v.dtype == _HALF]
        made = [v for v in outputs if not _back_to_half(v)]
        if not given and not made:
            return PassResult(0)
        if any(subgraphs_of(node) for node in graph) or any(v.is_graph_input() for v in given):
            return PassResult(0, (Note("", "float16 is kept: control flow may read it"),))
        for value in given:
            widen_constant(value)
        for value in graph.inputs:
            if value.dtype == _HALF and any(u.node.op_type != "Cast" for u in value.uses()):
                _read_wide(graph, value)
        for node in list(graph):
            _widen_attributes(node)
            for output in node.outputs:
                if output.dtype == _HALF and not _back_to_half(output):
                    output.type = oir.TensorType(_FLOAT)
                    if output.is_graph_output():
                        _write_half(graph, node, output)
        return PassResult(len(given) + len(made))


def _widen_attributes(node: oir.Node) -> None:
    if _back_to_half(node.outputs[0]):
        return
    for key in ("to", "dtype"):
        named = node.attributes.get(key)
        if named is not None and named.as_int() == int(_HALF):
            node.attributes[key] = oir.AttrInt64(key, int(_FLOAT))
    value = node.attributes.get("value")
    if value is not None and value.type == oir.AttributeType.TENSOR:
        held = value.as_tensor()
        if held.dtype == _HALF:
            wide = oir.tensor(held.numpy().astype(np.float32), name=held.name)
            node.attributes["value"] = oir.AttrTensor("value", wide)


def _back_to_half(value: oir.Value) -> bool:
    """Whether this is the cast that gives a graph output its type."""
    producer = value.producer()
    return producer is not None and producer.op_type == "Cast" and value.is_graph_output()


def _read_wide(graph: oir.Graph, value: oir.Value) -> None:
    readers = list(value.uses())
    name = fresh_name(graph, f"{value.name}_wide")
    wide = oir.Value(name=name, type=oir.TensorType(_FLOAT), shape=value.shape)
    cast = oir.node("Cast", [value], {"to": int(_FLOAT)}, outputs=[wide], name=f"{name}_Cast")
    first = next(iter(graph), None)
    if first is not None:
        graph.insert_before(first, cast)
    for use in readers:
        use.node.replace_input_with(use.idx, wide)


def _write_half(graph: oir.Graph, node: oir.Node, output: oir.Value) -> None:
    name = output.name
    output.name = fresh_name(graph, f"{name}_wide")
    half = oir.Value(name=name, type=oir.TensorType(_HALF), shape=output.shape)
    cast = oir.node("Cast", [output], {"to": int(_HALF)}, outputs=[half], name=f"{name}_Cast")
    graph.insert_after(node, cast)
    graph.outputs[list(graph.outputs).index(output)] = half
