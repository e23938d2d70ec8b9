"""The prepared graph as rows: which node reads and writes which tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx_ir as oir

from qcompile.ir.graph import origin, subgraphs_of
from qcompile.passes.quantizable import Site

__all__ = ["graph_rows", "node_names"]

LONGEST = 16
"""Letters of a dimension's name."""


def graph_rows(model: oir.Model, names: dict[oir.Node, str]) -> dict[str, Any]:
    """Inputs, outputs and nodes of the main graph in its order; constants are left out.

    Args:
        model: the prepared model.
        names: node -> what plan and report call it.
    """
    graph = model.graph
    tensors = {v for n in graph for v in n.outputs} | set(graph.inputs)
    rows = []
    for node in graph:
        if node.op_type == "Constant":
            continue
        read = [v for v in _read(node) if v in tensors and not _constant(v)]
        written = [v for v in node.outputs if v.name]
        rows.append(
            {
                "origin": names[node],
                "op_type": node.op_type,
                "reads": list(dict.fromkeys(v.name or "" for v in read)),
                "writes": [v.name for v in written],
                "shape": _shape(written[0]) if written else "",
            }
        )
    return {
        "inputs": [v.name for v in graph.inputs if not v.is_initializer()],
        "outputs": [v.name for v in graph.outputs],
        "nodes": rows,
    }


def node_names(model: oir.Model, sites: Iterable[Site]) -> dict[oir.Node, str]:
    """Node -> its name in plan and report, also for nodes that no plan has a word on."""
    known = {site.node: site.origin for site in sites}
    return {n: known.get(n) or origin(n) or n.name or n.op_type for n in model.graph}


def _read(node: oir.Node) -> list[oir.Value]:
    """What a node reads, with what its branches read from outside."""
    found = [v for v in node.inputs if v is not None]
    for _, graph in subgraphs_of(node):
        found += [v for inner in graph.all_nodes() for v in inner.inputs if v is not None]
    return found


def _constant(value: oir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def _shape(value: oir.Value) -> str:
    """Dimensions as text; a formula that an exporter wrote for one is no help."""
    if value.shape is None:
        return ""
    names = [str(d) if isinstance(d, int) else d.value or "?" for d in value.shape]
    return "x".join(
        name if len(name) <= LONGEST and not name.startswith("unk__") else "?" for name in names
    )
