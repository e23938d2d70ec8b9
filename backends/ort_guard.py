"""Keeps float operators between integer ones float: the runtime's optimizer would quantize them.

Found by running 1.31 with default options:

* DQ -> Conv(float weights) -> [Relu, Clip] -> Q: the weights are quantized per tensor, silently (the
  same for ConvTranspose and Gemm). A Conv written as com.microsoft FusedConv is the same kernel and
  is left alone; for the others a DQ with its one scale repeated per channel is.
* DQ(x) -> MatMul <- DQ(w) with scales along the rows of w becomes an integer operator that fails
  when it runs; DQ of a constant in front of a float operator is computed again in every run. Both end
  when the constant is stored as float.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor, dequantized
from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.backends.ort_site import Lowering
from qcompile.ir.graph import constant, origin, replace_value, single_consumer
from qcompile.ir.notes import Note

__all__ = ["fold_constant_dequantize", "guard_float"]


def fold_constant_dequantize(lowering: Lowering) -> int:
    """Store constants behind a DequantizeLinear as the float values it computes; returns how many."""
    graph = lowering.model.graph
    count = 0
    for node in list(graph):
        if node.op_type != "DequantizeLinear" or node.outputs[0].is_graph_output():
            continue
        stored = dequantized(node.outputs[0])
        held = None if stored is None else constant(stored.q)
        if stored is None or held is None:
            continue
        value = lowering.constant(f"{node.outputs[0].name}_float", _real(stored, held))
        replace_value(node.outputs[0], value)
        graph.remove(node, safe=True)
        count += 1
    return count


def _real(stored: QTensor, held: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """What DequantizeLinear computes, in its own float32 arithmetic."""
    shape = [1] * held.ndim
    if stored.axis is not None:
        shape[stored.axis] = -1
    scale, zero = stored.scale, stored.zero_point.astype(np.int64)
    if stored.axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    else:
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    steps = (held.astype(np.int64) - zero).astype(np.float32)
    return np.asarray(steps * scale, dtype=np.float32)


def guard_float(lowering: Lowering) -> list[Note]:
    """Rewrite float Conv, ConvTranspose and Gemm that stand between DQ and Q; says where."""
    notes: list[Note] = []
    for node in list(lowering.model.graph):
        if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        before = dequantized(node.inputs[0])
        wide = before is None and _dequantizes(node.inputs[0])  # 16 bits, which no rule reads
        if before is None and not wide:
            continue
        if before is not None and before.axis is not None:
            continue
        if not _leads_to_quantize(node.outputs[0]):
            continue
        where = origin(node) or node.name or ""
        if node.op_type == "Conv" and node.attributes.get("auto_pad") is None:
            node.domain, node.op_type, node.version = MICROSOFT, "FusedConv", None
            notes.append(Note(where, "written as FusedConv, so that it stays float", changed=True))
        elif before is not None and _repeat_scale(lowering, node, before):
            notes.append(
                Note(where, "its input's scale is repeated, so that it stays float", changed=True)
            )
        else:
            notes.append(
                Note(where, "the runtime may quantize its weights per tensor: channels unknown")
            )
    return notes


def _dequantizes(value: oir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _leads_to_quantize(value: oir.Value) -> bool:
    node = single_consumer(value)
    while node is not None and node.op_type in ("Relu", "Clip"):
        node = single_consumer(node.outputs[0])
    return node is not None and node.op_type == "QuantizeLinear"


def _repeat_scale(lowering: Lowering, node: oir.Node, before: QTensor) -> bool:
    value = node.inputs[0]
    dequantize = None if value is None else value.producer()
    shape = None if value is None else value.shape
    if dequantize is None or value is None or shape is None or len(shape) < 2:
        return False
    channels = shape[1]
    if not isinstance(channels, int) or channels < 2:
        return False
    scale = np.full(channels, before.scale.reshape(-1)[0], dtype=np.float32)
    zero = np.full(channels, before.zero_point.reshape(-1)[0], dtype=before.zero_point.dtype)
    # ONNX has scales per channel from opset 13 on, ONNX Runtime's own operator always
    own = oir.Node(
        "" if lowering.opset("") >= 13 else MICROSOFT,
        "DequantizeLinear",
        [
            before.q,
            lowering.constant(f"{value.name}_scale_repeated", scale),
            lowering.constant(f"{value.name}_zero_point_repeated", zero),
        ],
        [oir.AttrInt64("axis", 1)],
        name=lowering.unique(f"{node.name}/dequantize"),
    )
    own.outputs[0].name = f"{value.name}/{node.name}"
    own.outputs[0].type, own.outputs[0].shape = value.type, shape
    lowering.model.graph.insert_before(node, own)
    node.replace_input_with(0, own.outputs[0])
    return True
