"""A decoder's cache of keys and values in 8 bits, for ONNX Runtime.

Integers go in and come out: a quarter of the memory that a long context takes. GroupQueryAttention has a
form of its own for it, with a scale for each channel. Elsewhere the new keys and values are rounded once,
joined to the old integers, and the whole is widened in front of the attention; a node that joins them inside
is given the widened past, and what it adds is rounded behind it. These have one scale a head: widening 1,024
tokens of three heads takes 29 us so, and 72 with a scale for each channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort_nbits import MICROSOFT
from qcompile.ir.cache import CACHE_KEY, CachePair, write_pairs
from qcompile.ir.errors import PassError
from qcompile.ir.graph import add_initializer, attribute, fresh_name, insert_after_value

__all__ = ["store_cache"]

HEADS, SEQUENCE = 1, 2
"""Axes of a cache; it grows along the second."""

GQA_PAST, GQA_SCALE = (3, 4), (12, 13)
"""Inputs of GroupQueryAttention: past key and value, and their scales."""

_TRIED = frozenset(
    {"num_heads", "kv_num_heads", "scale", "do_rotary", "rotary_interleaved", "softcap"}
    | {"local_window_size"}
)
"""Attributes with which its integer form was tried."""


def store_cache(
    model: oir.Model, pairs: Sequence[CachePair], *, group_query: bool
) -> tuple[tuple[CachePair, ...], dict[str, int]]:
    """Let the caches of ``pairs`` be int8 in ``model``, which is edited and says so in its metadata.

    Args:
        model: lowered.
        pairs: with a scale for each head and channel.
        group_query: the runtime's GroupQueryAttention takes integers.

    Returns:
        the pairs with the scales that are used, and how many were stored in which way.

    Raises:
        PassError: a pair names what the graph does not have.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    for pair in pairs:
        if pair.past not in inputs or pair.present not in outputs:
            raise PassError(f"cache '{pair.past}' -> '{pair.present}' is not in the lowered graph")
    ways: Counter[str] = Counter()
    by_past = {pair.past: pair for pair in pairs}
    done: set[str] = set()
    for node in list(graph):
        if group_query and _takes_integers(node, by_past):
            _group_query(graph, node, by_past)
            done |= {value.name or "" for value in node.inputs if value is not None}
            ways["inside GroupQueryAttention"] += 2
    used = tuple(pair if pair.past in done else _by_head(pair) for pair in pairs)
    for pair in used:
        if pair.past not in done:
            past, present = inputs[pair.past], outputs[pair.present]
            ways[_widened(graph, past, present, pair)] += 1
    for pair in used:
        for value in (inputs[pair.past], _output(graph, pair.present)):
            value.type = oir.TensorType(oir.DataType.INT8)
    model.metadata_props[CACHE_KEY] = write_pairs(used)
    return used, dict(ways)


def _by_head(pair: CachePair) -> CachePair:
    return replace(pair, scale=pair.scale.max(-1, keepdims=True))


def _output(graph: oir.Graph, name: str) -> oir.Value:
    return next(value for value in graph.outputs if value.name == name)


def _readers(value: oir.Value) -> list[Any]:
    """Who reads the numbers; a Shape asks only how many there are."""
    return [use for use in value.uses() if use.node.op_type != "Shape"]


def _takes_integers(node: oir.Node, pairs: dict[str, CachePair]) -> bool:
    """A GroupQueryAttention whose cache is all of two pairs, in a form that was tried."""
    if (node.op_type, node.domain) != ("GroupQueryAttention", MICROSOFT):
        return False
    if len(node.inputs) <= max(GQA_PAST) or not set(node.attributes) <= _TRIED:
        return False
    # bias, sink and norms inside were not tried with integers
    if any(value is not None for value in node.inputs[10:]):
        return False
    for at, out in zip(GQA_PAST, (1, 2), strict=True):
        past = node.inputs[at]
        pair = None if past is None else pairs.get(past.name or "")
        if past is None or pair is None or len(_readers(past)) != 1:
            return False
        if len(node.outputs) <= out or node.outputs[out].name != pair.present:
            return False
        if list(node.outputs[out].uses()):
            return False
    return True


def _group_query(graph: oir.Graph, node: oir.Node, pairs: dict[str, CachePair]) -> None:
    node.resize_inputs(max(GQA_SCALE) + 1)
    for at, to in zip(GQA_PAST, GQA_SCALE, strict=True):
        past = node.inputs[at]
        pair = pairs[(past.name or "") if past is not None else ""]
        node.replace_input_with(to, add_initializer(graph, f"{pair.past}_scale", pair.scale))
    for name in ("k_quant_type", "v_quant_type"):
        node.attributes.add(oir.AttrString(name, "PER_CHANNEL"))
    node.attributes.add(oir.AttrInt64("kv_cache_bit_width", 8))


def _widened(graph: oir.Graph, past: oir.Value, present: oir.Value, pair: CachePair) -> str:
    """Round what is new and widen what attention reads; returns how."""
    node = present.producer()
    if node is None:
        raise PassError(f"output '{pair.present}' is written by no node")
    chain = _Chain(graph, pair)
    if _joins(node, past):
        new = node.inputs[1]
        if new is None:
            raise PassError(f"'{node.name}' joins '{pair.past}' to nothing")
        before = chain.rounded(new, pair.present)
        graph.insert_before(node, before)
        node.replace_input_with(1, before.outputs[0])
        if _readers(present):
            behind = chain.widened(present, pair.present)
            insert_after_value(graph, present, [behind], behind.outputs[0])
        return "rounded in front of Concat"
    return _around(graph, chain, past, present)


def _around(graph: oir.Graph, chain: _Chain, past: oir.Value, present: oir.Value) -> str:
    """The node in between stays as it is: it reads the widened past, and its output is rounded."""
    node, name = present.producer(), present.name or ""
    if node is None:
        raise PassError(f"output '{name}' is written by no node")
    readers = _readers(past)
    opened = chain.widened(past, past.name or "")
    first = next(iter(graph))
    graph.insert_before(first, opened)
    for use in readers:
        use.node.replace_input_with(use.idx, opened.outputs[0])
    present.name = fresh_name(graph, f"{name}_float")
    if _grows_only(node, opened.outputs[0]):
        made, way = chain.new_rows(past, present, name), f"new rows rounded behind {node.op_type}"
    else:
        made, way = [chain.rounded(present, name)], f"rounded behind {node.op_type}"
    graph.insert_after(node, made)
    written = made[-1].outputs[0]
    written.name, written.shape = name, present.shape
    for i, output in enumerate(graph.outputs):
        if output is present:
            graph.outputs[i] = written
    return way


def _joins(node: oir.Node, past: oir.Value) -> bool:
    """Whether all that happens to the past is that new rows are put behind it."""
    return (
        (node.op_type, node.domain) == ("Concat", "")
        and len(node.inputs) == 2
        and node.inputs[0] is past
        and len(_readers(past)) == 1
        and attribute(node, "axis") in (SEQUENCE, SEQUENCE - 4)
    )


def _grows_only(node: oir.Node, widened: oir.Value) -> bool:
    """Whether the operator's definition says that its output begins with the past as it was."""
    return (node.op_type, node.domain) == ("Attention", "") and widened in tuple(node.inputs)[4:6]


class _Chain:
    """Nodes that round or widen one cache."""

    def __init__(self, graph: oir.Graph, pair: CachePair) -> None:
        self.graph, self.pair = graph, pair
        self._constants: dict[str, oir.Value] = {}

    def rounded(self, value: oir.Value, name: str) -> oir.Node:
        """The value over its head's scale, to the nearest integer."""
        inputs = [value, *self._grid()]
        axis = [oir.AttrInt64("axis", HEADS)]
        return self._node("QuantizeLinear", inputs, f"{name}_int8", oir.DataType.INT8, axis)

    def widened(self, value: oir.Value, name: str) -> oir.Node:
        """The integers times their head's scale."""
        axis = [oir.AttrInt64("axis", HEADS)]
        inputs = [value, *self._grid()]
        return self._node("DequantizeLinear", inputs, f"{name}_values", attributes=axis)

    def new_rows(self, past: oir.Value, present: oir.Value, name: str) -> list[oir.Node]:
        """The old integers, with what ``present`` has behind them rounded."""
        ends = [
            self._constant(f"{name}_{word}", np.array([number], np.int64))
            for word, number in (("end", np.iinfo(np.int64).max), ("axis", SEQUENCE))
        ]
        whole = oir.DataType.INT64
        slices = [oir.AttrInt64("start", SEQUENCE), oir.AttrInt64("end", SEQUENCE + 1)]
        old = self._node("Shape", [past], f"{name}_old", whole, attributes=slices)
        rows = self._node("Slice", [present, old.outputs[0], *ends], f"{name}_new")
        integers = self.rounded(rows.outputs[0], name)
        axis = [oir.AttrInt64("axis", SEQUENCE)]
        parts = [past, integers.outputs[0]]
        joined = self._node("Concat", parts, f"{name}_joined", oir.DataType.INT8, axis)
        return [old, rows, integers, joined]

    def _grid(self) -> list[oir.Value]:
        """Scale and zero point of each head."""
        scale = self.pair.scale.ravel()
        zero = np.zeros(scale.shape, np.int8)
        return [
            self._constant(f"{self.pair.past}_scale", scale),
            self._constant(f"{self.pair.past}_zero", zero),
        ]

    def _constant(self, name: str, array: npt.NDArray[Any]) -> oir.Value:
        if name not in self._constants:
            self._constants[name] = add_initializer(self.graph, name, array)
        return self._constants[name]

    def _node(
        self,
        op_type: str,
        inputs: list[oir.Value],
        name: str,
        dtype: oir.DataType = oir.DataType.FLOAT,
        attributes: Sequence[oir.Attr] = (),
    ) -> oir.Node:
        result = oir.Value(name=fresh_name(self.graph, name), type=oir.TensorType(dtype))
        return oir.Node("", op_type, inputs, attributes, outputs=[result], name=result.name)
