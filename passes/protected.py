"""Nodes that together spell one operator, so that no fold takes one of them away."""

from __future__ import annotations

import onnx_ir as oir

__all__ = ["protected"]


def protected(graph: oir.Graph) -> frozenset[oir.Node]:
    """Nodes of the main graph that are part of a written-out GELU or layer normalization."""
    return frozenset()
