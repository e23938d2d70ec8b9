"""The invariants of a graph, checked after every pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.errors import PassError
from qcompile.ir.graph import attribute, constant, default_opset, forget_names, subgraphs_of

__all__ = ["verify", "verify_qdq", "verify_structure"]

_SINCE: dict[str, int] = {
    "FLOAT8E4M3FN": 19,
    "FLOAT8E4M3FNUZ": 19,
    "FLOAT8E5M2": 19,
    "FLOAT8E5M2FNUZ": 19,
    "UINT16": 21,
    "INT16": 21,
    "UINT4": 21,
    "INT4": 21,
    "FLOAT4E2M1": 23,
    "UINT2": 25,
    "INT2": 25,
}
"""integer dtype -> first opset whose Quantize/DequantizeLinear has it; uint8, int8, int32: 10."""


def verify(model: oir.Model) -> None:
    """Check the structure of the graph and what Quantize/DequantizeLinear require.

    Raises:
        PassError: an invariant is broken; names the node and the tensor.
    """
    verify_structure(model)
    verify_qdq(model)


def verify_structure(model: oir.Model) -> None:
    """Check that names are unique, every value read exists before it is read, and outputs exist.

    Raises:
        PassError: an invariant is broken; names the node and the tensor.
    """
    forget_names(model.graph)
    _verify_graph(model.graph, set())


def _verify_graph(graph: oir.Graph, outer: set[str]) -> None:
    known = set(outer)
    for value in [*graph.inputs, *graph.initializers.values()]:
        known.add(value.name or "")
    for node in graph:
        for read in node.inputs:
            if read is not None and read.name not in known:
                raise PassError(
                    f"node '{node.name}' ({node.op_type}) reads '{read.name}', which nothing "
                    "before it writes"
                )
        for _, inner in subgraphs_of(node):
            _verify_graph(inner, known)
        for value in node.outputs:
            name = value.name or ""
            if name and name in known:
                raise PassError(
                    f"node '{node.name}' ({node.op_type}) writes '{name}' a second time"
                )
            known.add(name)
    for value in graph.outputs:
        if value.name not in known:
            raise PassError(f"graph output '{value.name}' is written by nothing")


def verify_qdq(model: oir.Model) -> None:
    """Check every QuantizeLinear and DequantizeLinear against the operator's definition.

    Constant scales are positive and finite and have as many elements as the axis; zero points
    have the scale's shape and the integer side's dtype (0 for int32); the opset has the form.
    Scales that the graph computes are left to the runtime.

    Raises:
        PassError: a rule is broken; names the node and the tensor.
    """
    opset = default_opset(model)
    for node in model.graph.all_nodes():
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            for fault in _qdq_faults(node, opset):
                raise PassError(f"node '{node.name}' ({node.op_type}): {fault}")


def _qdq_faults(node: oir.Node, opset: int) -> Iterator[str]:
    inputs = list(node.inputs)
    if len(inputs) < 2 or inputs[0] is None or inputs[1] is None:
        yield "has no scale"
        return
    x, scale_value = inputs[0], inputs[1]
    zero_value = inputs[2] if len(inputs) > 2 else None
    standard = node.domain == ""
    scale = constant(scale_value)
    if scale is not None:
        as_float = scale.astype(np.float32)
        if not bool(np.all(np.isfinite(as_float) & (as_float > 0))):
            yield f"scale '{scale_value.name}' is not positive and finite"
        yield from _shape_faults(node, x, scale.shape, opset)
        if zero_value is not None and zero_value.shape is not None:
            yield from _zero_shape_faults(zero_value, scale)
    yield from _dtype_faults(node, zero_value, opset if standard else None)


def _zero_shape_faults(zero: oir.Value, scale: npt.NDArray[np.generic]) -> Iterator[str]:
    shape = zero.shape
    if shape is None or not all(isinstance(d, int) for d in shape):
        return
    found = tuple(int(d) for d in shape.numpy())
    if found != scale.shape and not (scale.size == 1 and int(np.prod(found)) == 1):
        yield f"zero point '{zero.name}' has shape {found}, its scale {scale.shape}"


def _shape_faults(
    node: oir.Node, x: oir.Value, scale: tuple[int, ...], opset: int
) -> Iterator[str]:
    count = int(np.prod(scale))
    block = attribute(node, "block_size", 0)
    if count == 1 and not block:
        return
    if opset < 13 and node.domain == "":
        yield f"has {count} scales, which needs opset 13 (the model has {opset})"
    if block and opset < 21 and node.domain == "":
        yield f"has blocks, which need opset 21 (the model has {opset})"
    axis = attribute(node, "axis", 1)
    rank = None if x.shape is None else len(x.shape)
    if rank is None or not isinstance(axis, int):
        return
    if not -rank <= axis < rank:
        yield f"axis {axis} is out of range for '{x.name}' of rank {rank}"
        return
    length = x.shape[axis] if x.shape is not None else None
    if not isinstance(length, int):
        return
    if isinstance(block, int) and block:
        wanted = -(-length // block)
        if len(scale) != rank or scale[axis] != wanted:
            yield (
                f"scales of shape {scale} do not fit '{x.name}': {length} elements in blocks of "
                f"{block} along axis {axis} need {wanted}"
            )
    elif len(scale) != 1 or count != length:
        yield (
            f"scales of shape {scale} do not fit '{x.name}', which has {length} channels along "
            f"axis {axis}"
        )


def _dtype_faults(node: oir.Node, zero: oir.Value | None, opset: int | None) -> Iterator[str]:
    integer = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    dtype = integer.dtype if integer is not None else None
    zero_dtype = zero.dtype if zero is not None else None
    if dtype is None:
        dtype = zero_dtype
    if integer is not None and dtype and zero is not None and zero_dtype not in {None, dtype}:
        yield (
            f"zero point '{zero.name}' is {zero_dtype.name if zero_dtype else '?'}, "
            f"'{integer.name}' is {dtype.name}"
        )
    if dtype is None:
        return
    needed = _SINCE.get(dtype.name, 10)
    if opset is not None and opset < needed:
        yield f"{dtype.name} needs opset {needed} (the model has {opset})"
    if dtype == oir.DataType.INT32 and zero is not None:
        array = constant(zero)
        if array is not None and bool(np.any(array != 0)):
            yield f"zero point '{zero.name}' of an int32 tensor is not 0"
