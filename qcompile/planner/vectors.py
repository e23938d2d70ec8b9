"""Products of one row are bound by memory: an 8-bit kernel has nothing to gain, its Q costs a kernel."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as oir

from qcompile.ir.graph import constant, origin
from qcompile.ir.plan import FLOAT, PrecisionPlan

__all__ = ["kept_wide", "weight_products"]


def weight_products(graph: oir.Graph) -> dict[str, str]:
    """Origin id -> output of every MatMul and Gemm of a graph whose right side is constant."""
    return {
        origin(node) or "": node.outputs[0].name or ""
        for node in graph
        if node.op_type in ("MatMul", "Gemm")
        and node.domain == ""
        and constant(node.inputs[1]) is not None
    }


def kept_wide(
    plan: PrecisionPlan, products: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> PrecisionPlan:
    """The plan in which products of a single row are float.

    Args:
        plan: what is asked for.
        products: origin id -> name of the product's output.
        shapes: of those outputs, at the largest sample.
    """
    single = []
    for name, output in products.items():
        shape = shapes.get(output, ())
        rows = 1
        for size in shape[:-1]:
            rows *= size
        if shape and rows == 1:
            single.append(name)
    return plan.with_choice(
        single, FLOAT, "it multiplies by a vector, which is bound by memory and gains nothing"
    )
