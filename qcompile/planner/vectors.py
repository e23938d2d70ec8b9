"""Products of few rows are bound by memory: 8 bits halve what is read of the weights, and cost a kernel.

Whoever reads integers needs someone who writes them: the Q in front and the scale behind such a product
are kernels that its float form does not need. They take as long as some hundred thousand weights take to
be read, so the classifier of a VGG gains by 8 bits, and squeeze-and-excitation loses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as oir

from qcompile.ir.graph import constant, origin
from qcompile.ir.plan import FLOAT, PrecisionPlan

__all__ = ["WeightProduct", "kept_wide", "weight_products"]


FEW_ROWS = 8
"""The smallest tile of a matrix unit: up to so many rows cost what one does."""


@dataclass(frozen=True)
class WeightProduct:
    """A product with a constant.

    Attributes:
        output: name of its result.
        channels: axis of the result that does not count rows; -1 for the last.
        weights: numbers in the constant.
    """

    output: str
    channels: int
    weights: int

    def rows(self, shape: tuple[int, ...]) -> int:
        """Vectors that the constant is multiplied by, for one shape of the result."""
        axis = self.channels % len(shape)
        return prod(size for i, size in enumerate(shape) if i != axis)


def weight_products(graph: oir.Graph, operators: Collection[str]) -> dict[str, WeightProduct]:
    """Origin id -> every product of a graph, of some operators, whose right side is constant."""
    axes = {"MatMul": -1, "Gemm": -1, "Conv": 1}
    found = {}
    for node in graph:
        if node.op_type not in operators or node.op_type not in axes or node.domain != "":
            continue
        weight = constant(node.inputs[1])
        if weight is not None:
            found[origin(node) or ""] = WeightProduct(
                node.outputs[0].name or "", axes[node.op_type], int(weight.size)
            )
    return found


def kept_wide(
    plan: PrecisionPlan,
    products: Mapping[str, WeightProduct],
    shapes: Mapping[str, tuple[int, ...]],
    least: int,
) -> PrecisionPlan:
    """The plan in which products of few rows by few weights are float.

    Args:
        plan: what is asked for.
        products: by origin id.
        shapes: of their outputs, at the largest sample.
        least: weights from which on 8 bits pay for few rows.
    """
    for name, product in products.items():
        shape = shapes.get(product.output, ())
        rows = product.rows(shape) if shape else FEW_ROWS + 1
        if rows <= FEW_ROWS and product.weights < least:
            reason = (
                f"{rows} row{'s' * (rows > 1)} by {product.weights} weights: 8 bits save less than their "
                f"kernel costs (below {least})"
            )
            plan = plan.with_choice([name], FLOAT, reason)
    return plan
