"""Compute shape arithmetic ahead of time, for tensors with dynamic dimensions too.

Before: ``Reshape(y, Concat(Shape(x)[0], Shape(x)[1], 12, Shape(x)[2] / 12))``, some ten nodes
After:  ``Reshape(y, [0, 0, 12, 32])``: 0 copies a dimension of y that is the same number, one dimension
may be -1, and what is known is written. An Expand to the shape that its input has is dropped, another
gets a constant target in which 1 keeps a size.

Also writes what it learned (ranks, fixed and equal dimensions) on the tensors, for the passes behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import (
    add_initializer,
    constant,
    drop_unused,
    is_graph_output,
    origin,
    replace_value,
)
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.passes.dims import Dim, Dims
from qcompile.passes.tracker import Tracker

__all__ = ["FoldShapes"]


@dataclass(frozen=True)
class FoldShapes:
    """Replaces shape arithmetic of the main graph by constants."""

    name: str = "fold-shapes"

    def run(self, state: CompileState) -> PassResult:
        """One walk in graph order."""
        graph = state.model.graph
        tracker = Tracker(graph)
        notes: list[Note] = []
        for node in list(graph):
            if node.domain not in ("", "ai.onnx"):
                continue
            text = (
                _reshape(graph, tracker, node)
                or _expand(graph, tracker, node)
                or _known(graph, tracker, node)
            )
            if text is not None:
                notes.append(Note(origin(node) or node.name or "", text, True))
        _write_shapes(graph, tracker)
        if notes:
            drop_unused(state.model)
        return PassResult(len(notes), tuple(notes))


def _reshape(graph: oir.Graph, tracker: Tracker, node: oir.Node) -> str | None:
    if node.op_type != "Reshape" or constant(node.inputs[1]) is not None:
        return None
    dims, target = tracker.dims(node.inputs[0]), tracker.elements(node.inputs[1])
    if target is None:
        return None
    static = _static_target(dims, target, bool(node.attributes.get_int("allowzero", 0)))
    if static is None:
        return None
    name = f"{node.outputs[0].name}_shape"
    node.replace_input_with(1, add_initializer(graph, name, np.array(static, np.int64)))
    node.attributes.pop("allowzero", None)
    return f"reshapes to {static}"


def _static_target(dims: Dims | None, target: Dims, allow_zero: bool) -> list[int] | None:
    """The target in ints, 0 for a dimension to copy and -1 for one to compute; None if impossible."""
    if allow_zero and 0 in target:
        return None
    result: list[int] = []
    for i, want in enumerate(target):
        if isinstance(want, int):
            result.append(want)
        elif dims is not None and i < len(dims) and dims[i] == want:
            result.append(0)
        elif -1 not in result and -1 not in target:
            result.append(-1)
        else:
            return None
    return result


def _expand(graph: oir.Graph, tracker: Tracker, node: oir.Node) -> str | None:
    """Bypass an Expand that changes nothing; else let it have a constant target, 1 to keep a size."""
    if node.op_type != "Expand":
        return None
    dims, target = tracker.dims(node.inputs[0]), tracker.elements(node.inputs[1])
    source = node.inputs[0]
    if source is None or dims is None or target is None:
        return None
    tail: Dims = dims[len(dims) - len(target) :] if len(target) <= len(dims) else ()
    if tail and all(_stays(have, want) for have, want in zip(tail, target, strict=True)):
        if is_graph_output(node.outputs[0]) or not node.outputs[0].uses():
            return None
        replace_value(node.outputs[0], source)
        return "Expand to the shape it has dropped"
    if constant(node.inputs[1]) is not None:
        return None
    aligned = (1,) * (len(target) - len(dims)) + dims[max(0, len(dims) - len(target)) :]
    static = [1 if have == want else want for have, want in zip(aligned, target, strict=True)]
    numbers = [n for n in static if isinstance(n, int)]
    if len(numbers) < len(static):
        return None
    name = f"{node.outputs[0].name}_shape"
    node.replace_input_with(1, add_initializer(graph, name, np.array(numbers, np.int64)))
    return f"expands to {numbers}"


def _stays(have: Dim, want: Dim) -> bool:
    return want in (1, have)


def _known(graph: oir.Graph, tracker: Tracker, node: oir.Node) -> str | None:
    """Let readers of an integer tensor with known elements read a constant."""
    out = node.outputs[0]
    elements = tracker.elements(out) if len(node.outputs) == 1 else None
    if elements is None or is_graph_output(out) or not out.uses() or constant(out) is not None:
        return None
    dims = tracker.dims(out)
    if dims is None or out.dtype not in (oir.DataType.INT64, oir.DataType.INT32):
        return None
    numbers = [e for e in elements if isinstance(e, int)]
    if len(numbers) != len(elements) or (dims != () and dims != (len(elements),)):
        return None
    array = np.array(numbers, out.dtype.numpy()).reshape([int(d) for d in dims])
    replace_value(out, add_initializer(graph, f"{out.name}_known", array))
    return f"is always {numbers}"


def _write_shapes(graph: oir.Graph, tracker: Tracker) -> None:
    """Add ranks and fixed dimensions to the tensors that lack them.

    Equal symbols stay out of the model: ONNX Runtime would take them as leave to fuse Add and
    LayerNormalization into SkipLayerNormalization, whose CPU kernel is seven times slower.
    """
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            dims = tracker.dims(value)
            if dims is None or value in outputs:
                continue
            stated = value.shape
            if stated is None:
                value.shape = oir.Shape([d if isinstance(d, int) else None for d in dims])
            elif len(stated) == len(dims) and not stated.frozen:
                for i, d in enumerate(dims):
                    if isinstance(d, int) and not isinstance(stated[i], int):
                        stated[i] = d
