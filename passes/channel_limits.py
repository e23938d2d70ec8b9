"""Where integers do not pay: few channels, products that are really vectors.

The limits are those with which NVIDIA's Model-Optimizer leaves layers out; rows ask for them with
``few_channels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import onnx_ir as oir

from qcompile.ir.graph import attribute, constant
from qcompile.ir.target import OpSupport
from qcompile.passes.attention import attention_heads, wider_head
from qcompile.passes.rewrite_conv_transpose import UNARY

__all__ = ["channel_limit", "head_limits"]


def channel_limit(node: oir.Node, row: OpSupport, padded: int | None = None) -> str:
    """Why a layer is too narrow for an integer kernel to pay; "" when it is not, or nobody asked.

    Args:
        node: the layer.
        row: of the target's table.
        padded: a dimension that will be padded to one that is wide enough.
    """
    if not row.few_channels:
        return ""
    if node.op_type == "Conv":
        return _conv(node, row.few_channels)
    return _product(node, row.few_channels, row.block, padded)


def head_limits(
    graph: oir.Graph, fused: Sequence[int]
) -> tuple[dict[oir.Node, int], dict[oir.Node, str]]:
    """Of the products of attention: channels that will be padded, and why others must not be integer.

    Args:
        graph: with attention in it.
        fused: channels of a head with which an engine makes one kernel of attention in 8 bits.
    """
    padded: dict[oir.Node, int] = {}
    refused: dict[oir.Node, str] = {}
    for heads in attention_heads(graph) if fused else ():
        known = [c for c in heads.channels() if c is not None]
        for node, channels in zip((heads.scores, heads.mixed), heads.channels(), strict=True):
            if channels is not None:
                padded[node] = channels
        odd = next((c for c in known if wider_head(c, fused) is None), None)
        if odd is not None:
            able = ", ".join(str(size) for size in fused)
            why = f"attention with {odd} channels a head is one kernel in float only, in 8 bits with {able}"
            refused |= dict.fromkeys((heads.scores, heads.mixed), why)
    return padded, refused


def _conv(node: oir.Node, least: int) -> str:
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or weight.ndim < 3:
        return ""
    out, inner, *kernel = weight.shape
    if out >= least and inner >= least:
        return ""
    if cast(int, attribute(node, "group", 1)) > 1:
        if out % 8 == 0 and min(kernel) >= 3:
            return ""
        return (
            f"grouped Conv of {out} channels and kernel {kernel}: needed multiples of 8, 3 or more"
        )
    if _behind_transposed(node.inputs[0]):
        return f"{inner} -> {out} channels behind a ConvTranspose, whose kernel writes floats only"
    first = node.inputs[0] is not None and node.inputs[0].is_graph_input()
    whole = out % 8 == 0 or inner % 8 == 0
    if whole and (first or max(out, inner) >= least) and len(set(kernel)) == 1:
        return ""
    return f"{inner} -> {out} channels are too few for an integer kernel to pay (below {least})"


def _behind_transposed(value: oir.Value | None) -> bool:
    """Whether a ConvTranspose wrote a tensor, functions of one element between aside."""
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in UNARY:
        above = producer.inputs[0]
        producer = None if above is None else above.producer()
    return producer is not None and producer.op_type == "ConvTranspose"


def _product(node: oir.Node, least: int, block: int, padded: int | None) -> str:
    """Dimensions m, k, n of a product where they are known; None elsewhere."""
    left, right = (_shape(v) for v in node.inputs[:2])
    if left is None or right is None or len(left) < 1 or len(right) < 1:
        return ""
    if attribute(node, "transA", 0):
        left = left[::-1]
    if attribute(node, "transB", 0):
        right = right[::-1]
    m = left[-2] if len(left) > 1 else 1
    k = left[-1] if left[-1] is not None else right[-2 if len(right) > 1 else -1]
    n = right[-1] if len(right) > 1 else 1
    # How many rows a constant is multiplied by shows in the samples (planner.vectors).
    if n == 1 or (m == 1 and len(left) > 2 and constant(node.inputs[1]) is None):
        return "it multiplies by a vector, which is bound by memory and gains nothing"
    small = [x for x in (k, n) if x is not None and x < least and x != padded]
    if small:
        return f"a dimension of {small[0]} is too small for an integer kernel to pay"
    if not block:
        return ""
    if k is not None and (k % block or k == block):
        return f"its {k} inputs are not several blocks of {block}, which share a scale"
    return (
        f"{n} outputs are an odd number: 4 bits lie two a byte" if n is not None and n % 2 else ""
    )


def _shape(value: oir.Value | None) -> list[int | None] | None:
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else None for dim in value.shape]
