"""What patterns with reductions share: which axis they reduce, and whether their result keeps it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as oir

from qcompile.ir.graph import attribute, constant
from qcompile.ir.pattern import Match, Term, alt, const, op

__all__ = ["keeps_axis", "kept", "reduced_axis", "reduction"]


def reduction(op_types: str, inner: Term, name: str) -> Term:
    """A reduction with its axes as attribute or input."""
    return alt(op(op_types, inner, name=name), op(op_types, inner, const(), name=name))


def kept(term: Term) -> Term:
    """``term``, or what puts back the axis that a reduction dropped."""
    return alt(term, op("Reshape|Unsqueeze", term, const()), op("Unsqueeze", term))


def reduced_axis(found: Match, x: oir.Value, names: Sequence[str]) -> int | None:
    """The negative axis of ``x`` that each of the named reductions reduces alone."""
    axes: set[int] = set()
    for node in (found.named[n] for n in names if n in found.named):
        stated: object = attribute(node, "axes")
        if len(node.inputs) > 1:
            stored = constant(node.inputs[1])
            stated = None if stored is None else tuple(int(a) for a in stored.reshape(-1))
        if not isinstance(stated, tuple) or len(stated) != 1:
            return None
        axis = int(stated[0])
        if axis >= 0:
            if x.shape is None:
                return None
            axis -= len(x.shape)
        axes.add(axis)
    axis = axes.pop() if len(axes) == 1 else 0
    return None if axis == 0 or (axis != -1 and x.shape is None) else axis


def keeps_axis(
    found: Match,
    node: oir.Node,
    whole: oir.Value | None,
    x: oir.Value,
    axis: int,
    names: Sequence[str],
) -> bool:
    """Whether the reduced operand of ``node`` has size 1 along the axis and else the shape of x.

    Args:
        found: the match, with the reductions named.
        node: a binary node of a whole tensor and a reduced one.
        whole: the operand that is not reduced.
        x: what was reduced.
        axis: negative.
        names: of the reductions.
    """
    reduced = next((v for v in node.inputs if v is not whole and constant(v) is None), None)
    inner = None if reduced is None else reduced.producer()
    if inner is None or inner.op_type not in ("Reshape", "Unsqueeze"):
        keep = [found.named[n].attributes.get_int("keepdims", 1) for n in names if n in found.named]
        return all(keep)
    shape = None if reduced is None else reduced.shape
    if shape is None or x.shape is None or len(shape) != len(x.shape) or shape[axis] != 1:
        return False
    pairs = [
        (a, b)
        for i, (a, b) in enumerate(zip(shape, x.shape, strict=True))
        if i != axis + len(shape)
    ]
    known = [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
    # The number of elements settles one dimension that is not known.
    return len(pairs) - len(known) <= 1 and all(a == b for a, b in known)
