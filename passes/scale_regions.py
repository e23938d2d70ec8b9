"""Finds tensors whose channels can be scaled together without changing what the model computes.

A region is a set of tensors tied to one another by operators that commute with a positive factor per
channel, ``f(x / s) = f(x) / s``: Relu, LeakyRelu, PRelu, pools, Resize, sums of tensors (residual
branches), products with a gate, Transposes. It ends where a factor can be absorbed:

* at its sources ``1 / s``: rows of a Conv, ConvTranspose, Gemm or MatMul, gain and bias of a
  LayerNormalization or RMSNormalization, constants that are multiplied or added;
* at its readers ``s``: columns of a layer's weight, constants that are multiplied.

Everything else ends the search with a reason: the region stays as it is. A Clip is passed only by
channels that it provably never cuts off at its upper end (see ``output_limits``), and which stay
below it when scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant, is_graph_output
from qcompile.passes.linear import Array, Linear, as_linear
from qcompile.passes.output_limits import clip_limits, output_limits

__all__ = ["Region", "find_regions"]

SAME = frozenset({"Relu", "LeakyRelu", "PRelu", "Identity"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
LARGEST = 64
"""Tensors that a region may have."""


@dataclass
class Region:
    """Tensors that share one factor for each channel.

    Attributes:
        seed: the tensor that names it.
        channels: how many factors there are.
        tensors: value -> negative axis of the channels.
        layers: sources that are layers.
        gains: nodes whose constant takes ``1 / s``, and its index (norms: gain and bias; Mul; Add).
        readers: layers that take ``s``.
        reader_gains: Mul nodes that take ``s``, and the index of their constant.
        least: (channels,), the least factor that each channel can take; 0 without a limit.
        fixed: (channels,), channels that keep the factor 1.
        moved: whether only moves of data lie between sources and readers.
        branch: nothing takes the factor up but a division in front of the readers.
    """

    seed: oir.Value
    channels: int
    tensors: dict[oir.Value, int] = field(default_factory=dict)
    layers: list[oir.Node] = field(default_factory=list)
    gains: list[tuple[oir.Node, int, int]] = field(default_factory=list)
    readers: list[oir.Node] = field(default_factory=list)
    reader_gains: list[tuple[oir.Node, int, int]] = field(default_factory=list)
    least: Array = field(default_factory=lambda: np.zeros(0))
    fixed: Array = field(default_factory=lambda: np.zeros(0))
    moved: bool = True
    branch: bool = False

    @property
    def name(self) -> str:
        """Of the seed, which is the first source's result."""
        return self.seed.name or ""

    def read(self) -> list[oir.Value]:
        """The tensors that its layers read, each once."""
        found = [node.inputs[0] for node in self.readers]
        return [v for v in dict.fromkeys(found) if v is not None]


def find_regions(graph: oir.Graph) -> tuple[list[Region], list[tuple[str, str]]]:
    """The regions of a graph in its order; (tensor, reason) of those that cannot be scaled."""
    regions: list[Region] = []
    refused: list[tuple[str, str]] = []
    seen: set[oir.Value] = set()
    for node in graph:
        value = node.outputs[0] if node.outputs else None
        if value is None or value in seen:
            continue
        channels, axis = _begins(node)
        if channels < 2:
            continue
        region = Region(value, channels, least=np.zeros(channels), fixed=np.zeros(channels))
        reason = _grow(region, value, axis)
        seen.update(region.tensors)
        if reason is None and region.readers:
            regions.append(region)
        elif reason is not None:
            refused.append((value.name or "", reason))
    return regions, refused


def _begins(node: oir.Node) -> tuple[int, int]:
    """Channels and their axis where a region starts; 0 channels elsewhere."""
    linear = as_linear(node, with_bias_add=False)
    if not isinstance(linear, str):
        return linear.outputs, linear.negative_axis
    if node.op_type in NORMS:
        gain = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return (0, -1) if gain is None or gain.ndim != 1 else (gain.size, -1)
    if node.op_type == "Mul" and _plain(node):
        constants = [c for c in (constant(v) for v in node.inputs) if c is not None]
        if len(constants) == 1 and constants[0].dtype.kind == "f":
            shape = constants[0].shape
            wide = [i - len(shape) for i, dim in enumerate(shape) if dim > 1]
            if len(wide) == 1:  # the gain of a norm that is written out, for example
                return constants[0].size, wide[0]
    return 0, -1


def _plain(node: oir.Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _grow(region: Region, value: oir.Value, axis: int) -> str | None:
    """Follow every edge of the region; the reason where one cannot be followed."""
    waiting = [(value, axis)]
    while waiting:
        value, axis = waiting.pop()
        if value in region.tensors:
            if region.tensors[value] != axis:
                return f"'{value.name}' is met with its channels on two axes"
            continue
        region.tensors[value] = axis
        if len(region.tensors) > LARGEST:
            return "too many tensors hang together"
        found = _source(region, value, axis)
        if isinstance(found, str):
            return found
        waiting += found
        if is_graph_output(value):
            return f"'{value.name}' is an output of the model"
        for use in value.uses():
            if use.node.graph is not value.graph:
                return f"'{value.name}' is read inside a branch or loop"
            found = _reader(region, use.node, use.idx, value, axis)
            if isinstance(found, str):
                return found
            waiting += found
    return None


Edges = list[tuple[oir.Value, int]]


def _source(region: Region, value: oir.Value, axis: int) -> Edges | str:
    """Take the factor up at the node that makes ``value``, or go on to what that reads."""
    node = value.producer()
    if node is None or value is not node.outputs[0]:
        return f"nothing in front of '{value.name}' can take a factor"
    linear = as_linear(node, with_bias_add=False)
    if not isinstance(linear, str):
        if linear.negative_axis != axis or linear.outputs != region.channels:
            return f"the channels of '{value.name}' are not the output channels of its layer"
        reason = linear.why_no_new_weight()
        if reason is None and node not in region.layers:
            region.layers.append(node)
        return reason or []
    if node.op_type in NORMS:
        return _norm(region, node, axis)
    return _through(region, node, value, axis)


def _norm(region: Region, node: oir.Node, axis: int) -> Edges | str:
    gains = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
    if axis != -1 or int(node.attributes.get_int("axis", -1)) not in (-1, _last(node)):
        return f"{node.op_type} '{node.name}' normalizes another axis"
    for index in gains:
        array = constant(node.inputs[index])
        if array is None or array.shape != (region.channels,):
            return f"gain or bias of {node.op_type} '{node.name}' is not one constant per channel"
    region.gains += [(node, index, -1) for index in gains]
    return []


def _last(node: oir.Node) -> int:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return -1 if shape is None else len(shape) - 1


def _reader(region: Region, node: oir.Node, index: int, value: oir.Value, axis: int) -> Edges | str:
    """Take the factor up at a node that reads ``value``, or go on to its result."""
    linear = as_linear(node, with_bias_add=False)
    if not isinstance(linear, str):
        if index != 0 or linear.negative_axis != axis or linear.inputs != region.channels:
            return f"its channels are not the input channels of {node.op_type} '{node.name}'"
        reason = linear.why_no_new_weight()
        if reason is None and node not in region.readers:
            region.readers.append(node)
        return reason or []
    operand = _operand(node)
    if node.op_type in ("Mul", "Div") and operand is not None:
        if node.op_type == "Mul" and _scalable(node, operand, region.channels, axis):
            region.reader_gains.append((node, operand, axis))
            return []
        return _through(region, node, value, axis)
    return _through(region, node, value, axis)


def _operand(node: oir.Node) -> int | None:
    """Index of the one constant operand of an elementwise node."""
    known = [i for i, v in enumerate(node.inputs) if constant(v) is not None]
    if not _plain(node) or len(node.inputs) != 2 or len(known) != 1:
        return None
    return known[0]


def _scalable(node: oir.Node, index: int, channels: int, axis: int) -> bool:
    """Whether a constant can be written with one number per channel without changing the rank."""
    array, other = constant(node.inputs[index]), node.inputs[1 - index]
    if array is None or array.dtype.kind != "f" or other is None or other.shape is None:
        return False
    rank = len(other.shape)
    if array.ndim > rank or other.shape[axis] != channels:
        return False
    return array.ndim < -axis or array.shape[axis] in (1, channels)


def _through(region: Region, node: oir.Node, value: oir.Value, axis: int) -> Edges | str:
    """What else must be scaled when one tensor at ``node`` is; edits are noted once."""
    kind, result = node.op_type, node.outputs[0]
    refuse = f"{kind} '{node.name}' does not let a factor per channel pass"
    if not _plain(node):
        return refuse
    data = node.inputs[0]
    if data is None:
        return refuse
    if kind in SAME or kind in POOLS:
        if value is not data and value is not result:
            return refuse
        if any(v.uses() for v in node.outputs[1:]):
            return f"{kind} '{node.name}' has a second result"
        region.moved &= kind == "Identity"
        return [(data, axis), (result, axis)]
    if kind == "Resize" and value in (data, result) and _keeps_channels(node, axis):
        region.moved = False
        return [(data, axis), (result, axis)]
    if kind == "Clip":
        return _clip(region, node, axis) or [(data, axis), (result, axis)]
    if kind == "Transpose":
        return _transpose(node, value, axis) or refuse
    if kind in ("Add", "Sub", "Mul", "Div") and len(node.inputs) == 2:
        found = _elementwise(region, node, axis)
        return refuse if found is None else found
    return refuse


def _keeps_channels(node: oir.Node, axis: int) -> bool:
    """Whether a Resize leaves the channel axis alone: then it is linear in each channel."""
    shapes = [None if v is None else v.shape for v in (node.inputs[0], node.outputs[0])]
    if any(shape is None for shape in shapes):
        return False
    before, after = (shape[axis] for shape in shapes if shape is not None)
    cropped = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    return isinstance(before, int) and before == after and not cropped


def _transpose(node: oir.Node, value: oir.Value, axis: int) -> Edges:
    perm, data = attribute(node, "perm"), node.inputs[0]
    if not isinstance(perm, tuple) or data is None:
        return []
    rank = len(perm)
    before = int(perm[axis]) - rank if value is node.outputs[0] else axis
    after = perm.index(before + rank) - rank
    return [(data, before), (node.outputs[0], after)]


def _elementwise(region: Region, node: oir.Node, axis: int) -> Edges | str | None:
    result, operand = node.outputs[0], _operand(node)
    left, right = node.inputs
    if left is None or right is None:
        return None
    region.moved = False
    if operand is not None:
        data = node.inputs[1 - operand]
        if data is None or (node.op_type == "Div" and operand == 0):
            return None
        if node.op_type == "Div":
            return [(data, axis), (result, axis)]
        if not _scalable(node, operand, region.channels, axis):
            return None
        if (node, operand, axis) not in region.gains:
            region.gains.append((node, operand, axis))
        # The constant of a product takes the factor, so the region ends there.
        return [] if node.op_type == "Mul" else [(data, axis), (result, axis)]
    shapes = [None if v.shape is None else tuple(v.shape) for v in (left, right)]
    if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
        return None
    wide = [shape[axis] == region.channels for shape in shapes if shape is not None]
    if node.op_type in ("Add", "Sub"):
        return [(left, axis), (right, axis), (result, axis)] if all(wide) else None
    return _gate(node, axis, wide) or None if node.op_type == "Mul" else None


def _gate(node: oir.Node, axis: int, wide: list[bool]) -> Edges:
    """The product of a tensor and a smaller one (squeeze-and-excite): the tensor carries the factor."""
    sizes = [sum(dim == 1 for dim in (v.shape or ())) if v is not None else 0 for v in node.inputs]
    if sizes[0] == sizes[1]:
        return []
    index = int(sizes[0] > sizes[1])
    data = node.inputs[index]
    return [(data, axis), (node.outputs[0], axis)] if data is not None and wide[index] else []


def _clip(region: Region, node: oir.Node, axis: int) -> str | None:
    """Note which channels may be scaled at a Clip from 0, and how far."""
    low, high = clip_limits(node)
    where = f"Clip '{node.name}'"
    if low != 0.0 or high is None:
        return f"{where} does not start at 0"
    region.moved = False
    if not np.isfinite(high):
        return None
    linear = as_linear(node.inputs[0].producer() if node.inputs[0] is not None else None)
    limits = None if isinstance(linear, str) else _limits(linear, axis)
    if limits is None:
        return f"{where} may cut off any channel: what its layer reads has no known limits"
    free = limits <= high
    if np.count_nonzero(free) < 2:
        return f"{where} may cut off every channel"
    region.fixed = np.maximum(region.fixed, ~free)
    region.least = np.maximum(region.least, np.where(free, np.maximum(limits, 0) / high, 0))
    return None


def _limits(linear: Linear, axis: int) -> Array | None:
    return output_limits(linear)[1] if linear.negative_axis == axis else None
