"""Read constants that come quantized as the float numbers that they stand for.

Before:  w (int8) -> DequantizeLinear -> Conv        or  w (float) -> Q -> DQ -> Conv
After:   dequantized w (float) -> Conv               (exactly the same numbers)

Only so can the other passes fold a batch norm into a layer or recognise its weight. The integers and
scales are remembered in ``state.brought`` for each reader; ``KeepWeights`` gives them back when all
folds are done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.affine import QParams, quantize
from qcompile.ir.given import BroughtWeight
from qcompile.ir.graph import attribute, constant, drop_unused, is_graph_output, origin
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.ir.spec import PER_TENSOR, QuantSpec, per_axis

__all__ = ["LiftWeights", "parameters_of"]

MOVES = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Cast"})
"""What may stand between a constant and the layer that reads it."""

STORED = ("int8", "uint8", "int32")
"""Types whose constants are read; 4-bit and blocked weights stay as they are."""


@dataclass(frozen=True)
class LiftWeights:
    """Replaces dequantized constants of the main graph by float ones."""

    name: str = "lift-weights"

    def run(self, state: CompileState) -> PassResult:
        """Fill ``state.brought``: (origin of the reader, input) -> integers and scales."""
        graph = state.model.graph
        notes: list[Note] = []
        changed = 0
        for node in list(graph):
            if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
                continue
            if is_graph_output(node.outputs[0]):
                continue
            found = _brought(node)
            if isinstance(found, str):
                notes.append(Note(origin(node) or node.name or "", found))
            if not isinstance(found, BroughtWeight):
                continue
            if found.dtype != "int32":
                for reader, index in _readers(node.outputs[0]):
                    state.brought[reader, index] = found
            _become_float(graph, node, found)
            changed += 1
        if changed:
            drop_unused(state.model)
        return PassResult(changed, tuple(notes))


def parameters_of(
    node: oir.Node,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.generic] | None, int | None] | str:
    """Scale, zero point (None: 0) and axis of a Q or DQ node, or why they cannot be read."""
    scale = constant(node.inputs[1])
    if scale is None:
        return "its scale is computed at run time"
    if scale.dtype != np.float32:
        return f"its scale is {scale.dtype}; only float32 is read"
    if attribute(node, "block_size", 0):
        return "it has a scale for each block"
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant(given)
    if given is not None and zero is None:
        return "its zero point is computed at run time"
    single = np.asarray(scale, np.float32)
    if scale.size == 1:
        return single.reshape(()), None if zero is None else zero.reshape(()), None
    axis = attribute(node, "axis", 1)
    return single, zero, axis if isinstance(axis, int) else 1


def _brought(node: oir.Node) -> BroughtWeight | str | None:
    """The constant behind a DequantizeLinear; None where it dequantizes an activation."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    stored = constant(source)
    real = None
    if stored is None and producer is not None and producer.op_type == "QuantizeLinear":
        real = constant(producer.inputs[0])
        if real is None:
            return None
    elif stored is None:
        return None
    after = parameters_of(node)
    if isinstance(after, str):
        return f"stays as it is: {after}"
    if real is not None and producer is not None:
        before = parameters_of(producer)
        if isinstance(before, str):
            return f"stays as it is: {before}"
        if not _equal(before, after):
            return "stays as it is: it dequantizes with other parameters than it was quantized with"
        stored = _quantized(real, before)
    if stored is None or stored.dtype.name not in STORED:
        kind = "a constant" if stored is None else stored.dtype.name
        return f"stays as it is: it is {kind}; {', '.join(STORED)} are read"
    scale, zero, axis = after
    shape = stored.shape
    if axis is not None and (not shape or shape[axis % len(shape)] != scale.size):
        return "stays as it is: its scales do not fit its shape"
    axis = None if axis is None else axis % len(shape)
    if stored.dtype == np.int32 and (zero is None or not zero.any()):
        return BroughtWeight(stored.astype(np.int32), scale, axis, "int32")
    wide = stored.astype(np.int32)
    if zero is not None:
        wide = wide - _shaped(zero, axis, stored).astype(np.int32)
    return BroughtWeight(wide, scale, axis, stored.dtype.name)


def _equal(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    def plain(zero: object) -> object:
        return np.zeros(1) if zero is None else np.asarray(zero)

    return (
        np.array_equal(np.asarray(a[0]), np.asarray(b[0]))
        and bool(np.all(plain(a[1]) == plain(b[1])))
        and a[2] == b[2]
    )


def _quantized(
    real: npt.NDArray[np.generic],
    parameters: tuple[npt.NDArray[np.float32], npt.NDArray[np.generic] | None, int | None],
) -> npt.NDArray[np.generic] | None:
    scale, zero, axis = parameters
    zero = np.zeros(scale.shape, np.uint8) if zero is None else zero
    granularity = PER_TENSOR if axis is None else per_axis(axis)
    if zero.dtype == np.int8:
        spec = QuantSpec("int8", symmetric=False, granularity=granularity)
    elif zero.dtype == np.uint8:
        spec = QuantSpec("uint8", symmetric=False, granularity=granularity)
    else:
        return None
    return quantize(real, QParams(scale, zero, spec)) if real.dtype == np.float32 else None


def _shaped(
    array: npt.NDArray[np.generic] | np.generic, axis: int | None, like: npt.NDArray[np.generic]
) -> npt.NDArray[np.generic]:
    found = np.asarray(array)
    if axis is None or found.ndim == 0:
        return found
    return found.reshape((-1,) + (1,) * (like.ndim - 1 - axis))


def _readers(value: oir.Value, depth: int = 4) -> list[tuple[str, int]]:
    """(origin, input) of the layers that read a constant, maybe through moves."""
    found: list[tuple[str, int]] = []
    for use in value.uses():
        node = use.node
        if node.op_type in MOVES and node.domain in ("", "ai.onnx") and use.idx == 0 and depth:
            found += _readers(node.outputs[0], depth - 1)
        else:
            found.append((origin(node) or node.name or "", use.idx))
    return found


def _become_float(graph: oir.Graph, node: oir.Node, found: BroughtWeight) -> None:
    old = node.outputs[0]
    name = str(old.name)
    scale = _shaped(found.scale, found.axis, found.values).astype(np.float32)
    array = np.asarray(found.values.astype(np.float32) * scale, np.float32)
    new = oir.Value(
        name=name,
        type=oir.TensorType(oir.DataType.FLOAT),
        shape=oir.Shape(array.shape),
        const_value=oir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name),
    )
    old.replace_all_uses_with(new)
    old.name = None
    graph.register_initializer(new)
    graph.remove(node, safe=True)
