"""What single operators demand beyond their row: values of constants, shapes of biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant

__all__ = ["operator_limit"]


def operator_limit(node: oir.Node) -> str:
    """Why a node that its row allows must still stay float; "" when nothing speaks against it."""
    check = _CHECKS.get(node.op_type) if node.domain == "" else None
    return "" if check is None else check(node)


def _input(node: oir.Node, index: int) -> oir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _gemm(node: oir.Node) -> str:
    bias = _input(node, 2)
    if cast(float, attribute(node, "alpha", 1.0)) != 1.0:
        return "alpha is not 1 (fold it into the weight first)"
    if bias is None:
        return ""
    if cast(float, attribute(node, "beta", 1.0)) != 1.0:
        return "beta is not 1 (fold it into the bias first)"
    array, weight = constant(bias), constant(_input(node, 1))
    if array is None or weight is None:
        return ""
    columns = weight.shape[0 if attribute(node, "transB", 0) else 1]
    if array.size not in (1, columns) or (array.size == columns > 1 and array.shape[-1] != columns):
        return f"bias '{bias.name}' of shape {array.shape} is not one number per column"
    return ""


def _clip(node: oir.Node) -> str:
    """Zero must lie inside, for a quantized range always holds zero."""
    low = attribute(node, "min", -np.inf)
    high = attribute(node, "max", np.inf)
    for index, default in ((1, low), (2, high)):
        value = _input(node, index)
        if value is None:
            limit = cast(float, default)
        else:
            array = constant(value)
            if array is None:
                return f"limit '{value.name}' is computed at run time"
            limit = float(array)
        if (index == 1 and limit > 0) or (index == 2 and limit < 0):
            return "zero lies outside the limits"
    return ""


_CHECKS: dict[str, Callable[[oir.Node], str]] = {"Gemm": _gemm, "Clip": _clip}
