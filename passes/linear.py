"""Layers that are linear in their input, and what scaling their inputs or outputs does to the weights.

For a Conv, ConvTranspose, Gemm or MatMul with constant weight ``W`` (o: output, i: input channel)::

    a * (W x + b) + c      ==  (a_o W_oi) x + (a b + c)         scale_outputs(a, c)
    W (a x + c) + b        ==  (W_oi a_i) x + (b + sum_i W_oi c_i)    scale_inputs(a, c)

The second shift is exact only where the layer pads nothing (a padded zero is not shifted).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, attribute, constant, is_graph_output, single_consumer
from qcompile.ir.on_disk import kept

__all__ = ["Affine", "Array", "Linear", "as_linear", "read_affine", "set_constant"]

Array = npt.NDArray[np.float64]

COPY_BYTES = 1 << 20
"""A weight that other nodes read too is copied for one of them up to this size."""

OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """A layer with constant weight.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul (weight in its second input).
        weight: as stored; Conv ``(o, i/g, k...)``, ConvTranspose ``(i, o/g, k...)``, Gemm and MatMul
            ``(i, o)`` (``(o, i)`` for Gemm with transB).
        bias_at: node and input that hold or may hold the bias, None where there is no place.
    """

    node: oir.Node
    weight: npt.NDArray[np.generic]
    bias_at: tuple[oir.Node, int] | None = None

    @property
    def bias(self) -> Array:
        """``(o,)``, zeros when absent; Gemm's beta is applied."""
        node, index = self.bias_at or (self.node, 2)
        stored = constant(node.inputs[index]) if index < len(node.inputs) else None
        if stored is None:
            return np.zeros(self.outputs)
        beta = self.node.attributes.get_float("beta", 1.0)
        flat = stored.astype(np.float64).reshape(-1) * beta
        return np.array(np.broadcast_to(flat, (self.outputs,)))

    @property
    def rank(self) -> int:
        """Rank of in- and output; of a MatMul the least that it can be."""
        if self.node.op_type.startswith("Conv"):
            return self.weight.ndim
        if self.node.op_type == "Gemm":
            return 2
        data = self.node.inputs[0]
        return 1 if data is None or data.shape is None else len(data.shape)

    @property
    def group(self) -> int:
        """Groups of a Conv or ConvTranspose."""
        return int(self.node.attributes.get_int("group", 1))

    @property
    def transposed(self) -> bool:
        """Whether a Gemm keeps its weight as ``(o, i)``."""
        return bool(self.node.attributes.get_int("transB", 0))

    @property
    def negative_axis(self) -> int:
        """Channel axis of in- and output, counted from the end."""
        return 1 - self.weight.ndim if self.node.op_type.startswith("Conv") else -1

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        shape = self.weight.shape
        if self.node.op_type == "Conv":
            return int(shape[1]) * self.group
        return int(shape[1 if self.transposed else 0])

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        shape = self.weight.shape
        if self.node.op_type == "ConvTranspose":
            return int(shape[1]) * self.group
        return int(shape[0 if self.node.op_type == "Conv" or self.transposed else 1])

    def why_no_new_weight(self) -> str | None:
        """Why the weight cannot be replaced for this node alone, else None."""
        value = self.node.inputs[1]
        if value is not None and len(value.uses()) > 1 and self.weight.nbytes > COPY_BYTES:
            return f"its weight '{value.name}' is shared and too big to copy"
        return None

    def why_no_input_shift(self) -> str | None:
        """Why a constant added to the input cannot move into the bias, else None."""
        if self.node.op_type == "ConvTranspose":
            return "the border of a ConvTranspose sees fewer taps"
        if self.node.op_type == "Conv":
            pads = attribute(self.node, "pads", ())
            auto = attribute(self.node, "auto_pad", "NOTSET")
            padded = isinstance(pads, tuple) and any(pads)
            if padded or auto not in ("NOTSET", "VALID"):
                return "the Conv pads with zeros, which a shift would change"
        if self.bias_at is None:
            return f"MatMul '{self.node.name}' has no bias"
        return None

    def scale_outputs(self, graph: oir.Graph, scale: Array, shift: Array) -> None:
        """Fold ``scale * y + shift``; both ``()`` or ``(o,)``. Without a bias, shift must be 0."""
        per_output = np.broadcast_to(scale, (self.outputs,))
        self._store(graph, self._scaled(per_output, outputs=True), self.bias * per_output + shift)

    def scale_inputs(self, graph: oir.Graph, scale: Array, shift: Array) -> None:
        """Fold ``W (scale * x + shift)``; both ``()`` or ``(i,)``; see ``why_no_input_shift``."""
        bias = self.bias
        if np.any(shift):
            bias = bias + self.response(np.broadcast_to(shift, (self.inputs,)))
        weight = self._scaled(np.broadcast_to(scale, (self.inputs,)), outputs=False)
        self._store(graph, weight, bias)

    def response(self, level: Array) -> Array:
        """Output ``(o,)`` without bias for an input that is constant in each channel, ``(i,)``."""
        weight = self.weight.astype(np.float64)
        if self.node.op_type == "Conv":
            taps = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
            groups = taps.reshape(self.group, -1, taps.shape[1])
            per_group = (groups * level.reshape(self.group, 1, -1)).sum(axis=2)
            return np.asarray(per_group, np.float64).reshape(-1)
        matrix = weight.T if self.transposed else weight
        result: Array = level @ matrix * self.node.attributes.get_float("alpha", 1.0)
        return result

    def _scaled(self, factor: Array, outputs: bool) -> Array:
        weight = self.weight.astype(np.float64)
        if not self.node.op_type.startswith("Conv"):
            along_rows = outputs == self.transposed
            return weight * (factor[:, None] if along_rows else factor[None, :])
        # Seen as (g, rows, columns, k...): the leading axis of a Conv's weight is the output's, of a
        # ConvTranspose's the input's; the group belongs to it in both.
        groups = weight.reshape(self.group, -1, *weight.shape[1:])
        taps = (1,) * (weight.ndim - 2)
        if outputs == (self.node.op_type == "Conv"):
            groups = groups * factor.reshape(self.group, -1, 1, *taps)
        else:
            groups = groups * factor.reshape(self.group, 1, -1, *taps)
        return groups.reshape(weight.shape)

    def _store(self, graph: oir.Graph, weight: Array, bias: Array) -> None:
        set_constant(graph, self.node, 1, weight.astype(self.weight.dtype))
        if self.bias_at is None:
            return
        node, index = self.bias_at
        if (index < len(node.inputs) and node.inputs[index] is not None) or np.any(bias):
            set_constant(graph, node, index, bias.astype(self.weight.dtype))
            self.node.attributes.pop("beta", None)


def as_linear(node: oir.Node | None, with_bias_add: bool = True) -> Linear | str:
    """The layer, or why ``node`` is none whose weight can be changed.

    Args:
        node: any node.
        with_bias_add: take the Add behind a MatMul as its bias.
    """
    if node is None or node.op_type not in OPS or node.domain not in ("", "ai.onnx"):
        return "no Conv, ConvTranspose, Gemm or MatMul there"
    weight = constant(node.inputs[1])
    if weight is None or node.inputs[0] is None:
        return f"the weight of {node.op_type} '{node.name}' is not constant"
    if weight.dtype.kind != "f":
        return f"the weight of {node.op_type} '{node.name}' is {weight.dtype}"
    if not node.op_type.startswith("Conv") and weight.ndim != 2:
        return f"the weight of {node.op_type} '{node.name}' has {weight.ndim} dimensions"
    if node.attributes.get_int("transA", 0):
        return f"Gemm '{node.name}' transposes its input"
    linear = Linear(node, weight)
    if node.op_type == "MatMul":
        return replace(linear, bias_at=_bias_add(linear)) if with_bias_add else linear
    linear = replace(linear, bias_at=(node, 2))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant(node.inputs[2])
        if bias is None:
            return f"the bias of {node.op_type} '{node.name}' is not constant"
        if bias.size not in (1, linear.outputs) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
            return f"the bias of {node.op_type} '{node.name}' has shape {list(bias.shape)}"
    return linear


def _bias_add(linear: Linear) -> tuple[oir.Node, int] | None:
    """The Add behind a MatMul and the index of its constant, if that is a vector ``(o,)``."""
    result = linear.node.outputs[0]
    follower = single_consumer(result)
    if follower is None or follower.op_type != "Add":
        return None
    index = 0 if follower.inputs[1] is result else 1
    bias = constant(follower.inputs[index])
    if bias is None or bias.size != linear.outputs or bias.shape[-1:] != (linear.outputs,):
        return None
    return follower, index


@dataclass(frozen=True)
class Affine:
    """A node that computes ``scale * x + shift`` with constants.

    Attributes:
        x: the tensor.
        scale: ``()`` or ``(channels,)``.
        shift: likewise.
        axis: negative axis of a vector, None for numbers (or for an operand with several axes).
        operand: the constant as stored.
    """

    x: oir.Value
    scale: Array
    shift: Array
    axis: int | None
    operand: npt.NDArray[np.generic]


def read_affine(node: oir.Node) -> Affine | None:
    """Add, Sub, Mul or Div with a constant float operand that cannot change the rank of x."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    left, right = node.inputs
    first, second = constant(left), constant(right)
    if (first is None) == (second is None):
        return None
    operand, x = (first, right) if second is None else (second, left)
    if operand is None or x is None or operand.dtype.kind != "f" or not np.isfinite(operand).all():
        return None
    rank = None if x.shape is None else len(x.shape)
    if rank is None:
        linear = as_linear(x.producer(), with_bias_add=False)
        rank = 1 if isinstance(linear, str) else linear.rank
    if operand.ndim > rank:
        return None
    axes = [i - operand.ndim for i, d in enumerate(operand.shape) if d != 1]
    axis = axes[0] if len(axes) == 1 else None
    number = operand.astype(np.float64).reshape(-1 if operand.size > 1 else ())
    one, zero = np.array(1.0), np.array(0.0)
    if node.op_type == "Add":
        return Affine(x, one, number, axis, operand)
    if node.op_type == "Mul":
        return Affine(x, number, zero, axis, operand)
    if node.op_type == "Sub":
        if second is None:
            return Affine(x, -one, number, axis, operand)
        return Affine(x, one, -number, axis, operand)
    if second is None or not np.all(operand):
        return None  # constant / x, or a division by zero
    return Affine(x, 1.0 / number, zero, axis, operand)


def set_constant(
    graph: oir.Graph, node: oir.Node, index: int, array: npt.NDArray[np.generic]
) -> None:
    """Let input ``index`` of ``node`` be ``array``; other readers of the old constant keep it.

    An initializer that only this node reads keeps its name.
    """
    array = np.asarray(array, order="C")
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    if (
        old is not None
        and old.is_initializer()
        and len(old.uses()) == 1
        and not old.is_graph_input()
        and not is_graph_output(old)
    ):
        old.const_value = oir.tensor(kept(array), name=old.name)
        old.shape = oir.Shape(array.shape)
        old.type = oir.TensorType(oir.DataType.from_numpy(array.dtype))
        return
    base = old.name if old is not None and old.name else f"{node.name}_constant{index}"
    node.replace_input_with(index, add_initializer(graph, base, array))
