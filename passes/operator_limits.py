"""What single operators demand beyond their row: values of constants, shapes of biases, axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant

__all__ = ["operator_limit"]


_FEW_ROWS = 4
"""Rows of a constant left side up to which a product is no work for an integer kernel."""


def operator_limit(node: oir.Node) -> str:
    """Why a node that its row allows must still stay float; "" when nothing speaks against it."""
    check = _CHECKS.get(node.op_type) if node.domain == "" else None
    return "" if check is None else check(node)


def _input(node: oir.Node, index: int) -> oir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _constant(node: oir.Node, index: int) -> npt.NDArray[np.generic] | None:
    return constant(_input(node, index))


def _gemm(node: oir.Node) -> str:
    bias = _input(node, 2)
    if cast(float, attribute(node, "alpha", 1.0)) != 1.0:
        return "alpha is not 1 (fold it into the weight first)"
    if bias is None:
        return ""
    if cast(float, attribute(node, "beta", 1.0)) != 1.0:
        return "beta is not 1 (fold it into the bias first)"
    array, weight = constant(bias), _constant(node, 1)
    if array is None or weight is None:
        return ""
    columns = weight.shape[0 if attribute(node, "transB", 0) else 1]
    if array.size not in (1, columns) or (array.size > 1 and array.shape[-1] != columns):
        return f"bias '{bias.name}' of shape {array.shape} is not one number per column"
    return ""


def _matmul(node: oir.Node) -> str:
    left = _constant(node, 0)
    if left is not None and left.ndim >= 2 and left.shape[-2] <= _FEW_ROWS:
        return f"{left.shape[-2]} constant rows are as fast in float"
    return ""


def _clip(node: oir.Node) -> str:
    """Zero must lie inside, for a quantized range always holds zero."""
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = _input(node, index)
        limit = default
        if value is not None:
            array = constant(value)
            if array is None or array.size != 1:
                return f"limit '{value.name}' is computed at run time"
            limit = float(array.reshape(()))
        if (index == 1 and limit > 0) or (index == 2 and limit < 0):
            return "zero lies outside the limits"
    return ""


def _pad(node: oir.Node) -> str:
    """The padding must be representable with the input's scale: zero always is."""
    mode = attribute(node, "mode", "constant")
    value = _input(node, 2)
    if mode != "constant" or value is None:
        return ""
    array = constant(value)
    if array is None:
        return f"padding value '{value.name}' is computed at run time"
    return "" if np.all(array == 0) else f"padding value '{value.name}' is not zero"


def _reduce_mean(node: oir.Node) -> str:
    value = _input(node, 0)
    rank = None if value is None or value.shape is None else len(value.shape)
    axes = attribute(node, "axes")
    if axes is None:
        array = _constant(node, 1)
        axes = None if array is None else tuple(int(a) for a in array.reshape(-1))
    if rank is None or rank < 3 or not isinstance(axes, tuple):
        return "only a mean over all spatial axes has an integer kernel"
    if sorted(a % rank for a in axes) != list(range(2, rank)):
        return f"the mean runs over axes {axes}; only all spatial axes have an integer kernel"
    return ""


def _gather(node: oir.Node) -> str:
    if _constant(node, 0) is not None:
        return "a table of constants: integer rows would save memory, not time"
    return ""


def _average_pool(node: oir.Node) -> str:
    """It becomes a depthwise Conv of ones, so every window must have the same size."""
    value = _input(node, 0)
    shape = None if value is None else value.shape
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return "the number of channels is unknown"
    if attribute(node, "ceil_mode", 0):
        return "windows cut off by ceil_mode have no integer kernel that pays"
    pads = attribute(node, "pads", ())
    padded = attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if (padded or any(cast(tuple[int, ...], pads))) and not attribute(node, "count_include_pad", 0):
        return "padding that does not count has no integer kernel that pays"
    return ""


def _max_pool(node: oir.Node) -> str:
    value = _input(node, 0)
    rank = None if value is None or value.shape is None else len(value.shape)
    return "" if rank == 4 else f"the integer MaxPool of rank {rank} is slower than the float one"


_CHECKS: dict[str, Callable[[oir.Node], str]] = {
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
}
