"""Shape inference that degrades: a tensor whose shape cannot be inferred keeps what it has.

ONNX's inference runs on a copy without weights. It starts from the inputs alone, because stated
shapes are often stale: exporters trace one batch, and a batch of 1 noted inside a model whose
input leaves the batch free would freeze it. What cannot be inferred falls back on what is stated.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as oir

from qcompile.ir.graph import subgraphs_of
from qcompile.ir.notes import Note
from qcompile.ir.read import for_each_tensor
from qcompile.ir.shape_values import complete_shapes

__all__ = ["infer_shapes"]

_SMALL = 1024
"""Bytes up to which a constant stays in the copy: it may be a shape."""

_ROUNDS = 4


def infer_shapes(model: oir.Model) -> list[Note]:
    """Fill in types and shapes of all values; graph inputs and outputs stay as declared."""
    notes: list[Note] = []
    stated = {v: v.shape for g in _graphs(model.graph) for n in g for v in n.outputs}
    outputs = {v for g in _graphs(model.graph) for v in g.outputs}
    free = {d.value for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int)}
    for value in stated:
        if value not in outputs:
            value.shape = None
    failure = _infer(model, with_outputs=False)
    if failure:
        notes.append(Note("", f"shapes could not be inferred by ONNX: {failure}"))
    thawed = 0
    pinned = set(outputs)
    for value, shape in stated.items():
        if shape is not None and value not in outputs:
            merged, changed = _merge(shape, value.shape, free - {None})
            value.shape, thawed = merged, thawed + changed
            pinned.add(value)
    for _ in range(_ROUNDS):
        completed = complete_shapes(model.graph)
        if not completed:
            break
        pinned |= completed
        for value in stated.keys() - pinned:
            value.shape = None
        _infer(model, with_outputs=True)
    if thawed:
        text = "stated shapes fixed a dimension that the inputs leave free; taken as free"
        notes.append(Note("", f"{thawed} {text}", True))
    unknown = [v.name for v in stated if v.shape is None and v.name and _is_tensor(v)]
    if unknown:
        some = ", ".join(str(n) for n in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        notes.append(Note("", f"{len(unknown)} of {len(stated)} shapes are unknown: {some}"))
    return notes


def _graphs(graph: oir.Graph) -> Iterator[oir.Graph]:
    """A graph and those within, in the order of ``_proto_graphs``."""
    yield graph
    for node in graph:
        for _, inner in subgraphs_of(node):
            yield from _graphs(inner)


def _proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                yield from _proto_graphs(attr.g)
            elif attr.type == onnx.AttributeProto.GRAPHS:
                for one in attr.graphs:
                    yield from _proto_graphs(one)


def _is_tensor(value: oir.Value) -> bool:
    return value.type is None or isinstance(value.type, oir.TensorType)


def _infer(model: oir.Model, with_outputs: bool) -> str:
    """Fill in what is missing; returns why ONNX failed, "" if it did not."""
    proto = _without_weights(model)
    if not with_outputs:
        for one in _proto_graphs(proto.graph):
            for output in one.output:
                if output.type.HasField("tensor_type"):
                    output.type.tensor_type.ClearField("shape")
    failure = ""
    for data_prop in (True, False):
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=data_prop)
            break
        except Exception as e:  # noqa: BLE001 - inference helps, but is no condition; reported
            failure = " ".join(str(e).split())[:200]
    else:
        return failure
    for graph, found in zip(_graphs(model.graph), _proto_graphs(inferred.graph), strict=True):
        types = {info.name: info.type for info in [*found.value_info, *found.output]}
        for node in graph:
            for value in node.outputs:
                if value.name in types:
                    _take(value, types[value.name])
    return ""


def _take(value: oir.Value, found: onnx.TypeProto) -> None:
    if value.type is None and found.WhichOneof("value") in {"tensor_type", "sequence_type"}:
        element = found.tensor_type.elem_type or found.WhichOneof("value") != "tensor_type"
        if element:
            value.type = oir.serde.deserialize_type_proto_for_type(found)
    if value.shape is None and found.HasField("tensor_type"):
        value.shape = oir.serde.deserialize_type_proto_for_shape(found)


def _merge(
    stated: oir.Shape, inferred: oir.Shape | None, free: set[str | None]
) -> tuple[oir.Shape, int]:
    """The stated shape, its unknown dimensions filled in; the free ones stay free.

    Returns the shape and whether a stated dimension had to give way.
    """
    if inferred is None or len(inferred) != len(stated):
        return (stated, 0) if inferred is None else (inferred, 1)
    dims: list[int | str | None] = []
    gave_way = 0
    for old, new in zip(stated, inferred, strict=True):
        name = None if isinstance(new, int) else new.value
        if isinstance(old, int):
            gave_way |= name in free
            dims.append(name if name in free else old)
        else:
            dims.append(
                old.value if old.value is not None else new if isinstance(new, int) else name
            )
    return oir.Shape(dims), int(gave_way)


def _without_weights(model: oir.Model) -> onnx.ModelProto:
    originals: list[oir.TensorProtocol] = []

    def strip(tensor: oir.TensorProtocol) -> oir.TensorProtocol:
        originals.append(tensor)
        if tensor.nbytes <= _SMALL or tensor.dtype == oir.DataType.STRING:
            return tensor
        return oir.ExternalTensor(
            "stripped",
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=oir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
        )

    for_each_tensor(model, strip)
    try:
        return oir.to_proto(model)
    finally:
        back = iter(originals)
        for_each_tensor(model, lambda _: next(back))
