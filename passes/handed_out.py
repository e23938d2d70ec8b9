"""Tensors that callers read, or that are only moved, scaled or squashed before they do.

A detector's scores are near 0 almost everywhere, and the few high ones are the result. Of all elements
the error is least when those few are clipped, and SQNR hardly sees them beside boxes in pixels. So what
is handed out is never clipped.
"""

from __future__ import annotations

import math

import onnx_ir as oir

from qcompile.ir.graph import constant

__all__ = ["SATURATED", "handed_out"]

SATURATED = 8.0
"""Beyond +-8 a sigmoid is within 0.0004 of its end, a tenth of a step of 8 bits."""

_MOVES = ("Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_SCALES = ("Add", "Div", "Mul", "Sub")


def handed_out(model: oir.Model) -> dict[str, float]:
    """Tensor name -> magnitude up to which it must not be clipped; infinity stands for all of it."""
    found: dict[str, float] = {}
    waiting = [(value, math.inf) for value in model.graph.outputs]
    while waiting:
        value, limit = waiting.pop()
        name = value.name or ""
        if value.dtype not in (None, oir.DataType.FLOAT) or found.get(name, 0.0) >= limit:
            continue
        found[name] = limit
        node = value.producer()
        if node is None or node.domain:
            continue
        read = [v for v in node.inputs if v is not None]
        if node.op_type == "Concat":
            waiting += [(v, limit) for v in read]
        elif node.op_type in _MOVES:
            waiting.append((read[0], limit))
        elif node.op_type == "Sigmoid":
            waiting.append((read[0], SATURATED))
        elif node.op_type in _SCALES and math.isinf(limit):
            varying = [v for v in read if constant(v) is None]
            waiting += [(v, limit) for v in varying if len(varying) == 1]
    return found
