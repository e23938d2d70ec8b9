"""Layers labelled "int8-dynamic": float edges, the activation quantized when its values are known.

    x @ w [+ b]                    ->  DynamicQuantizeMatMul(x, w8, b)
    x @ w1 [+ b1], x @ w2 [+ b2]   ->  DynamicQuantizeLinear(x), MatMulIntegerToFloat for each
    gemm(x, w, b)                  ->  the same, a transposed weight transposed back
    lstm(x, w, r, ...)             ->  DynamicQuantizeLSTM(x, w8, r8, ...)

Weights may stand as int8 behind a DequantizeLinear, or as float: then they are rounded here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort_edges import dequantized
from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.backends.ort_rules_compute import following_bias
from qcompile.backends.ort_site import Edit, Lowering, Refused, Site, apply_edit
from qcompile.ir.affine import quantize_weight
from qcompile.ir.graph import constant, origin
from qcompile.ir.notes import Note
from qcompile.ir.plan import INT8_DYNAMIC, PrecisionPlan
from qcompile.ir.spec import PER_TENSOR, QuantSpec, per_axis

__all__ = ["lower_dynamic"]

Array = npt.NDArray[np.generic]


def lower_dynamic(lowering: Lowering, plan: PrecisionPlan, bits: int | None = None) -> list[Note]:
    """Write the layers that the plan labels "int8-dynamic"; notes for those that stay float.

    Args:
        lowering: the model.
        plan: labels by origin id.
        bits: significant bits of weights rounded here (7 on x86 without VNNI), None for all 8.
    """
    dynamic = {layer.origin for layer in plan.layers if layer.precision == INT8_DYNAMIC}
    labelled = [
        node for node in list(lowering.model.graph) if node.domain == "" and origin(node) in dynamic
    ]
    readers: dict[oir.Value, int] = {}
    for node in labelled:
        if node.op_type in ("MatMul", "Gemm") and node.inputs[0] is not None:
            readers[node.inputs[0]] = readers.get(node.inputs[0], 0) + 1
    notes: list[Note] = []
    shared: dict[oir.Value, oir.Node] = {}
    for node in labelled:
        site = Site(lowering, node)
        try:
            if node.op_type == "LSTM":
                edit = _lstm(site, bits)
            elif node.op_type in ("MatMul", "Gemm"):
                several = (
                    readers.get(node.inputs[0], 0) > 1 if node.inputs[0] is not None else False
                )
                edit = _product(site, bits, shared, several)
            else:
                raise Refused("there is no kernel that quantizes its input at run time")
        except Refused as reason:
            notes.append(Note(origin(node), f"{node.op_type} stays float: {reason}"))
            continue
        apply_edit(lowering, node, edit)
    return notes


def _product(
    site: Site, bits: int | None, shared: dict[oir.Value, oir.Node], several: bool
) -> Edit:
    x = site.float_input(0)
    weight = _columns(site, bits)
    if site.node.op_type == "Gemm":
        bias, output, add = _gemm_bias(site, weight.q.shape[1]), site.node.outputs[0], None
    else:
        output, add, bias = following_bias(site, site.node.outputs[0])
    w8 = site.const("weight_int8", weight.q)
    scale, zero = (
        site.const("weight_scale", weight.scale),
        site.const("weight_zero_point", weight.zero),
    )
    gone = [] if add is None else [add]
    last: list[oir.Value | None] = [] if bias is None else [bias]
    if not several:
        site.needs("DynamicQuantizeMatMul", MICROSOFT, "int8")
        inputs = [x, w8, scale, zero, *last]
        made = site.make("DynamicQuantizeMatMul", inputs, domain=MICROSOFT, absorbed=gone)
        return site.write_float(made, output, gone)
    site.needs("MatMulIntegerToFloat", MICROSOFT, "uint8")
    site.needs("DynamicQuantizeLinear", "", "uint8")
    if x not in shared and x is not None:
        first = site.make("DynamicQuantizeLinear", [x], suffix="quantize", num_outputs=3)
        first.metadata_props.clear()
        shared[x] = first
    q, x_scale, x_zero = shared[x].outputs if x is not None else ()
    inputs = [q, w8, x_scale, scale, x_zero, zero, *last]
    made = site.make("MatMulIntegerToFloat", inputs, domain=MICROSOFT, absorbed=gone)
    return site.write_float(made, output, gone)


@dataclass(frozen=True)
class _Weight:
    q: Array
    scale: npt.NDArray[np.float32]
    zero: Array


def _columns(site: Site, bits: int | None) -> _Weight:
    """The right side as int8 (inputs, outputs) with a scale per output."""
    value = site.float_input(1)
    if site.node.op_type == "Gemm":
        if site.attribute("transA", 0):
            raise Refused("its left side is transposed")
        for name in ("alpha", "beta"):
            if site.attribute(name, 1.0) != 1.0:
                raise Refused(f"{name} is {site.attribute(name)}; fold it into the constants first")
    axis = 0 if site.node.op_type == "Gemm" and site.attribute("transB", 0) else 1
    stored = dequantized(value)
    held = constant(value if stored is None else stored.q)
    if held is None or held.ndim != 2:
        raise Refused("its right side is no constant matrix")
    if stored is None:
        spec = QuantSpec("int8", symmetric=True, granularity=per_axis(axis), narrow=True, bits=bits)
        q, found = quantize_weight(held, spec)
        scale, zero = found.scale, found.zero_point
    elif stored.dtype != "int8" or stored.axis not in (None, axis):
        raise Refused("its weight is not int8 with a scale per tensor or per output")
    else:
        q, scale, zero = held, stored.scale, stored.zero_point
    return _Weight(q if axis else np.ascontiguousarray(q.T), scale, zero)


def _gemm_bias(site: Site, columns: int) -> oir.Value | None:
    value = site.float_input(2)
    if value is None:
        return None
    stored = dequantized(value)
    real = constant(value if stored is None else stored.q)
    if stored is not None and real is not None:
        real = real.astype(np.float64) * stored.scale.astype(np.float64)
    if (
        real is None
        or real.size not in (1, columns)
        or (real.ndim > 1 and real.shape[-1] != columns)
    ):
        raise Refused("its bias is not one constant number per output")
    if stored is None and real.ndim == 1 and real.size == columns:
        return value
    spread = np.broadcast_to(real.reshape(-1), (columns,)).astype(np.float32)
    return site.const("bias", np.ascontiguousarray(spread))


_LSTM_ATTRIBUTES = (
    "activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size",
    "input_forget",
)  # fmt: skip

_MARGIN = 10 ** (2.0 / 10)
"""Growth of the rounding noise for which one scale per direction is taken (2 dB): the kernel with
one scale is 1.15 to 1.3 times as fast as the one with a scale per channel."""


def _lstm(site: Site, bits: int | None) -> Edit:
    site.needs("DynamicQuantizeLSTM", MICROSOFT, "int8")
    if site.attribute("layout", 0):
        raise Refused("its batch axis comes first (layout=1)")
    weights = [_gates(site, index, bits) for index in (1, 2)]
    bias = site.float_input(3)
    if bias is not None and constant(bias) is None:
        raise Refused("its bias is not constant")
    named: list[oir.Value | None] = []
    for name, weight in zip(("w", "r"), weights, strict=True):
        named.append(site.const(f"{name}_int8", weight.q))
    inputs: list[oir.Value | None] = [site.float_input(0), *named]
    inputs += [site.float_input(i) for i in range(3, 8)]
    for name, weight in zip(("w", "r"), weights, strict=True):
        inputs += [
            site.const(f"{name}_scale", weight.scale),
            site.const(f"{name}_zero", weight.zero),
        ]
    made = site.make(
        "DynamicQuantizeLSTM",
        inputs,
        site.attributes(*_LSTM_ATTRIBUTES),
        domain=MICROSOFT,
        num_outputs=len(site.node.outputs),
    )
    for old, new in zip(site.node.outputs, made.outputs, strict=True):
        if old.name:
            site.edit.takes_over.append((old, new))
        else:
            new.name = ""
    site.edit.removes.append(site.node)
    return site.edit


def _gates(site: Site, index: int, bits: int | None) -> _Weight:
    """Weights (directions, 4 * hidden, inputs) as int8 (directions, inputs, 4 * hidden)."""
    value = site.float_input(index)
    stored = dequantized(value)
    if stored is not None:
        held = constant(stored.q)
        if held is None or stored.dtype != "int8" or stored.axis not in (None, 1):
            raise Refused("its weights are not int8 with a scale per tensor or per gate row")
        q = np.ascontiguousarray(held.transpose(0, 2, 1))
        scale = np.broadcast_to(stored.scale, (len(q), *stored.scale.shape)).copy()
        zero = np.broadcast_to(stored.zero_point, scale.shape).copy()
        return _Weight(q, scale, zero)
    array = constant(value)
    if array is None or array.ndim != 3 or array.dtype != np.float32:
        raise Refused("its weights are not constant float32")
    parts = []
    for direction in array:
        spec = QuantSpec("int8", symmetric=True, granularity=per_axis(0), narrow=True, bits=bits)
        parts.append(quantize_weight(direction, spec))
    single = QuantSpec("int8", symmetric=True, granularity=PER_TENSOR, narrow=True, bits=bits)
    whole = [quantize_weight(direction, single) for direction in array]
    if all(
        float(np.square(w[1].scale)) <= _MARGIN * float(np.mean(np.square(p[1].scale)))
        for w, p in zip(whole, parts, strict=True)
    ):
        parts = whole
    q = np.stack([np.ascontiguousarray(p[0].T) for p in parts])
    scale = np.stack([p[1].scale for p in parts]).astype(np.float32)
    return _Weight(q, scale, np.zeros(scale.shape, np.int8))
