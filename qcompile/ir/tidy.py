"""Puts a parsed model into the one form that everything else relies on.

Afterwards nodes are sorted, names are unique, functions are inlined, and every node carries its
origin id as name. What had to be changed is told in notes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx_ir as oir

from qcompile.ir.graph import ORIGIN_KEY, origin, subgraphs_of
from qcompile.ir.notes import Note

__all__ = ["assign_origins"]


def assign_origins(graph: Iterable[oir.Node], prefix: str = "") -> list[Note]:
    """Give every node a stable unique origin id and let it be the node's name.

    The id is the node's name when that is unique in its graph, else "OpType:first_output"; nodes
    of subgraphs are prefixed by "parent/attribute/". Ids that a model already carries stay.
    """
    nodes = list(graph)
    names = Counter(n.name for n in nodes if n.name and not origin(n))
    taken = {origin(n) for n in nodes if origin(n)}
    renamed = 0
    for node in nodes:
        own = origin(node)
        if not own:
            own = _one_line(node.name or "")
            if not own or names[node.name or ""] > 1:
                renamed += bool(own)
                own = f"{node.op_type}:{_one_line(_first_output(node))}"
            own = _unique(prefix + own, taken)
            taken.add(own)
            node.metadata_props[ORIGIN_KEY] = own
            node.name = own
        for attr, inner in subgraphs_of(node):
            assign_origins(inner, f"{own}/{attr}/")
    if renamed:
        return [Note("", f"{renamed} nodes shared a name and got one of their own", True)]
    return []


def _first_output(node: oir.Node) -> str:
    return next((v.name for v in node.outputs if v.name), "")


def _one_line(name: str) -> str:
    return " ".join(name.split())


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}#{count}"
    return candidate
