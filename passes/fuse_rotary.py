"""Write a rotary embedding that an exporter took apart as ONNX Runtime's own operator.

Before, with x (B, N, S, H) and cos, sin (B or 1, 1, S, H) whose halves along H are equal::

    x * cos + Concat(-x[..., H / 2 :], x[..., : H / 2]) * sin

or, with x1, x2 the halves of x and cos, sin of H / 2 channels::

    Concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin)

After: ``RotaryEmbedding(x, position_ids, cos, sin)``, where cos and sin are one row for each position that
occurs, so that the row's number stands for the position. Where rows differ by sample there is one for each
sample and place. A rotation of the first R channels alone takes in the Slice and Concat around it.

Heads may stand behind the positions too, x (B, S, N, H); that is the operator's form of three axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as oir

from qcompile.ir.graph import attribute, constant, drop_unused, origin, single_consumer
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.ir.pattern import Match, absorb, escape, replace
from qcompile.passes.rotary_rows import RotaryRows, Rotation
from qcompile.passes.tracker import Tracker

__all__ = ["FuseRotary"]


@dataclass(frozen=True)
class FuseRotary:
    """Recognises rotary embeddings of the main graph, each pair of channels half the width apart."""

    name: str = "fuse-rotary"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite every rotation whose shapes and tables are certain."""
        graph = state.model.graph
        rows = RotaryRows(graph, Tracker(graph))
        notes: list[Note] = []
        changed = 0
        for node in list(graph):
            found = next(_rotations(node), None)
            if found is None or node.graph is None:
                continue
            where = origin(node) or node.name or ""
            x, cos, sin = (found.values[n] for n in ("x", "cos", "sin"))
            one = Rotation(x, cos, sin, twice="halved" not in found.values)
            reason = escape(found) or rows.misfit(one)
            if reason is not None:
                notes.append(Note(where, f"not made RotaryEmbedding: {reason}"))
                continue
            new = rows.written(one, node)
            replace(found, new)
            graph.opset_imports.setdefault("com.microsoft", 1)
            notes.append(Note(where, f"{len(found.nodes)} nodes became RotaryEmbedding", True))
            changed += 1
            if new[-1].op_type == "RotaryEmbedding":
                _take_rest(new[-1], rows.tracker)
        if changed:
            drop_unused(state.model)
        return PassResult(changed, tuple(notes))


def _rotations(node: oir.Node) -> Iterator[Match]:
    if node.domain not in ("", "ai.onnx"):
        return
    if node.op_type == "Add":
        yield from _by_turned_halves(node)
    elif node.op_type == "Concat":
        yield from _by_halves(node)


def _by_turned_halves(node: oir.Node) -> Iterator[Match]:
    """``x * cos + Concat(-x2, x1) * sin``."""
    for plain, turned in (node.inputs, node.inputs[::-1]):
        for x, cos, product in _factors(plain):
            for both, sin, other in _factors(turned):
                join = both.producer()
                if join is None or join.op_type != "Concat" or len(join.inputs) != 2:
                    continue
                second, first = join.inputs
                minus = _negated(second)
                if minus is None or not _last_axis(join, x):
                    continue
                read, taken = minus
                if _is_half(read, x, 1) and _is_half(first, x, 0):
                    nodes = [node, product, other, join, *taken, *_halves(read, first)]
                    yield Match({"x": x, "cos": cos, "sin": sin}, tuple(dict.fromkeys(nodes)))


def _by_halves(node: oir.Node) -> Iterator[Match]:
    """``Concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin)``."""
    if len(node.inputs) != 2:
        return
    less, more = (None if v is None else v.producer() for v in node.inputs)
    if less is None or more is None or (less.op_type, more.op_type) != ("Sub", "Add"):
        return
    for first, cos, a in _factors(less.inputs[0]):
        for second, sin, b in _factors(less.inputs[1]):
            for one, other in (more.inputs, more.inputs[::-1]):
                c, d = _product_of(one, second, cos), _product_of(other, first, sin)
                source = _source(first)
                if c is None or d is None or source is None or not _last_axis(node, source):
                    continue
                if _is_half(first, source, 0) and _is_half(second, source, 1):
                    nodes = [node, less, more, a, b, c, d, *_halves(first, second)]
                    found = {"x": source, "cos": cos, "sin": sin, "halved": first}
                    yield Match(found, tuple(dict.fromkeys(nodes)))


def _factors(value: oir.Value | None) -> Iterator[tuple[oir.Value, oir.Value, oir.Node]]:
    """Both orders of the factors of a product."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
        return
    a, b = node.inputs
    if a is not None and b is not None:
        yield a, b, node
        yield b, a, node


def _product_of(value: oir.Value | None, x: oir.Value, factor: oir.Value) -> oir.Node | None:
    return next((n for a, b, n in _factors(value) if a is x and b is factor), None)


def _negated(value: oir.Value | None) -> tuple[oir.Value, list[oir.Node]] | None:
    """What a tensor is the negative of, and the node that says so."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type == "Neg" and node.inputs[0] is not None:
        return node.inputs[0], [node]
    for read, factor, product in _factors(value):
        stored = constant(factor)
        if stored is not None and stored.size == 1 and float(stored.reshape(-1)[0]) == -1.0:
            return read, [product]
    return None


def _last_axis(node: oir.Node, x: oir.Value) -> bool:
    axis, shape = attribute(node, "axis"), x.shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _halves(*values: oir.Value | None) -> list[oir.Node]:
    return [n for v in values if v is not None and (n := v.producer()) is not None]


def _source(value: oir.Value) -> oir.Value | None:
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type in ("Slice", "Split") else None


def _is_half(value: oir.Value | None, x: oir.Value, which: int) -> bool:
    """Whether ``value`` is the first (0) or second (1) half of ``x`` along its last axis."""
    shape = x.shape
    width = None if shape is None or not len(shape) else shape[-1]
    if value is None or not isinstance(width, int) or width % 2:
        return False
    half = width // 2
    return _piece(value, x) == (which * half, half + which * half)


def _piece(value: oir.Value, x: oir.Value) -> tuple[int, int] | None:
    """From where to where ``value`` is a piece of ``x`` along the last axis; None if it is not."""
    node, shape = value.producer(), x.shape
    if node is None or node.domain not in ("", "ai.onnx") or node.inputs[0] is not x:
        return None
    if shape is None or not isinstance(width := shape[-1], int):
        return None
    rank = len(shape)
    if node.op_type == "Split":
        return _split_piece(node, value.index() or 0, rank, width)
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    given = [constant(v) for v in node.inputs[1:]]
    if any(v is None or v.size != 1 for v in given):
        return None
    start, end, axis, *step = (int(v.reshape(-1)[0]) for v in given if v is not None)
    if axis % rank != rank - 1 or step not in ([], [1]):
        return None
    bounds = slice(start, end).indices(width)
    return bounds[0], bounds[1]


def _split_piece(node: oir.Node, index: int, rank: int, width: int) -> tuple[int, int] | None:
    axis = attribute(node, "axis", 0)
    if not isinstance(axis, int) or axis % rank != rank - 1:
        return None
    stored = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if stored is not None:
        sizes = [int(s) for s in stored.reshape(-1)]
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        return None
    else:
        many = len(node.outputs)
        sizes = [width // many] * many if width % many == 0 else []
    return (sum(sizes[:index]), sum(sizes[: index + 1])) if sizes else None


def _take_rest(rotary: oir.Node, tracker: Tracker) -> None:
    """Let the rotation of the first channels read and write all of them, the rest as they are."""
    part, out = rotary.inputs[0], rotary.outputs[0]
    join, source = single_consumer(out), None if part is None else _source(part)
    if part is None or source is None or join is None or join.op_type != "Concat":
        return
    rest = join.inputs[1] if len(join.inputs) == 2 and join.inputs[0] is out else None
    dims = tracker.dims(source)
    if rest is None or dims is None or len(dims) != 4 or not _last_axis(join, source):
        return
    taken, left, heads, width = _piece(part, source), _piece(rest, source), dims[1], dims[-1]
    if taken is None or left is None or not isinstance(heads, int):
        return
    if taken[0] != 0 or left != (taken[1], width) or single_consumer(rest) is not join:
        return
    rotary.replace_input_with(0, source)
    rotary.attributes.add(oir.AttrInt64("rotary_embedding_dim", taken[1]))
    rotary.attributes.add(oir.AttrInt64("num_heads", heads))
    absorb(rotary, [join])
    for value in (part, rest):
        node = value.producer()
        if node is not None and node.graph is not None and not any(o.uses() for o in node.outputs):
            node.graph.remove(node, safe=True)
