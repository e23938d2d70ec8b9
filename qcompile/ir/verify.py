"""The invariants of a graph, checked after every pass."""

from __future__ import annotations

import onnx_ir as oir

from qcompile.ir.errors import PassError

__all__ = ["verify"]


def verify(model: oir.Model) -> None:
    """Check that names are unique, every value read exists before it is read, and outputs exist.

    Raises:
        PassError: an invariant is broken; names the node and the tensor.
    """
    _verify_graph(model.graph, set())


def _verify_graph(graph: oir.Graph, outer: set[str]) -> None:
    known = set(outer)
    for value in list(graph.inputs) + list(graph.initializers.values()):
        known.add(value.name or "")
    produced: set[str] = set()
    for node in graph:
        for value in node.inputs:
            if value is not None and value.name not in known:
                raise PassError(
                    f"node '{node.name}' ({node.op_type}) reads '{value.name}' before anything writes it"
                )
        for attr in node.attributes.values():
            if attr.type == oir.AttributeType.GRAPH:
                _verify_graph(attr.as_graph(), known)
            elif attr.type == oir.AttributeType.GRAPHS:
                for inner in attr.as_graphs():
                    _verify_graph(inner, known)
        for value in node.outputs:
            name = value.name or ""
            if name and (name in produced or name in known):
                raise PassError(f"node '{node.name}' ({node.op_type}) writes '{name}' a second time")
            produced.add(name)
            known.add(name)
    for value in graph.outputs:
        if value.name not in known:
            raise PassError(f"graph output '{value.name}' is written by nothing")
