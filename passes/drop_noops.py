"""Drop nodes that hand on their input unchanged, and chains that undo themselves.

Before: ``Identity(x)``, ``Dropout(x)``, ``Cast`` to the type it has, ``Add 0``, ``Mul 1``, ``Pow 1``;
``Reshape``, ``Expand``, ``Tile``, ``Slice``, ``Pad`` and ``Resize`` that keep the shape; ``Transpose`` with
the identity permutation; ``Concat`` and ``Sum`` of one; ``Transpose(Transpose(x))``, ``Reshape(Reshape(x))``,
``Cast(Cast(x))`` where the first loses nothing; Relu of what is not negative.
After: ``x``, or the outer node alone.

``Add 0`` counts only where it neither broadcasts ``x`` nor changes its type. ``-0.0`` may become ``0.0``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant, drop_unused, is_graph_output, origin
from qcompile.ir.manager import CompileState, Note, PassResult

__all__ = ["DropNoops"]

DEFAULT = ("", "ai.onnx")
BEYOND = 10**9
"""Exporters write "to the end" as a number no smaller than this."""

INTEGER_BITS = {
    oir.DataType.BOOL: 1,
    oir.DataType.UINT8: 8,
    oir.DataType.INT8: 7,
    oir.DataType.UINT16: 16,
    oir.DataType.INT16: 15,
    oir.DataType.UINT32: 32,
    oir.DataType.INT32: 31,
    oir.DataType.INT64: 63,
}


@dataclass(frozen=True)
class DropNoops:
    """Removes nodes that change nothing."""

    name: str = "drop-noops"

    def run(self, state: CompileState) -> PassResult:
        """Bypass until nothing changes."""
        graph = state.model.graph
        notes: list[Note] = []
        changed = 0
        again = True
        while again:
            again = False
            for node in list(graph):
                if node.graph is None or node.domain not in DEFAULT:
                    continue
                shortcut = _shortcut(node)
                if shortcut is not None and _bypass(graph, node, shortcut):
                    notes.append(
                        Note(origin(node) or node.name or "", f"{node.op_type} dropped", True)
                    )
                    again, changed = True, changed + 1
                elif node.graph is not None and _skip_inner(state, node):
                    notes.append(Note(origin(node) or node.name or "", "inner node dropped", True))
                    again, changed = True, changed + 1
        if changed:
            drop_unused(state.model)
        return PassResult(changed, tuple(notes))


def _shortcut(node: oir.Node) -> oir.Value | None:
    """The input that the node's first output equals, else None."""
    if not node.inputs or node.inputs[0] is None:
        return None
    if any(v.uses() or is_graph_output(v) for v in node.outputs[1:]):
        return None
    rule = RULES.get(node.op_type)
    return None if rule is None else rule(node)


def _bypass(graph: oir.Graph, node: oir.Node, source: oir.Value) -> bool:
    """Let everyone read ``source`` instead; False where an output's name forbids it."""
    out = node.outputs[0]
    if is_graph_output(out):
        # The output's name must survive: only a producer that may take it over can be renamed.
        producer = source.producer()
        if producer is None or is_graph_output(source) or producer.graph is not graph:
            return False
        name = out.name
        source.shape = out.shape if source.shape is None else source.shape
        out.replace_all_uses_with(source, replace_graph_outputs=True)
        out.name = None
        source.name = name
    else:
        if source.shape is None:
            source.shape = out.shape
        out.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    return True


def _first(node: oir.Node) -> oir.Value | None:
    return node.inputs[0]


def _neutral(value: float, commutes: bool) -> Callable[[oir.Node], oir.Value | None]:
    def rule(node: oir.Node) -> oir.Value | None:
        pairs = [(node.inputs[0], node.inputs[1])]
        if commutes:
            pairs.append((node.inputs[1], node.inputs[0]))
        for x, operand in pairs:
            array = constant(operand)
            if array is None or x is None or array.size == 0 or array.size > 1 << 20:
                continue
            if np.all(array == value) and _broadcasts_into(array.shape, x):
                return x
        return None

    return rule


def _broadcasts_into(shape: tuple[int, ...], x: oir.Value) -> bool:
    """Whether an operand of ``shape`` leaves the shape of ``x`` as it is."""
    if all(d == 1 for d in shape) and len(shape) == 0:
        return True
    if x.shape is None:
        producer = x.producer()  # the output of these has at least three dimensions
        return (
            len(shape) <= 3
            and all(d == 1 for d in shape)
            and producer is not None
            and producer.op_type in ("Conv", "ConvTranspose", "BatchNormalization")
        )
    if len(shape) > len(x.shape):
        return False
    tail = list(x.shape)[len(x.shape) - len(shape) :]
    return all(want in (1, have) for want, have in zip(shape, tail, strict=True))


def _same_shape(node: oir.Node) -> oir.Value | None:
    """The input, if in- and output have the same fully comparable shape (symbols count once)."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None or len(x.shape) != len(y.shape):
        return None
    unknown = 0
    for have, want in zip(x.shape, y.shape, strict=True):
        if isinstance(have, int) and isinstance(want, int):
            if have != want:
                return None
        elif not _same_symbol(have, want):
            unknown += 1
    # One dimension may stay unknown: the number of elements fixes it.
    static = all(d != 0 for d in x.shape)
    return x if unknown == 0 or (unknown == 1 and node.op_type == "Reshape" and static) else None


def _same_symbol(a: object, b: object) -> bool:
    left, right = getattr(a, "value", None), getattr(b, "value", None)
    return left is not None and left == right


def _cast(node: oir.Node) -> oir.Value | None:
    x = node.inputs[0]
    to = node.attributes.get_int("to", 0)
    return x if x is not None and x.dtype is not None and int(x.dtype) == to else None


def _transpose(node: oir.Node) -> oir.Value | None:
    perm = attribute(node, "perm")
    if not isinstance(perm, tuple):
        return None
    return node.inputs[0] if perm == tuple(range(len(perm))) else None


def _only_input(node: oir.Node) -> oir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _dropout(node: oir.Node) -> oir.Value | None:
    training = (
        constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    )
    if len(node.inputs) > 2 and node.inputs[2] is not None and (training is None or training.any()):
        return None
    return node.inputs[0]


def _pad(node: oir.Node) -> oir.Value | None:
    pads: object = attribute(node, "pads")
    if pads is None and len(node.inputs) > 1:
        pads = constant(node.inputs[1])
    return node.inputs[0] if pads is not None and not np.any(np.asarray(pads)) else None


def _slice(node: oir.Node) -> oir.Value | None:
    """A slice that starts at 0, ends beyond the end, and steps by 1."""
    if len(node.inputs) < 3:
        return None
    x = node.inputs[0]
    starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    steps = (
        constant(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    )
    if starts is None or ends is None or np.any(starts):
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None and axes is None:
        return None
    if (
        len(node.inputs) > 4
        and node.inputs[4] is not None
        and (steps is None or np.any(steps != 1))
    ):
        return None
    if axes is None:
        axes = np.arange(starts.size)
    for end, axis in zip(ends.reshape(-1), axes.reshape(-1), strict=True):
        if int(end) >= BEYOND:
            continue
        known = None if x is None or x.shape is None else x.shape[int(axis)]
        if not isinstance(known, int) or int(end) < known:
            return None
    return x


def _resize(node: oir.Node) -> oir.Value | None:
    scales = constant(node.inputs[-1]) if len(node.inputs) in (2, 3) else None
    if scales is None or scales.size == 0 or scales.dtype.kind != "f" or np.any(scales != 1):
        return None
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    return None if mode == "tf_crop_and_resize" else node.inputs[0]


def _relu(node: oir.Node) -> oir.Value | None:
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    if producer is None or producer.op_type not in (
        "Relu",
        "Sigmoid",
        "HardSigmoid",
        "Softmax",
        "Abs",
    ):
        return None
    return source


RULES: dict[str, Callable[[oir.Node], oir.Value | None]] = {
    "Identity": _first,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Add": _neutral(0.0, commutes=True),
    "Sub": _neutral(0.0, commutes=False),
    "Mul": _neutral(1.0, commutes=True),
    "Div": _neutral(1.0, commutes=False),
    "Pow": _neutral(1.0, commutes=False),
    "Concat": _only_input,
    "Sum": _only_input,
    "Max": _only_input,
    "Min": _only_input,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Squeeze": _same_shape,
    "Unsqueeze": _same_shape,
    "Expand": _same_shape,
    "Tile": _same_shape,
    "Pad": _pad,
    "Slice": _slice,
    "Resize": _resize,
    "Relu": _relu,
}


def _skip_inner(state: CompileState, node: oir.Node) -> bool:
    """Let ``node`` read what its producer read, where the pair equals the outer node alone."""
    source = node.inputs[0] if node.inputs else None
    inner = None if source is None else source.producer()
    if inner is None or inner.graph is not state.model.graph or inner.domain not in DEFAULT:
        return False
    origin_value = inner.inputs[0] if inner.inputs else None
    if origin_value is None:
        return False
    if node.op_type == "Reshape" and inner.op_type in (
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
    ):
        # A target without 0 (copy) does not look at the shape in between.
        target = constant(node.inputs[1])
        if target is None or (np.any(target == 0) and not node.attributes.get_int("allowzero", 0)):
            return False
        node.replace_input_with(0, origin_value)
        return True
    if node.op_type == "Transpose" and inner.op_type == "Transpose":
        first, second = attribute(inner, "perm"), attribute(node, "perm")
        if not isinstance(first, tuple) or not isinstance(second, tuple):
            return False
        combined = [int(first[int(i)]) for i in second]
        node.attributes["perm"] = oir.AttrInt64s("perm", combined)
        node.replace_input_with(0, origin_value)
        return True
    if node.op_type == "Cast" and inner.op_type == "Cast" and origin_value.dtype is not None:
        middle = oir.DataType(inner.attributes.get_int("to", 0))
        if origin_value.dtype not in INTEGER_BITS or middle not in INTEGER_BITS:
            return False
        if INTEGER_BITS[origin_value.dtype] > INTEGER_BITS[middle]:
            return False
        node.replace_input_with(0, origin_value)
        return True
    return False
