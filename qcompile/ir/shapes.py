"""Shape inference that degrades: a tensor whose shape cannot be inferred keeps what it has."""

from __future__ import annotations

import onnx
import onnx_ir as oir

from qcompile.ir.notes import Note
from qcompile.ir.read import for_each_tensor

__all__ = ["infer_shapes"]

_SMALL = 1024


def infer_shapes(model: oir.Model) -> list[Note]:
    """Fill in types and shapes of values; what the model states itself is kept."""
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
        proto = oir.to_proto(model)
    finally:
        back = iter(originals)
        for_each_tensor(model, lambda _: next(back))
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as e:  # noqa: BLE001 - inference is a help, never a condition
        return [Note("", f"shapes could not be inferred: {' '.join(str(e).split())[:200]}")]
    found = oir.from_proto(inferred)
    for graph, other in zip(model.graphs(), found.graphs(), strict=True):
        known = {v.name: v for node in other for v in node.outputs if v.name}
        for node in graph:
            for value in node.outputs:
                better = known.get(value.name or "")
                if better is None:
                    continue
                if value.type is None:
                    value.type = better.type
                if value.shape is None:
                    value.shape = better.shape
    return []
