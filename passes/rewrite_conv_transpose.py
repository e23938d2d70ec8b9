"""Write a ConvTranspose whose windows do not overlap as a 1x1 Conv and DepthToSpace.

With kernel = stride = k, no padding and no dilation every output pixel comes from one input pixel::

    y[o, k h + a, k w + b] = sum_i W[i, o, a, b] x[i, h, w] + bias[o]

Before: ``ConvTranspose(x, W (i, o, k, k), bias)``
After:  ``DepthToSpace(Conv(x, W' (k k o, i, 1, 1), bias'), k)``, the Conv's channels ordered ``(a, b, o)``
(mode DCR, the one that every opset has).

Two in a row, ``CT_l(f(CT_k(x)))`` with f acting on single elements, need one DepthToSpace by ``k l``
behind both Convs; the second Conv's weight is then zero between different positions ``(a, b)``.

DepthToSpace costs a pass over the output (ONNX Runtime: 0.8 ns an element for bytes, 1.4 for
floats), an integer Conv saves 0.02 ns an element and input channel. So layers with few channels
are left alone, and so are pairs whose second weight would be mostly zeros and big.

Where engines are compiled, float kernels of ConvTranspose take in what follows, one kernel for what are
two as a Conv of 8 bits. Only with few output channels they lose: TensorRT for RTX pads those to eight, and
takes two more kernels to transpose and to cut them off.

Functions of one element behind a DepthToSpace move before it, next to the Conv.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import (
    add_initializer,
    attribute,
    constant,
    default_opset,
    fresh_name,
    origin,
    single_consumer,
)
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.ir.pattern import Match, replace, stand_for
from qcompile.passes.linear import Linear, as_linear

__all__ = ["RewriteConvTranspose"]

UNARY = frozenset(
    {"Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu"}
)
_PADDED = 8
"""Channels to which engines pad."""


@dataclass(frozen=True)
class RewriteConvTranspose:
    """Turns ConvTranspose into a Conv, for which targets have integer kernels.

    Attributes:
        min_inputs: input channels from which the rewrite of a single layer pays.
        engines: the target compiles engines.
    """

    min_inputs: int = 64
    engines: bool = False
    name: str = "rewrite-conv-transpose"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite pairs and single layers of the main graph that allow it."""
        notes: list[Note] = []
        for node in list(state.model.graph):
            if node.op_type != "ConvTranspose" or node.graph is None:
                continue
            where = origin(node) or node.name or ""
            linear = _eligible(node)
            if isinstance(linear, str):
                notes.append(Note(where, f"ConvTranspose kept: {linear}"))
                continue
            if self.engines and linear.outputs >= _PADDED:
                text = (
                    f"ConvTranspose kept: one kernel writes its {linear.outputs} channels in float"
                )
                notes.append(Note(where, text))
                continue
            second = None if self.engines else _second(linear)
            if second is not None:
                _rewrite_pair(state.model, linear, second)
                notes.append(
                    Note(where, f"with '{second.node.name}' became Convs and DepthToSpace", True)
                )
            elif self.engines or linear.inputs >= self.min_inputs:
                _rewrite(state.model, linear)
                notes.append(Note(where, "became a 1x1 Conv and DepthToSpace", True))
            else:
                text = f"ConvTranspose kept: with {linear.inputs} input channels DepthToSpace costs more"
                notes.append(Note(where, text))
        for node in list(state.model.graph):
            while node.op_type == "DepthToSpace" and (moved := _swap(state.model.graph, node)):
                notes.append(Note(moved, "moved before DepthToSpace", True))
        return PassResult(sum(n.changed for n in notes), tuple(notes))


def _eligible(node: oir.Node) -> Linear | str:
    linear = as_linear(node)
    return linear if isinstance(linear, str) else _why_not(linear) or linear


def _second(first: Linear) -> Linear | None:
    """The ConvTranspose behind ``first`` and functions of one element, if joining both pays."""
    node = single_consumer(first.node.outputs[0])
    while node is not None and _elementwise(node):
        node = single_consumer(node.outputs[0])
    if node is None or node.op_type != "ConvTranspose" or node.graph is not first.node.graph:
        return None
    second = _eligible(node)
    if isinstance(second, str):
        return None
    blocks = first.weight.shape[2] ** 2 * second.weight.shape[2] ** 2 * second.outputs
    return second if blocks <= 2 * first.inputs else None


def _elementwise(node: oir.Node) -> bool:
    """Whether a node maps each element of its first input alone."""
    constants = all(v is None or constant(v) is not None for v in node.inputs[1:])
    return node.op_type in UNARY and node.domain in ("", "ai.onnx") and constants


def _why_not(linear: Linear) -> str | None:
    node, kernel = linear.node, linear.weight.shape[2:]
    if len(kernel) != 2 or kernel[0] != kernel[1]:
        return f"its kernel {list(kernel)} is not square"
    if kernel[0] == 1:
        return "its kernel is 1x1"
    if attribute(node, "strides", (1, 1)) != kernel:
        return f"its kernel {list(kernel)} is not its stride, so windows overlap or leave gaps"
    if linear.group != 1:
        return f"it has {linear.group} groups"
    for name in ("pads", "output_padding"):
        values = attribute(node, name, ())
        if isinstance(values, tuple) and any(values):
            return f"it has {name}"
    if (
        attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        or "output_shape" in node.attributes
    ):
        return "it states its output shape"
    dilations = attribute(node, "dilations", (1,))
    if isinstance(dilations, tuple) and any(d != 1 for d in dilations):
        return "it is dilated"
    return None


def _rewrite(model: oir.Model, linear: Linear) -> None:
    weight = np.transpose(linear.weight, (2, 3, 1, 0)).reshape(-1, linear.inputs, 1, 1)
    conv = _conv(model.graph, linear, weight, linear.node.inputs[0])
    spread = _depth_to_space(model, linear.node, conv, linear.weight.shape[2])
    replace(Match({}, (linear.node,)), [conv, spread])


def _rewrite_pair(model: oir.Model, first: Linear, second: Linear) -> None:
    k, m = first.weight.shape[2], second.weight.shape[2]
    outer = np.transpose(first.weight, (2, 3, 1, 0)).reshape(-1, first.inputs, 1, 1)
    # Rows (a, p, b, q, o): pixel (p, q) of the block that belongs to pixel (a, b); columns (a, b, c).
    dense = np.zeros((k, m, k, m, second.outputs, k, k, second.inputs), second.weight.dtype)
    for a in range(k):
        for b in range(k):
            dense[a, :, b, :, :, a, b, :] = np.transpose(second.weight, (2, 3, 1, 0))
    inner = dense.reshape((k * m) ** 2 * second.outputs, k * k * second.inputs, 1, 1)
    new = _conv(model.graph, first, outer, first.node.inputs[0])
    node = single_consumer(first.node.outputs[0])
    shape = new.outputs[0].shape
    replace(Match({}, (first.node,)), [new])
    new.outputs[0].shape = shape
    while node is not None and node is not second.node:
        node.outputs[0].shape = shape
        node = single_consumer(node.outputs[0])
    conv = _conv(model.graph, second, inner, second.node.inputs[0])
    spread = _depth_to_space(model, second.node, conv, k * m)
    replace(Match({}, (second.node,)), [conv, spread])


def _conv(
    graph: oir.Graph, linear: Linear, weight: npt.NDArray[np.generic], source: oir.Value | None
) -> oir.Node:
    """A 1x1 Conv that stands for the layer, its bias repeated for every position."""
    node, old = linear.node, linear.node.inputs[1]
    inputs = [source, add_initializer(graph, f"{old.name if old else node.name}_1x1", weight)]
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        tiled = np.tile(bias.reshape(-1), weight.shape[0] // linear.outputs)
        inputs.append(add_initializer(graph, f"{node.outputs[0].name}_bias", tiled))
    conv = oir.Node("", "Conv", inputs, [oir.AttrInt64s("kernel_shape", [1, 1])])
    stand_for(conv, [node])
    out = conv.outputs[0]
    out.name, out.type = fresh_name(graph, f"{node.outputs[0].name}_blocks"), node.outputs[0].type
    if source is not None and source.shape is not None:
        out.shape = oir.Shape([source.shape[0], weight.shape[0], *list(source.shape)[2:]])
    return conv


def _depth_to_space(model: oir.Model, node: oir.Node, conv: oir.Node, size: int) -> oir.Node:
    spread = oir.Node("", "DepthToSpace", [conv.outputs[0]], [oir.AttrInt64("blocksize", size)])
    spread.name = f"{node.name}/depth_to_space"
    if default_opset(model) >= 11:
        spread.attributes["mode"] = oir.AttrString("mode", "DCR")
    return spread


def _swap(graph: oir.Graph, node: oir.Node) -> str | None:
    """Move the one-element function behind a DepthToSpace before it; the origin that moved."""
    follower = single_consumer(node.outputs[0])
    if follower is None or not _elementwise(follower) or follower.graph is not graph:
        return None
    source, out = node.inputs[0], follower.outputs[0]
    name = out.name
    follower.replace_input_with(0, source)
    out.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    node.replace_input_with(0, out)
    node.outputs[0].type = out.type
    node.outputs[0].name = None
    out.name = fresh_name(graph, f"{name}_blocks")
    node.outputs[0].name = name
    out.shape = None if source is None else source.shape
    graph.remove(node)
    graph.insert_after(follower, node)
    return origin(follower) or follower.name or ""
