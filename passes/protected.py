"""Nodes that together spell one operator, so that no fold takes one of them away."""

from __future__ import annotations

import onnx_ir as oir

from qcompile.ir.pattern import escape, match
from qcompile.passes.fuse_gelu import GELU_PATTERNS
from qcompile.passes.fuse_layernorm import NORM_PATTERNS

__all__ = ["protected"]

PATTERNS = (*GELU_PATTERNS, *NORM_PATTERNS)
ROOTS = frozenset(t for p in PATTERNS for t in p.op_types)


def protected(graph: oir.Graph) -> frozenset[oir.Node]:
    """Nodes of the main graph that are part of a written-out GELU or layer normalization.

    Runtimes recognise these by themselves; one Mul folded into a neighbour hides them.
    """
    kept: set[oir.Node] = set()
    for node in graph:
        if node.op_type not in ROOTS:
            continue
        for pattern in PATTERNS:
            found = match(pattern, node)
            if found is not None and escape(found) is None:
                kept.update(found.nodes)
                break
    return frozenset(kept)
