"""Let a Conv pad for itself.

Before: ``Conv(Pad(x, zeros around the spatial axes), pads = p)``
After:  ``Conv(x, pads = p + the Pad's)``

AveragePool takes a Pad likewise if it counts padding; MaxPool pads with the lowest value, not with 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant, drop_unused, origin, set_origin
from qcompile.ir.manager import CompileState, Note, PassResult

__all__ = ["FoldPad"]


@dataclass(frozen=True)
class FoldPad:
    """Removes zero padding in front of Conv and AveragePool in the main graph."""

    name: str = "fold-pad"

    def run(self, state: CompileState) -> PassResult:
        """Fold each Pad into every layer that reads it and can take it."""
        notes: list[Note] = []
        for node in list(state.model.graph):
            source = node.inputs[0] if node.inputs else None
            pad = None if source is None else source.producer()
            if pad is None or pad.op_type != "Pad" or node.op_type not in ("Conv", "AveragePool"):
                continue
            reason = _fold(pad, node)
            where = origin(node) or node.name or ""
            notes.append(
                Note(where, f"Pad kept: {reason}" if reason else "pads itself", reason is None)
            )
        changed = sum(n.changed for n in notes)
        if changed:
            drop_unused(state.model)
        return PassResult(changed, tuple(notes))


def _fold(pad: oir.Node, node: oir.Node) -> str | None:
    """Move the padding; the reason where that is not possible."""
    amounts = _amounts(pad)
    if isinstance(amounts, str):
        return amounts
    source = pad.inputs[0]
    rank = len(amounts) // 2
    if any(amounts[i] for i in (0, 1, rank, rank + 1)):
        return "it pads batch or channels"
    if min(amounts) < 0:
        return "it crops"
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"'{node.name}' pads by rule (auto_pad)"
    own = attribute(node, "pads", (0,) * (2 * (rank - 2)))
    if not isinstance(own, tuple) or len(own) != 2 * (rank - 2):
        return f"'{node.name}' has no pads that fit"
    if node.op_type == "AveragePool":
        counts = attribute(node, "count_include_pad", 0) == 1
        if (any(own) and not counts) or attribute(node, "ceil_mode", 0) == 1:
            return f"'{node.name}' does not count its own padding"
        node.attributes["count_include_pad"] = oir.AttrInt64("count_include_pad", 1)
    extra = (*amounts[2:rank], *amounts[rank + 2 :])
    total = [int(a) + int(b) for a, b in zip(own, extra, strict=True)]
    node.attributes.pop("auto_pad", None)
    node.attributes["pads"] = oir.AttrInt64s("pads", total)
    set_origin(node, [node, pad])
    node.replace_input_with(0, source)
    return None


def _amounts(pad: oir.Node) -> tuple[int, ...] | str:
    """Begin and end of every axis, or why the Pad is none of zeros with known size."""
    if attribute(pad, "mode", "constant") != "constant":
        return f"its mode is {attribute(pad, 'mode')}"
    stated = attribute(pad, "pads")
    if isinstance(stated, tuple):  # before opset 11
        return "it pads with another value than 0" if attribute(pad, "value", 0.0) else stated
    array = constant(pad.inputs[1])
    if array is None:
        return "its size is not constant"
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return "it names its axes"
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        value = constant(pad.inputs[2])
        if value is None or np.any(value):
            return "it pads with another value than 0"
    return tuple(int(i) for i in array)
