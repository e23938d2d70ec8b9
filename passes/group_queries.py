"""Let the queries that share a head of keys or values be rows of one product.

Before: keys (B, n, T, H) are repeated for the G queries of each head, as exporters write grouped attention::

    MatMul(q (B, n G, S, H), Transpose(Reshape(Expand(Unsqueeze(k)))))

After:  the queries of a head stand below one another, and nothing is copied::

    Reshape(MatMul(Reshape(q; B, n, G S, H), Transpose(k)); B, n G, S, T)

Values likewise. A factor of the scores stays directly behind the product, where ONNX Runtime takes it in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import (
    add_initializer,
    attribute,
    drop_unused,
    fresh_name,
    insert_after_value,
    is_graph_output,
    origin,
    single_consumer,
)
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.passes.tracker import Tracker

__all__ = ["GroupQueries"]

HEADS = 1
TURNED = (0, 1, 3, 2)


@dataclass(frozen=True)
class GroupQueries:
    """Takes the repetition of heads out of the products of the main graph."""

    name: str = "group-queries"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite every product with heads that were repeated, if it is certain that they were."""
        graph = state.model.graph
        tracker = Tracker(graph)
        notes: list[Note] = []
        changed = 0
        for node in list(graph):
            found = _find(node, tracker)
            if found is None:
                continue
            where = origin(node) or node.name or ""
            if any(is_graph_output(n.outputs[0]) for n in (node, found.last)):
                notes.append(Note(where, "heads stay repeated: an output of the model shows them"))
                continue
            _rewrite(graph, node, found)
            text = f"{found.count} heads are read once, not repeated {found.times} times"
            notes.append(Note(where, text, True))
            changed += 1
        if changed:
            drop_unused(state.model)
        return PassResult(changed, tuple(notes))


@dataclass(frozen=True)
class _Repeated:
    """The right side of a product, made of repeated heads.

    Attributes:
        heads: (B, n, T, H), each of which is repeated.
        count: n.
        times: how often.
        chain: what becomes of the repeated heads, in graph order.
        last: what multiplies the product by one number, else the product.
    """

    heads: oir.Value
    count: int
    times: int
    chain: tuple[oir.Node, ...]
    last: oir.Node


def _find(node: oir.Node, tracker: Tracker) -> _Repeated | None:
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
        return None
    chain: list[oir.Node] = []
    value = node.inputs[1]
    while value is not None and (made := value.producer()) is not None:
        turned = made.op_type == "Transpose" and attribute(made, "perm") == TURNED
        if not turned and _factor(made, made.inputs[0], tracker) is None:
            break
        chain.insert(0, made)
        value = made.inputs[0]
    heads = _unrepeated(value, tracker)
    left, whole, before = (tracker.dims(v) for v in (node.inputs[0], value, heads))
    if heads is None or left is None or whole is None or before is None:
        return None
    count, total = before[HEADS], whole[HEADS]
    if len(left) != 4 or left[:2] != whole[:2]:
        return None
    if not isinstance(count, int) or not isinstance(total, int) or count == total:
        return None
    reader = single_consumer(node.outputs[0])
    scaled = reader is not None and _factor(reader, node.outputs[0], tracker) is not None
    last = reader if reader is not None and scaled else node
    return _Repeated(heads, count, total // count, tuple(chain), last)


def _factor(node: oir.Node, value: oir.Value | None, tracker: Tracker) -> oir.Value | None:
    """The one number by which ``node`` multiplies or divides ``value``."""
    if node.op_type not in ("Mul", "Div") or node.domain not in ("", "ai.onnx"):
        return None
    if value is None or node.inputs[0] is not value or node.inputs[1] is value:
        return None
    dims = tracker.dims(node.inputs[1])
    return node.inputs[1] if dims is not None and len(dims) <= 4 and set(dims) <= {1} else None


def _unrepeated(value: oir.Value | None, tracker: Tracker) -> oir.Value | None:
    """(B, n, T, H) of which ``value`` (B, n G, T, H) repeats each head G times in a row."""
    steps = list(_steps(value))
    if len(steps) != 3:
        return None
    merged, wide, apart = (tracker.dims(node.outputs[0]) for node in steps)
    source = steps[-1].inputs[0]
    before = tracker.dims(source)
    if merged is None or wide is None or apart is None or before is None:
        return None
    if len(before) != 4 or len(wide) != 5:
        return None
    batch, count, *rest = before
    times = wide[2]
    if not isinstance(count, int) or not isinstance(times, int):
        return None
    fits = (
        apart == (batch, count, 1, *rest)
        and wide == (batch, count, times, *rest)
        and merged == (batch, count * times, *rest)
    )
    return source if fits else None


def _steps(value: oir.Value | None) -> Iterator[oir.Node]:
    """What exporters repeat heads with, from the last node to the first."""
    for wanted in (("Reshape",), ("Expand",), ("Unsqueeze", "Reshape")):
        node = None if value is None else value.producer()
        if node is None or node.op_type not in wanted or node.domain not in ("", "ai.onnx"):
            return
        yield node
        value = node.inputs[0]


def _rewrite(graph: oir.Graph, node: oir.Node, found: _Repeated) -> None:
    left, right = node.inputs[0], found.heads
    if left is None:
        raise TypeError(f"'{node.name}' was not checked")
    base, last = node.name or "product", found.last.outputs[0]
    before = [_reshape(graph, left, found.count, f"{base}/grouped")]
    for step in found.chain:
        attributes = list(step.attributes.values())
        inputs = [right, *step.inputs[1:]]
        before.append(_node(graph, step.op_type, inputs, f"{base}/{step.op_type}", attributes))
        right = before[-1].outputs[0]
    graph.insert_before(node, before)
    node.replace_input_with(0, before[0].outputs[0])
    node.replace_input_with(1, right)
    apart = _reshape(graph, last, found.count * found.times, f"{base}/apart")
    insert_after_value(graph, last, [apart], apart.outputs[0])
    # the tensor that others know by its name is the one with all heads
    name, apart.outputs[0].shape = last.name, last.shape
    for one in dict.fromkeys((node.outputs[0], last)):
        one.name, one.shape = fresh_name(graph, f"{one.name}_grouped"), None
    apart.outputs[0].name = name


def _reshape(graph: oir.Graph, value: oir.Value, heads: int, name: str) -> oir.Node:
    """(B, ., ., W) with ``heads`` heads."""
    target = add_initializer(graph, f"{name}_shape", np.array([0, heads, -1, 0], np.int64))
    return _node(graph, "Reshape", [value, target], name, [])


def _node(
    graph: oir.Graph,
    op_type: str,
    inputs: list[oir.Value | None],
    name: str,
    attributes: list[oir.Attr],
) -> oir.Node:
    node = oir.Node("", op_type, inputs, attributes, name=fresh_name(graph, name))
    node.outputs[0].name = fresh_name(graph, f"{name}_out")
    node.outputs[0].type = None if inputs[0] is None else inputs[0].type
    return node
