"""Walks a graph and keeps track of shapes and of the elements of small integer tensors."""

from __future__ import annotations

from collections import Counter

import onnx_ir as oir

from qcompile.ir.graph import constant
from qcompile.passes.dims import MAX_ELEMENTS, Dim, Dims
from qcompile.passes.element_rules import ELEMENT_RULES
from qcompile.passes.shape_rules import SHAPE_RULES

__all__ = ["Tracker"]

_ALIKE = ("SkipSimplifiedLayerNormalization", "Split")
"""Operators whose rule holds for every output that is read."""


class Tracker:
    """Dimensions of tensors and elements of integer vectors of one graph, computed in graph order."""

    def __init__(self, graph: oir.Graph) -> None:
        """Walk the whole graph once."""
        self._dims: dict[oir.Value, Dims | None] = {}
        self._elements: dict[oir.Value, Dims | None] = {}
        for value in graph.inputs:
            self._dims[value] = _input_dims(value)
        self._given = {d for dims in self._dims.values() for d in dims or () if isinstance(d, str)}
        for node in graph:
            self.visit(node)

    def dims(self, value: oir.Value | None) -> Dims | None:
        """The shape of a tensor, None when not even the rank is known."""
        if value is None:
            return None
        if value not in self._dims:
            array = constant(value)
            self._dims[value] = self._stated(value) if array is None else tuple(array.shape)
        return self._dims[value]

    def elements(self, value: oir.Value | None) -> Dims | None:
        """The elements of a small integer tensor of rank 0 or 1."""
        if value is None:
            return None
        if value not in self._elements:
            array = constant(value)
            known = array is not None and array.ndim <= 1 and array.size <= MAX_ELEMENTS
            if array is not None and known and array.dtype.kind in "iu":
                self._elements[value] = tuple(int(i) for i in array.reshape(-1))
            else:
                self._elements[value] = None
        return self._elements[value]

    def visit(self, node: oir.Node) -> None:
        """Compute what ``node`` yields from what it reads (again, after an edit)."""
        if node.domain not in ("", "ai.onnx", "com.microsoft"):
            return
        out = node.outputs[0]
        rule = ELEMENT_RULES.get(node.op_type)
        if rule is not None:
            self._elements[out] = rule(self, node)
        shape_rule = SHAPE_RULES.get(node.op_type)
        found = None if shape_rule is None else shape_rule(self, node, out)
        if found is None and (elements := self._elements.get(out)) is not None:
            rank = None if out.shape is None else len(out.shape)
            found = () if rank == 0 else (len(elements),)
        merged = self._merge(out, found)
        self._dims[out] = merged
        if merged is not None and len(merged) > 1:
            self._elements[out] = None
        for other in node.outputs[1:]:
            found = shape_rule(self, node, other) if shape_rule and node.op_type in _ALIKE else None
            self._dims[other] = self._merge(other, found)

    def _stated(self, value: oir.Value) -> Dims | None:
        """What the value itself says: its rank and fixed dimensions."""
        if value.shape is None:
            return None
        return tuple(
            d if isinstance(d, int) else f"{value.name}:{i}" for i, d in enumerate(value.shape)
        )

    def _merge(self, value: oir.Value, found: Dims | None) -> Dims | None:
        """Prefer a dynamic dimension of an input, then an int from either source, then a new token.

        Inner shapes that were written for another input are left behind when someone makes the
        batch dynamic by hand; they must not freeze it again.
        """
        stated = self._stated(value)
        if found is None or stated is None or len(found) != len(stated):
            return stated if found is None else found
        return tuple(
            s if isinstance(s, int) and f not in self._given else f
            for s, f in zip(stated, found, strict=True)
        )


def _input_dims(value: oir.Value) -> Dims | None:
    if value.shape is None:
        return None
    names = Counter(d.value for d in value.shape if isinstance(d, oir.SymbolicDim) and d.value)
    dims: list[Dim] = []
    for i, d in enumerate(value.shape):
        symbol = d.value if isinstance(d, oir.SymbolicDim) else None
        # A symbol written on two axes of one input is rarely meant as "these are equal".
        unique = symbol is not None and names[symbol] == 1
        dims.append(d if isinstance(d, int) else f"{symbol}" if unique else f"{value.name}:{i}")
    return tuple(dims)
