"""Fold BatchNormalization into the Conv, ConvTranspose or Gemm that feeds it.

Before: ``y = (W x + b - mean) / sqrt(var + eps) * gamma + beta``
After:  ``y = (k W) x + (k (b - mean) + beta)`` with ``k = gamma / sqrt(var + eps)`` per output channel.

A BatchNormalization that follows none of them becomes ``Mul`` and ``Add``, which fold-affine can
then push into a MatMul or into the layer behind it: ``y = k x + (beta - k mean)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, constant, origin, single_consumer
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.ir.pattern import Match, absorb, replace
from qcompile.passes.linear import Array, Linear, as_linear

__all__ = ["FoldBatchNorm"]


@dataclass(frozen=True)
class FoldBatchNorm:
    """Removes BatchNormalization (inference form) from the main graph."""

    name: str = "fold-batchnorm"

    def run(self, state: CompileState) -> PassResult:
        """Fold each BatchNormalization, or write it as Mul and Add."""
        notes: list[Note] = []
        changed = 0
        for node in list(state.model.graph):
            if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
                continue
            where = origin(node) or node.name or ""
            factors = _factors(node)
            if isinstance(factors, str):
                notes.append(Note(where, f"BatchNormalization kept: {factors}"))
                continue
            linear = _feeding(node)
            if isinstance(linear, Linear):
                notes.append(Note(where, f"folded into '{linear.node.name}'", True))
                linear.scale_outputs(state.model.graph, *factors)
                absorb(linear.node, [node])
            else:
                rank = _rank(node)
                if rank is None:
                    notes.append(Note(where, f"BatchNormalization kept: {linear}; rank unknown"))
                    continue
                notes.append(Note(where, f"written as Mul and Add: {linear}", True))
                _write_out(state.model.graph, node, rank, *factors)
            changed += 1
        return PassResult(changed, tuple(notes))


def _factors(node: oir.Node) -> tuple[Array, Array] | str:
    """``(scale, shift)`` per channel, or why there are none."""
    if node.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    if not node.attributes.get_int("spatial", 1):
        return "it is not spatial"
    if any(v.uses() for v in node.outputs[1:]):
        return "its running statistics are read"
    arrays = [constant(v) for v in node.inputs[1:5]]
    if any(a is None for a in arrays):
        return "its parameters are not constant"
    gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays if a is not None)
    level = variance + node.attributes.get_float("epsilon", 1e-5)
    if not np.all(level > 0):
        return "its variance is not positive"
    scale = gamma / np.sqrt(level)
    return scale, beta - scale * mean


def _feeding(node: oir.Node) -> Linear | str:
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    linear = as_linear(producer, with_bias_add=False)
    if isinstance(linear, str):
        return linear
    if linear.node.op_type == "MatMul":
        return "a MatMul has no bias"
    if source is None or single_consumer(source) is None:
        return f"the result of '{linear.node.name}' is also read elsewhere"
    return linear.why_no_new_weight() or linear


def _rank(node: oir.Node) -> int | None:
    for value in (node.inputs[0], node.outputs[0]):
        if value is not None and value.shape is not None:
            return len(value.shape)
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    linear = as_linear(producer)
    return None if isinstance(linear, str) else linear.rank


def _write_out(graph: oir.Graph, node: oir.Node, rank: int, scale: Array, shift: Array) -> None:
    stored = constant(node.inputs[1])
    kind = np.float32 if stored is None else stored.dtype
    shape = (-1, *(1,) * (rank - 2)) if rank > 2 else (-1,)
    factor = add_initializer(graph, f"{node.name}_scale", scale.astype(kind).reshape(shape))
    offset = add_initializer(graph, f"{node.name}_shift", shift.astype(kind).reshape(shape))
    mul = oir.Node("", "Mul", [node.inputs[0], factor], name=f"{node.name}/scale")
    add = oir.Node("", "Add", [mul.outputs[0], offset])
    mul.outputs[0].name = f"{node.outputs[0].name}_scaled"
    mul.outputs[0].type, mul.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    replace(Match({}, (node,)), [mul, add])
