"""Split a tensor before it is transposed, so that an engine's builder keeps the layer before it whole.

Before:  qkv -> Transpose(p) -> Split(axis a) -> q, k, v        (or a Gather for each)
After:   qkv -> Split(axis p[a]) -> Transpose(p) -> q;  -> Transpose(p) -> k;  -> Transpose(p) -> v

With the Transpose first, TensorRT for RTX 1.7 moves the slices up into the weight of the MatMul that made
``qkv`` and then has three kernels that quantize where one would do (a small ViT: 50 kernels, not 42).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import (
    add_initializer,
    attribute,
    constant,
    default_opset,
    fresh_name,
    is_graph_output,
    origin,
    origins,
    set_origin,
    single_consumer,
)
from qcompile.ir.manager import CompileState, Note, PassResult

__all__ = ["SplitFirst"]

_SIZES_OPSET = 13
"""First opset whose Split and Squeeze take sizes and axes as inputs."""


@dataclass(frozen=True)
class SplitFirst:
    """Swaps a Transpose and the Split, or the Gathers of all its slices, behind it."""

    name: str = "split-first"

    def run(self, state: CompileState) -> PassResult:
        """Look at each Transpose of the main graph once."""
        notes: list[Note] = []
        if default_opset(state.model) < _SIZES_OPSET:
            return PassResult(0)
        for node in list(state.model.graph):
            perm = attribute(node, "perm")
            if node.op_type != "Transpose" or node.domain != "" or not isinstance(perm, tuple):
                continue
            axes = cast(tuple[int, ...], perm)
            split = _split_behind(node) or _gathers_as_split(state.model.graph, node, axes)
            if split is None:
                continue
            _swap(state.model.graph, node, split, axes)
            notes.append(
                Note(origin(split) or split.name or "", "splits before the Transpose", True)
            )
        return PassResult(len(notes), tuple(notes))


def _split_behind(node: oir.Node) -> oir.Node | None:
    """The Split that alone reads a Transpose."""
    split = single_consumer(node.outputs[0])
    if split is None or split.op_type != "Split" or split.domain != "":
        return None
    same = split.graph is node.graph
    return split if same and not any(is_graph_output(v) for v in split.outputs) else None


def _gathers_as_split(graph: oir.Graph, node: oir.Node, perm: tuple[int, ...]) -> oir.Node | None:
    """A Split and Squeezes in place of the Gathers of every slice along one axis."""
    whole = node.outputs[0]
    readers = [use.node for use in whole.uses()]
    if len(readers) < 2 or is_graph_output(whole) or whole.shape is None:
        return None
    found: dict[int, oir.Node] = {}
    axes: set[int] = set()
    for reader in readers:
        index = constant(reader.inputs[1]) if len(reader.inputs) > 1 else None
        gathers = reader.op_type == "Gather" and reader.domain == "" and reader.graph is graph
        if not gathers or index is None or index.ndim or reader.inputs[0] is not whole:
            return None
        axes.add(cast(int, attribute(reader, "axis", 0)) % len(perm))
        found[int(index)] = reader
    axis = next(iter(axes))
    if len(axes) > 1 or whole.shape[axis] != len(readers) or set(found) != set(range(len(readers))):
        return None
    sizes = add_initializer(graph, f"{whole.name}_sizes", np.ones(len(readers), np.int64))
    at = add_initializer(graph, f"{whole.name}_axis", np.array([axis], np.int64))
    parts = [_like(graph, whole, f"{whole.name}_{i}", axis) for i in range(len(readers))]
    split = oir.node(
        "Split",
        [whole, sizes],
        {"axis": axis},
        outputs=parts,
        name=fresh_name(graph, f"{node.name}_Split"),
    )
    graph.insert_after(node, split)
    for place, part in enumerate(parts):
        gather = found[place]
        out = gather.outputs[0]
        squeeze = oir.node("Squeeze", [part, at], name=gather.name)
        set_origin(squeeze, origins(gather))
        new = squeeze.outputs[0]
        new.type, new.shape = out.type, out.shape
        graph.insert_after(gather, squeeze)
        name = out.name
        out.name = fresh_name(graph, f"{name}_gathered")
        new.name = name
        out.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(gather, safe=True)
    return split


def _like(graph: oir.Graph, value: oir.Value, base: str, axis: int) -> oir.Value:
    """A value of the same type, of extent 1 along ``axis``."""
    dims = (
        None if value.shape is None else [1 if i == axis else d for i, d in enumerate(value.shape)]
    )
    shape = None if dims is None else oir.Shape(dims)
    return oir.Value(name=fresh_name(graph, base), type=value.type, shape=shape)


def _swap(graph: oir.Graph, node: oir.Node, split: oir.Node, perm: tuple[int, ...]) -> None:
    axis = cast(int, attribute(split, "axis", 0)) % len(perm)
    split.attributes["axis"] = oir.AttrInt64("axis", perm[axis])
    split.replace_input_with(0, node.inputs[0])
    for index, out in enumerate(split.outputs):
        name, shape = out.name, out.shape
        new = oir.Value(type=out.type, shape=shape)
        out.replace_all_uses_with(new)
        out.name = fresh_name(graph, f"{name}_split")
        new.name = name
        # Axis i behind the Transpose is axis perm[i] before it.
        if shape is not None:
            before = {perm[i]: d for i, d in enumerate(shape)}
            out.shape = oir.Shape([before[i] for i in range(len(perm))])
        turn = oir.node(
            "Transpose",
            [out],
            {"perm": perm},
            outputs=[new],
            name=node.name if index == 0 else f"{node.name}/{name}",
        )
        if index == 0:
            set_origin(turn, origins(node))
        graph.insert_after(split, turn)
    graph.remove(node, safe=True)
