"""Fold chains of Mul, Add, Sub and Div by constants into the layers before and behind them.

Behind a layer (its result read by the chain alone, maybe through moves of data, and for a number
without a constant through the MatMul of two tensors, as in an attention)::

    a * (W x + b) + c          ->  (a W) x + (a b + c)         Conv, ConvTranspose, Gemm
                               ->  (a W) x, then one Add       MatMul

Before layers (every reader of the chain ends in a layer that can take it)::

    W (a * x + c) + b          ->  (W a) x + (b + W c)         layers that pad nothing
                               ->  (W a) (x + c / a) + b       layers that pad: one Add stays

On its way to a layer a factor may pass what is linear in it: pools, Reshape, Transpose and the like,
Relu and LeakyRelu when positive, the product with another tensor (so the gates of squeeze-and-excite
blocks are no obstacle). A constant may pass pools without padding and pure moves of data.

Chains that reach no layer are merged: ``(a x + b) * c + d -> (a c) x + (b c + d)``.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.errors import PassError
from qcompile.ir.graph import add_initializer, origin, set_origin, single_consumer
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.ir.pattern import Match, absorb, replace
from qcompile.passes.linear import Affine, Array, Linear, as_linear, read_affine
from qcompile.passes.protected import protected
from qcompile.passes.sinks import find_sinks
from qcompile.passes.sources import find_source

__all__ = ["FoldAffine"]


@dataclass(frozen=True)
class Chain:
    """Affine nodes in a row, each read by the next alone: ``result = scale * source + shift``.

    Attributes:
        nodes: in graph order.
        source: what the first reads.
        scale: ``()`` or ``(channels,)``.
        shift: likewise.
        axis: negative axis of the channels, None if both are numbers.
        dtype: of the constants.
    """

    nodes: tuple[oir.Node, ...]
    source: oir.Value
    scale: Array
    shift: Array
    axis: int | None
    dtype: np.dtype[np.generic]

    @property
    def result(self) -> oir.Value:
        """The tensor that the chain yields."""
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True)
class FoldAffine:
    """Removes or shortens affine chains of the main graph.

    Attributes:
        columns: let a factor for each channel into the columns of the layer that reads it. Off where weights
            may come from a checkpoint in few bits: one factor a column takes them off its grid.
    """

    name: str = "fold-affine"
    columns: bool = True

    def run(self, state: CompileState) -> PassResult:
        """Fold into producers first, then into readers, then merge what is left; until nothing changes."""
        graph = state.model.graph
        kept = protected(graph)
        done: list[Note] = []
        while True:
            notes = [
                note
                for step in (_behind, _before if self.columns else _before_rows, _merge)
                for note in _each(graph, kept, step)
            ]
            done += [n for n in notes if n.changed]
            if not any(n.changed for n in notes):
                return PassResult(len(done), (*done, *notes))


def _each(
    graph: oir.Graph, kept: Container[oir.Node], step: Callable[[oir.Graph, Chain], Note | None]
) -> list[Note]:
    """Apply one step to every chain; what it did, and why it left chains alone."""
    notes: list[Note] = []
    seen: set[oir.Node] = set()
    for node in list(graph):
        if node.graph is None or node in kept or node in seen:
            continue
        chain = _chain(node, kept)
        if chain is None:
            continue
        seen.update(chain.nodes)
        note = step(graph, chain)
        if note is not None:
            notes.append(note)
    return notes


def _chain(node: oir.Node, kept: Container[oir.Node]) -> Chain | None:
    """The longest chain that starts with ``node`` and varies along one axis at most."""
    nodes: list[oir.Node] = []
    scale, shift = np.array(1.0), np.array(0.0)
    source: oir.Value | None = None
    axis: int | None = None
    dtype: np.dtype[np.generic] = np.dtype(np.float32)
    current: oir.Node | None = node
    while current is not None and current not in kept:
        read = read_affine(current)
        if read is None or (nodes and read.x is not nodes[-1].outputs[0]):
            break
        here = read.axis
        if here is None and read.operand.size > 1:
            break
        if (
            here is not None
            and axis is not None
            and (here != axis or not _fits(read, scale, shift))
        ):
            break
        axis = here if axis is None else axis
        source, dtype = source or read.x, read.operand.dtype
        scale, shift = scale * read.scale, shift * read.scale + read.shift
        nodes.append(current)
        current = single_consumer(current.outputs[0])
    return Chain(tuple(nodes), source, scale, shift, axis, dtype) if source is not None else None


def _fits(read: Affine, scale: Array, shift: Array) -> bool:
    return max(scale.size, shift.size) == max(read.scale.size, read.shift.size)


def _before_rows(graph: oir.Graph, chain: Chain) -> Note | None:
    """Fold into the layers that read the chain unless it scales their columns apart."""
    return _before(graph, chain) if chain.scale.size == 1 else None


def _behind(graph: oir.Graph, chain: Chain) -> Note | None:
    """Fold into the layer that feeds the chain, maybe through moves of data."""
    source = find_source(chain.source, chain.axis, factor_only=not np.any(chain.shift))
    where = _where(chain)
    if source is None:
        return None
    if isinstance(source, str):
        return Note(where, f"not folded back: {source}")
    linear = source.linear
    only_shift = bool(np.all(chain.scale == 1))
    is_matmul = linear.node.op_type == "MatMul"
    if is_matmul and not source.moved and len(chain.nodes) == 1 and only_shift:
        return None  # a MatMul's bias; there is no better place for it
    if source.axis is not None and (
        source.axis != linear.negative_axis
        or max(chain.scale.size, chain.shift.size) != linear.outputs
    ):
        return Note(where, f"not folded into '{linear.node.name}': it varies along another axis")
    reason = linear.why_no_new_weight()
    if reason is not None:
        return Note(where, f"not folded into '{linear.node.name}': {reason}")
    text = f"folded into '{linear.node.name}'"
    if linear.bias_at is not None or not np.any(chain.shift):
        linear.scale_outputs(graph, chain.scale, chain.shift)
        _bypass(graph, chain, linear.node)
        return Note(where, text, True)
    if source.moved:
        return (
            None
            if only_shift
            else Note(where, f"not folded back: '{linear.node.name}' has no bias")
        )
    linear.scale_outputs(graph, chain.scale, np.array(0.0))
    _write(graph, chain, np.array(1.0), chain.shift)
    return Note(where, f"{text}, its constant is the bias", True)


def _before(graph: oir.Graph, chain: Chain) -> Note | None:
    """Fold into the layers that read the chain's result."""
    where = _where(chain)
    if chain.axis is not None and not _has_channels(chain):
        return Note(where, f"not folded forward: '{chain.source.name}' may be broadcast")
    if isinstance(as_linear(chain.source.producer(), with_bias_add=False), Linear) and np.all(
        chain.scale == 1
    ):
        return None  # a bias that stays
    sinks = find_sinks(chain.result, chain.scale, chain.axis)
    if isinstance(sinks, str):
        return Note(where, f"not folded forward: {sinks}")
    text = "folded into " + ", ".join(f"'{n.name}'" for n in dict.fromkeys(sinks.nodes))
    if not np.any(chain.shift) or sinks.no_shift is None:
        for node in sinks.nodes:
            _scale_inputs(graph, node, chain.scale, chain.shift)
        _bypass(graph, chain, sinks.nodes[0])
        return Note(where, text, True)
    if np.all(chain.scale == 1):
        return Note(where, f"constant not folded forward: {sinks.no_shift}")
    if np.any(np.abs(chain.scale) < 1e-6 * np.max(np.abs(chain.shift))):
        return Note(where, "not folded forward: its factor is too small to divide by")
    for node in sinks.nodes:
        _scale_inputs(graph, node, chain.scale, np.array(0.0))
    _write(graph, chain, np.array(1.0), chain.shift / chain.scale)
    return Note(where, f"factor {text}; constant kept: {sinks.no_shift}", True)


def _merge(graph: oir.Graph, chain: Chain) -> Note | None:
    """Write the chain with as few nodes as it needs."""
    needed = int(np.any(chain.scale != 1)) + int(np.any(chain.shift != 0))
    if needed >= len(chain.nodes) or needed == 0:
        return None
    if chain.axis is not None and not _has_channels(chain):
        return Note(_where(chain), f"not merged: '{chain.source.name}' may be broadcast")
    _write(graph, chain, chain.scale, chain.shift)
    return Note(_where(chain), f"{len(chain.nodes)} nodes became {needed}", True)


def _where(chain: Chain) -> str:
    return origin(chain.nodes[0]) or chain.nodes[0].name or ""


def _has_channels(chain: Chain) -> bool:
    """Whether the source is known to have as many channels as the constants."""
    axis = chain.axis or 0
    channels = max(chain.scale.size, chain.shift.size)
    shape = chain.source.shape
    if shape is not None and len(shape) >= -axis:
        return bool(shape[axis] == channels)
    linear = as_linear(chain.source.producer())
    return (
        isinstance(linear, Linear) and linear.negative_axis == axis and linear.outputs == channels
    )


def _scale_inputs(graph: oir.Graph, node: oir.Node, scale: Array, shift: Array) -> None:
    linear = as_linear(node)
    if isinstance(linear, str):
        raise PassError(f"'{node.name}' was a layer and is none any more: {linear}")
    linear.scale_inputs(graph, scale, shift)


def _bypass(graph: oir.Graph, chain: Chain, heir: oir.Node) -> None:
    """Let the readers of the chain's result read its source; ``heir`` takes over the origins."""
    set_origin(heir, [heir, *chain.nodes])
    producer = chain.source.producer()
    if producer is not None and single_consumer(chain.source) is chain.nodes[0]:
        absorb(producer, chain.nodes, credit=False)
        return
    chain.result.replace_all_uses_with(chain.source)
    for node in reversed(chain.nodes):
        graph.remove(node, safe=True)


def _write(graph: oir.Graph, chain: Chain, scale: Array, shift: Array) -> None:
    """Put ``scale * source + shift`` in the chain's place."""
    last = chain.nodes[-1]
    new: list[oir.Node] = []
    source = chain.source
    for op_type, number, neutral in (("Mul", scale, 1.0), ("Add", shift, 0.0)):
        if np.all(number == neutral):
            continue
        shape = () if number.ndim == 0 else (-1, *(1,) * (-(chain.axis or -1) - 1))
        array = number.astype(chain.dtype).reshape(shape)
        operand = add_initializer(graph, f"{chain.result.name}_{op_type.lower()}", array)
        node = oir.Node("", op_type, [source, operand], name=f"{last.name}/{op_type.lower()}")
        node.outputs[0].name = f"{chain.result.name}_{op_type.lower()}_of"
        node.outputs[0].type, node.outputs[0].shape = chain.result.type, chain.result.shape
        new.append(node)
        source = node.outputs[0]
    replace(Match({}, tuple(reversed(chain.nodes))), new)
