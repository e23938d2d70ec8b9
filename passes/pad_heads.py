"""Append zeros to the channels of attention in 8 bits, so that an engine makes one kernel of it.

Before:  q -> Q -> DQ -> MatMul -> Softmax -> Q -> DQ -> MatMul -> y          (heads of 15 channels)
         k -> Q -> DQ ---^                       v -> Q -> DQ ---^
After:   q -> Pad -> Q -> DQ -> MatMul ... MatMul -> Slice -> y               (heads of 16)

The scores are the same to the bit, for what is added to each is zero times zero; the columns of the
result that zeros of v make are cut off. Pad and Slice become part of the kernels that stand there anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import (
    add_initializer,
    insert_after_value,
    is_graph_output,
    new_value,
    origin,
)
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.passes.attention import Heads, attention_heads, wider_head

__all__ = ["PadHeads"]


@dataclass(frozen=True)
class PadHeads:
    """Pads heads to the next width of the target's ``attention_channels``."""

    name: str = "pad-heads"

    def run(self, state: CompileState) -> PassResult:
        """Look at each attention of the main graph whose products read 8 bits."""
        notes = []
        for heads in attention_heads(state.model.graph):
            widths = _widths(heads, state.target.attention_channels)
            if widths is None:
                continue
            before, (scored, mixed) = heads.channels(), widths
            _pad(state.model.graph, heads.scores, 0, -1, scored)
            _pad(state.model.graph, heads.scores, 1, -2, scored)
            _pad(state.model.graph, heads.mixed, 1, -1, mixed)
            text = (
                f"heads of {before[0]} and {before[1]} channels are padded to {scored} and {mixed}"
            )
            notes.append(Note(origin(heads.scores), text, changed=True))
        return PassResult(len(notes), tuple(notes))


def _widths(heads: Heads, fused: Sequence[int]) -> tuple[int, int] | None:
    """The widths to pad an attention to; None where it is as it should be, or cannot be."""
    scored, mixed = heads.channels()
    if scored is None or mixed is None or is_graph_output(heads.mixed.outputs[0]):
        return None
    found = wider_head(scored, fused), wider_head(mixed, fused)
    if found[0] is None or found[1] is None or found == (scored, mixed):
        return None
    operands = (heads.scores.inputs[0], heads.scores.inputs[1], heads.mixed.inputs[1])
    return (found[0], found[1]) if all(_pair(v) is not None for v in operands) else None


def _pair(value: oir.Value | None) -> tuple[oir.Node, oir.Node] | None:
    """The Q and DQ that write an operand of known rank."""
    dq = None if value is None or value.shape is None else value.producer()
    q = None if dq is None or dq.op_type != "DequantizeLinear" else dq.inputs[0]
    producer = None if q is None else q.producer()
    if dq is None or producer is None or producer.op_type != "QuantizeLinear":
        return None
    return producer, dq


def _pad(graph: oir.Graph, product: oir.Node, index: int, axis: int, width: int) -> None:
    """Let a product read its operand with zeros behind ``axis``, and cut off what they make of it."""
    value = product.inputs[index]
    pair = _pair(value)
    if value is None or value.shape is None or pair is None:
        return
    missing = width - int(value.shape[axis])  # type: ignore[arg-type]
    if not missing:
        return
    pads = np.zeros(2 * len(value.shape), np.int64)
    pads[axis] = missing
    q, dq = pair
    count = add_initializer(graph, f"{value.name}_pads", pads)
    base, integers = value.name or "", dq.inputs[0]
    found = q.inputs[0]
    for op_type, others, like in (
        ("Pad", [count], found),
        ("QuantizeLinear", q.inputs[1:], integers),
        ("DequantizeLinear", dq.inputs[1:], value),
    ):
        kind = None if like is None else like.dtype
        node, found = new_value(graph, op_type, [found, *others], kind, base)
        found.shape = _resized(value.shape, axis, width)
        graph.insert_before(product, node)
    product.replace_input_with(index, found)
    for node in (dq, q):
        if not node.outputs[0].uses() and not is_graph_output(node.outputs[0]):
            graph.remove(node, safe=True)
    if index == 1 and axis == -1:
        _cut(graph, product, missing, width)


def _cut(graph: oir.Graph, product: oir.Node, missing: int, width: int) -> None:
    """A Slice behind ``product`` that drops its last ``missing`` channels."""
    whole = product.outputs[0]
    at = [
        add_initializer(graph, f"{whole.name}_{what}", np.array([number], np.int64))
        for what, number in (("start", 0), ("end", width - missing), ("axis", -1))
    ]
    node, cut = new_value(graph, "Slice", [whole, *at], whole.dtype, whole.name or "")
    cut.shape = whole.shape
    insert_after_value(graph, whole, [node], cut)
    whole.shape = _resized(whole.shape, -1, width)


def _resized(shape: oir.Shape | None, axis: int, width: int) -> oir.Shape | None:
    if shape is None:
        return None
    dims = list(shape)
    dims[axis] = width
    return oir.Shape(dims)
