"""Swap the last two axes of every head in one Transpose, where an exporter took three nodes.

Before: ``Reshape(Transpose(Reshape(k; -1, T, H), [0, 2, 1]); B, N, H, T)`` with k (B, N, T, H), and the
arithmetic for both shapes (scaled dot product attention of PyTorch's newer exporter)
After:  ``Transpose(k, [0, 1, 3, 2])``, which ONNX Runtime takes into the product behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as oir

from qcompile.ir.graph import attribute, drop_unused, origin
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.ir.pattern import Match, escape, match, op, replace, var
from qcompile.passes.tracker import Tracker

__all__ = ["TransposeHeads"]

_TARGETS = var("joined"), var("apart")
PATTERN = op(
    "Reshape", op("Transpose", op("Reshape", var("x"), _TARGETS[0]), perm=(0, 2, 1)), _TARGETS[1]
)


@dataclass(frozen=True)
class TransposeHeads:
    """Recognises the three nodes in the main graph."""

    name: str = "transpose-heads"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite each whose shapes are certain."""
        tracker = Tracker(state.model.graph)
        notes: list[Note] = []
        for node in list(state.model.graph):
            found = match(PATTERN, node) if node.op_type == "Reshape" else None
            if found is None or escape(found) is not None or not _swaps(found, tracker):
                continue
            attributes = [oir.AttrInt64s("perm", [0, 1, 3, 2])]
            replace(found, [oir.Node("", "Transpose", [found.values["x"]], attributes)])
            notes.append(Note(origin(node) or node.name or "", "3 nodes became Transpose", True))
        if notes:
            drop_unused(state.model)
        return PassResult(len(notes), tuple(notes))


def _swaps(found: Match, tracker: Tracker) -> bool:
    """Whether nothing but the last two axes changes places."""
    last, _, first = found.nodes
    before, joined, after = (
        tracker.dims(v) for v in (found.values["x"], first.outputs[0], last.outputs[0])
    )
    if before is None or joined is None or after is None or len(before) != 4:
        return False
    if any(attribute(node, "allowzero", 0) for node in (first, last)):
        return False
    batch, heads, rows, columns = before
    return joined[1:] == (rows, columns) and after == (batch, heads, columns, rows)
