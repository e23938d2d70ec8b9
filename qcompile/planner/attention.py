"""Attention is one kernel or three: what a plan must do to its two products together.

    scores = MatMul(q, k)   ->   scale, mask, Softmax   ->   MatMul(weights, v)

An engine's builder fuses all of it where both products have one precision. With 8 bits it does so up to
a number of positions, with 16 bits at any (TensorRT for RTX 1.7, tried up to 1,500 positions).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as oir

from qcompile.ir.graph import origin
from qcompile.ir.plan import FLOAT, PrecisionPlan
from qcompile.passes.attention import attention_heads

__all__ = ["Attention", "find_attention", "kept_short", "kept_whole"]


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
    """Every attention of a graph, by the origin ids of its products."""
    return [
        Attention(origin(one.scores), origin(one.mixed), one.softmax.outputs[0].name or "")
        for one in attention_heads(graph)
    ]


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
