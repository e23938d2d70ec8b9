"""Attention is one kernel or three: what a plan must do to its two products together.

    scores = MatMul(q, k)   ->   scale, mask, Softmax   ->   MatMul(weights, v)

An engine's builder fuses all of it where both products have one precision. With 8 bits it does so up to
a number of positions, with 16 bits at any (TensorRT for RTX 1.7, tried up to 1,500 positions).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as oir

from qcompile.ir.graph import constant, origin, single_consumer
from qcompile.ir.plan import FLOAT, PrecisionPlan

__all__ = ["Attention", "find_attention", "kept_short", "kept_whole"]

_BETWEEN = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Reshape", "Dropout"}
)
"""What may stand between the scores and the softmax, and between it and the second product."""


@dataclass(frozen=True)
class Attention:
    """The products of one attention.

    Attributes:
        scores: origin id of the MatMul of queries and keys.
        mixed: origin id of the MatMul with the values.
        weights: name of what the softmax writes; its last axis are the positions.
    """

    scores: str
    mixed: str
    weights: str


def find_attention(graph: oir.Graph) -> list[Attention]:
    """Every attention of a graph whose products are both between activations."""
    found = []
    for node in graph:
        if node.op_type != "Softmax" or node.domain != "":
            continue
        first = _scores(node.inputs[0])
        second = _mixed(node.outputs[0])
        if first is not None and second is not None:
            weights = node.outputs[0].name or ""
            found.append(Attention(origin(first) or "", origin(second) or "", weights))
    return found


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


def kept_whole(plan: PrecisionPlan, attentions: Iterable[Attention]) -> PrecisionPlan:
    """The plan in which no attention has one product of 8 bits and one of float."""
    for one in attentions:
        asked = {name: plan.precision(name) for name in (one.scores, one.mixed)}
        if len(set(asked.values())) > 1:
            names = [name for name, precision in asked.items() if precision != FLOAT]
            plan = plan.with_choice(names, FLOAT, "the other product of its attention is float")
    return plan


def kept_short(
    plan: PrecisionPlan,
    attentions: Iterable[Attention],
    shapes: Mapping[str, tuple[int, ...]],
    limit: int,
) -> PrecisionPlan:
    """The plan in which attention over more than ``limit`` positions is float, so that it fuses."""
    for one in attentions:
        positions = max(shapes.get(one.weights, (0,))[-2:], default=0)
        if positions > limit:
            reason = f"attention over {positions} positions is one kernel in float only, 8 bits up to {limit}"
            plan = plan.with_choice([one.scores, one.mixed], FLOAT, reason)
    return plan
