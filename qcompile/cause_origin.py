"""Where an outlier channel comes from: sums and activations hand it on; a layer made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as oir

from qcompile.causes import OUTLYING, Cause
from qcompile.ir.graph import attribute, constant, origin

__all__ = ["traced"]

LOUD = 30.0
"""Weights of a channel this many times the middle one's explain what it writes."""

FAR = 64
"""Operators that a channel is followed back."""


def traced(causes: Mapping[str, Cause], values: Mapping[str, oir.Value]) -> dict[str, Cause]:
    """The causes by tensor, with outlier channels blamed on the layer that they come from.

    Args:
        causes: tensor -> its cause.
        values: tensor name -> value of the float model.
    """
    found = dict(causes)
    for name, cause in causes.items():
        if cause.kind != OUTLYING or cause.channel is None or name not in values:
            continue
        node = _maker(values[name], cause.channel, causes)
        if node is None:
            continue
        blamed = origin(node) or node.name or ""
        text = cause.text
        if blamed != cause.node:
            text += f"; it comes from '{blamed}'"
        loud = _loudness(node, cause.channel)
        if loud > LOUD:
            whose = "the layer's" if blamed == cause.node else "whose"
            text += f", {whose} weights of that channel reach {loud:.3g} times the middle one's"
        found[name] = replace(cause, node=blamed, text=text)
    return found


def _maker(value: oir.Value, channel: int, causes: Mapping[str, Cause]) -> oir.Node | None:
    """The first layer on the way to ``value`` whose result has the outlier."""
    node = value.producer()
    for _ in range(FAR):
        if node is None or _mixes(node):
            return node
        read = [v for v in node.inputs if v is not None and constant(v) is None]
        before = [v for v in read if _same(causes.get(v.name or ""), channel)]
        # what was not quantized may hand it on, unless something that was quantized does
        before = before or [v for v in read if (v.name or "") not in causes]
        if not before or before[0].producer() is None:
            return node
        node = before[0].producer()
    return node


def _same(cause: Cause | None, channel: int) -> bool:
    return cause is not None and cause.kind == OUTLYING and cause.channel == channel


def _mixes(node: oir.Node) -> bool:
    """Whether each channel of its result depends on all channels of what it reads."""
    if node.op_type == "Conv":
        return int(str(attribute(node, "group", 1))) == 1
    return node.op_type in ("ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")


def _loudness(node: oir.Node, channel: int) -> float:
    """Largest weight of an output channel, as a multiple of the middle channel's."""
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or weight.ndim < 2:
        return 1.0
    last = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not int(str(attribute(node, "transB", 0)))
    )
    rows = np.moveaxis(weight, -1 if last else 0, 0)
    reach = np.abs(rows.reshape(rows.shape[0], -1)).max(axis=1)
    if channel >= reach.size or not (reach > 0).any():
        return 1.0
    return float(reach[channel] / np.median(reach[reach > 0]))
