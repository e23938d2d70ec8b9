"""Attention as models write it, and the widths of its heads that an engine fuses.

    scores = MatMul(q, k)   ->   scale, mask, Softmax   ->   MatMul(weights, v)

Channels of a head are the last axis of q and v. Zeros may be appended to them: they add nothing to a
score, and what they add to the result is cut off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as oir

from qcompile.ir.graph import constant, single_consumer

__all__ = ["Heads", "attention_heads", "wider_head"]

_BETWEEN = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Reshape", "Dropout"}
    | {"QuantizeLinear", "DequantizeLinear"}
)
"""What may stand between the scores and the softmax, and between it and the second product."""


@dataclass(frozen=True)
class Heads:
    """The nodes of one attention.

    Attributes:
        scores: the MatMul of queries and keys.
        softmax: of the scores.
        mixed: the MatMul with the values.
    """

    scores: oir.Node
    softmax: oir.Node
    mixed: oir.Node

    def channels(self) -> tuple[int | None, int | None]:
        """Channels of a head in queries and keys, and in values; None where a shape is unknown."""
        return _last(self.scores.inputs[0]), _last(self.mixed.inputs[1])


def attention_heads(graph: oir.Graph) -> list[Heads]:
    """Every attention of a graph whose products are both between activations."""
    found = []
    for node in graph:
        if node.op_type != "Softmax" or node.domain != "":
            continue
        first = _scores(node.inputs[0])
        second = _mixed(node.outputs[0])
        if first is not None and second is not None:
            found.append(Heads(first, node, second))
    return found


def wider_head(channels: int, fused: Sequence[int]) -> int | None:
    """The least of ``fused`` that ``channels`` can be padded to, None where none is near enough.

    Twice as wide is too much: 8 bits multiply twice as many numbers as 16 in the same time, which is
    what the padding would eat up.
    """
    able = [size for size in fused if channels <= size < 2 * channels]
    return min(able, default=None)


def _last(value: oir.Value | None) -> int | None:
    dim = None if value is None or value.shape is None or not value.shape else value.shape[-1]
    return dim if isinstance(dim, int) else None


def _product(node: oir.Node | None) -> bool:
    if node is None or node.op_type != "MatMul" or node.domain != "":
        return False
    return all(constant(value) is None for value in node.inputs)


def _scores(value: oir.Value | None) -> oir.Node | None:
    """The product above a softmax, past scales and masks."""
    producer = None if value is None else value.producer()
    if producer is None or _product(producer):
        return producer
    if producer.op_type not in _BETWEEN or producer.domain != "":
        return None
    above = (_scores(read) for read in producer.inputs if constant(read) is None)
    return next((node for node in above if node is not None and _product(node)), None)


def _mixed(value: oir.Value) -> oir.Node | None:
    reader = single_consumer(value)
    while reader is not None and reader.op_type in _BETWEEN and reader.domain == "":
        reader = single_consumer(reader.outputs[0])
    return reader if _product(reader) else None
