"""Concat on integers: bytes are copied where scales agree, and every other part is rounded once.

Q(concat(DQ(a), DQ(b)))    ->  Concat(a, Q(DQ(b)))      b of another scale

Nanoseconds an element with 1.31: QLinearConcat 0.41 (a table); Dequantize and Quantize 0.17; Quantize
alone 0.07; the plain Concat 0.06, but each channels-last row of each part costs 2 ns, however short.

* A part whose float tensor is there already (SiLU and other activations in float) is quantized from it a
  second time, not dequantized and requantized.
* Parts that are all outputs of one Split, side by side as they were, are the tensor before the Split.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor
from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.backends.ort_site import Edit, Site, eight_bit_constant
from qcompile.ir.graph import attribute, origin

__all__ = ["lower_concat"]

_SMALL = 4096
"""Elements below which an operator's own start costs more than its work."""


def lower_concat(site: Site) -> Edit:
    """Concat -> Concat on the integers, parts of another scale requantized before it."""
    to = site.need_tail()
    parts = _without_splits(site, [site.need_input(i) for i in range(len(site.node.inputs))])
    other = [p for p in parts if not p.same_parameters(to.out)]
    if other and all(_elements(p.q) <= _SMALL for p in other):
        site.needs("QLinearConcat", MICROSOFT, to.out.dtype)
        inputs: list[oir.Value | None] = [site.scale(to.out), site.zero(to.out)]
        for part in parts:
            inputs += eight_bit_constant(site, part, to.out.dtype)
        axis = site.attributes("axis")
        made = site.make("QLinearConcat", inputs, axis, domain=MICROSOFT, absorbed=to.absorbed)
        return site.write(made, to)
    site.needs("Concat", "", to.out.dtype)
    integers = [p.q if p not in other else _requantized(site, p, to.out) for p in parts]
    if len(integers) == 1:
        return site.write(site.make("Identity", integers, absorbed=to.absorbed), to)
    made = site.make("Concat", integers, site.attributes("axis"), absorbed=to.absorbed)
    return site.write(made, to)


def _without_splits(site: Site, parts: list[QTensor]) -> list[QTensor]:
    """The parts, with each whole Split among them as the one tensor that it splits."""
    found: list[QTensor] = []
    while parts:
        split = parts[0].q.producer()
        count = 0 if split is None else len(split.outputs)
        if (
            split is not None
            and split.op_type == "Split"
            and split.domain == ""
            and split.inputs[0] is not None
            and [p.q for p in parts[:count]] == list(split.outputs)
            and all(p.same_parameters(parts[0]) for p in parts[:count])
            and _axis(site.node, parts[0].q, None) == _axis(split, parts[0].q, 0)
        ):
            found.append(replace(parts[0], q=split.inputs[0]))
            parts = parts[count:]
        else:
            found.append(parts[0])
            parts = parts[1:]
    return found


def _axis(node: oir.Node, value: oir.Value, default: int | None) -> int | None:
    """The axis counted from the front; what it says where the rank is unknown."""
    axis = attribute(node, "axis", default)
    if not isinstance(axis, int) or axis >= 0 or value.shape is None:
        return axis if isinstance(axis, int) else None
    return axis + len(value.shape)


def _elements(q: oir.Value) -> float:
    if q.shape is None or not all(isinstance(d, int) for d in q.shape):
        return float("inf")
    return float(np.prod([int(d) for d in q.shape if isinstance(d, int)]))


def _requantized(site: Site, part: QTensor, out: QTensor) -> oir.Value:
    """``part`` in the scale of ``out``, from its float tensor where there is one."""
    before = part.q.producer()
    real = None
    # the saturation of a Q that came with the user's model may stand for a Relu
    if before is not None and before.op_type == "QuantizeLinear" and not origin(before):
        real = before.inputs[0]
    if real is None:
        inputs = [part.q, site.scale(part), site.zero(part)]
        real = site.make("DequantizeLinear", inputs, suffix="real").outputs[0]
        real.type, real.shape = oir.TensorType(oir.DataType.FLOAT), part.q.shape
    again = site.make("QuantizeLinear", [real, site.scale(out), site.zero(out)], suffix="again")
    again.outputs[0].type, again.outputs[0].shape = out.q.type, part.q.shape
    return again.outputs[0]
