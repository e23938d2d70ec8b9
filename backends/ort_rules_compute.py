"""Conv, MatMul and Gemm between DequantizeLinear and QuantizeLinear, as integer operators.

Q(act(conv(DQ(x), DQ(w)) + DQ(b)))   ->  QLinearConv(x, w, b)          [Clip]
Q(act(DQ(a) @ DQ(b)))                ->  QLinearMatMul(a, b)           [Clip]
DQ(a) @ DQ(b) [+ c]                  ->  MatMulIntegerToFloat(a, b, c)
gemm(DQ(a), DQ(b), DQ(c))            ->  QGemm(a, b, c), integer or float output
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor, dequantized, tail
from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.backends.ort_site import Edit, Refused, Site
from qcompile.ir.graph import constant, single_consumer

__all__ = ["following_bias", "lower_conv", "lower_gemm", "lower_matmul"]

_BIAS_SCALE_TOLERANCE = 1e-4
"""Relative; a bias stored with a scale this close to s_x * s_w is off by less than 1e-4 of itself."""

_WIDE = 16
"""Output channels from which the fast Conv kernel serves."""

_LARGEST_FILL = 1 << 20
"""Bytes of constant zeros up to which they are stored in the model."""

_ZEROS = 512
"""Products with zero, per tap, up to which the fast kernel saves more than they cost (1 -> 258
channels with 256 taps: 0.9 ms as it is, 3.7 ms with three channels of zeros)."""


def lower_conv(site: Site) -> Edit:
    """Conv -> QLinearConv."""
    x = site.need_input(0)
    w = site.need_input(1, per_tensor=False)
    to = site.need_tail(x.dtype)
    if w.axis not in (None, 0):
        raise Refused(f"the weight has its scales along axis {w.axis}; QLinearConv needs axis 0")
    if x.dtype == "int8" and w.dtype != "int8":
        raise Refused("QLinearConv has no kernel for int8 activations with uint8 weights")
    site.needs("QLinearConv", "", x.dtype)
    bias = _integer_bias(site, 2, x, w)
    read, weight = _whole_channels(site, x, w)
    inputs = [read, site.scale(x), site.zero(x), weight, site.scale(w, flat=True), site.zero(w)]
    inputs += [site.scale(to.out), site.zero(to.out)]
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    conv = site.make(
        "QLinearConv",
        inputs if bias is None else [*inputs, bias],
        site.attributes(*names),
        absorbed=to.absorbed,
    )
    return site.write(conv, to)


def _whole_channels(site: Site, x: QTensor, w: QTensor) -> tuple[oir.Value, oir.Value]:
    """(x, w) with input channels filled up to a multiple of four, which the fast kernel needs.

    Three channels at 240 x 240: 3.4 ms, with a fourth of zeros 1.6 ms; 33 at 40 x 40: 133 and
    100 us, the copy counted. The added weights are zero, so the products are too.
    """
    held = constant(w.q)
    missing = 0 if held is None else -held.shape[1] % 4
    if held is None or not missing or site.attribute("group", 1) != 1:
        return x.q, w.q
    if held.shape[0] < _WIDE or missing * held.shape[0] > _ZEROS:
        return x.q, w.q
    if not site.lowering.kernels.has("Pad", "", site.lowering.opset(""), x.dtype):
        return x.q, w.q
    columns = [(0, 0), (0, missing), *[(0, 0)] * (held.ndim - 2)]
    fill = int(w.zero_point.reshape(-1)[0])
    if np.any(w.zero_point != fill):
        return x.q, w.q
    wide = site.lowering.shared.get((w.q, missing))
    if wide is None:
        wide = site.const("weight", np.pad(held, columns, constant_values=fill))
        site.lowering.shared[(w.q, missing)] = wide
    read = site.lowering.shared.get((x.q, missing))
    if read is None:
        read = _added_channels(site, x, missing, held.ndim)
        site.lowering.shared[(x.q, missing)] = read
    return read, wide


def _added_channels(site: Site, x: QTensor, missing: int, rank: int) -> oir.Value:
    """``x`` with channels of zero behind its own.

    Where the runtime turns the region channels-last, Concat takes a quarter of Pad's time; it needs
    the shape.
    """
    shape = [] if x.q.shape is None else [d for d in x.q.shape if isinstance(d, int)]
    if len(shape) == rank and np.prod(shape) * missing < _LARGEST_FILL * shape[1]:
        shape[1] = missing
        fill = np.full(shape, x.zero_point.reshape(()), x.zero_point.dtype)
        axis = {"axis": oir.AttrInt64("axis", 1)}
        return site.make("Concat", [x.q, site.const("fill", fill)], axis, suffix="pad").outputs[0]
    ends = np.zeros(2 * rank, np.int64)
    ends[rank + 1] = missing
    return site.make("Pad", [x.q, site.const("pads", ends), site.zero(x)], suffix="pad").outputs[0]


def lower_matmul(site: Site) -> Edit:
    """MatMul -> QLinearMatMul when its output is quantized, MatMulIntegerToFloat when it is not."""
    a = site.need_input(0)
    b = site.need_input(1, per_tensor=False)
    _check_columns(b, transposed=False)
    if a.dtype == "int8" and b.dtype != "int8":
        raise Refused("there is no kernel for an int8 left and a uint8 right side")
    product, scaled, factor = _scaled_product(site.node.outputs[0])
    a_scale = site.scale(a)
    if scaled:
        a_scale = site.const("scale", (a.scale.reshape(()) * np.float32(factor)).astype(np.float32))
    to = tail(product)
    if to is not None and to.out.dtype == a.dtype:
        site.needs("QLinearMatMul", "", a.dtype)
        inputs = [a.q, a_scale, site.zero(a), b.q, site.scale(b, flat=True), site.zero(b)]
        inputs += [site.scale(to.out), site.zero(to.out)]
        site.edit.removes += scaled
        return site.write(site.make("QLinearMatMul", inputs, absorbed=[*scaled, *to.absorbed]), to)
    site.needs("MatMulIntegerToFloat", MICROSOFT, a.dtype)
    output, add, bias = following_bias(site, product)
    gone = [*scaled, *([] if add is None else [add])]
    made = site.make(
        "MatMulIntegerToFloat",
        [a.q, b.q, a_scale, site.scale(b, flat=True), site.zero(a), site.zero(b)]
        + ([] if bias is None else [bias]),
        domain=MICROSOFT,
        absorbed=gone,
    )
    return site.write_float(made, output, gone)


def _scaled_product(product: oir.Value) -> tuple[oir.Value, list[oir.Node], float]:
    """(value, nodes, factor): Mul and Div by positive numbers behind a product (attention's 1/sqrt d)."""
    gone: list[oir.Node] = []
    factor = 1.0
    node = single_consumer(product)
    while node is not None and node.op_type in ("Mul", "Div") and node.domain == "":
        index = 1 if node.inputs[0] is product else 0
        number = constant(node.inputs[index])
        if (
            number is None
            or number.size != 1
            or number.ndim > 2
            or (node.op_type, index) == ("Div", 0)
        ):
            break
        real = float(number.reshape(()))
        if not 1e-6 < real < 1e6:
            break
        factor *= real if node.op_type == "Mul" else 1.0 / real
        gone.append(node)
        product = node.outputs[0]
        node = single_consumer(product)
    return product, gone, factor


def lower_gemm(site: Site) -> Edit:
    """Gemm -> QGemm, with or without a quantized output."""
    a = site.need_input(0)
    b = site.need_input(1, per_tensor=False)
    trans_b = bool(site.attribute("transB", 0))
    _check_columns(b, transposed=trans_b)
    if a.dtype == "int8" and b.dtype != "int8":
        raise Refused("QGemm has no kernel for int8 activations with uint8 weights")
    alpha = site.attribute("alpha", 1.0)
    beta = site.attribute("beta", 1.0)
    if site.float_input(2) is not None and beta != 1.0:
        raise Refused(f"beta is {beta}; fold it into the bias first")
    site.needs("QGemm", MICROSOFT, a.dtype)
    bias = _integer_bias(site, 2, a, b, factor=float(alpha) if isinstance(alpha, float) else 1.0)
    inputs: list[oir.Value | None] = [a.q, site.scale(a), site.zero(a)]
    inputs += [b.q, site.scale(b, flat=True), site.zero(b), bias]
    to = site.tail()
    attributes = site.attributes("alpha", "transA", "transB")
    if to is not None and to.out.dtype == a.dtype:
        inputs += [site.scale(to.out), site.zero(to.out)]
        made = site.make("QGemm", inputs, attributes, domain=MICROSOFT, absorbed=to.absorbed)
        return site.write(made, to)
    if bias is None:
        inputs.pop()
    made = site.make("QGemm", inputs, attributes, domain=MICROSOFT)
    return site.write_float(made, site.node.outputs[0])


def _check_columns(b: QTensor, *, transposed: bool) -> None:
    """The kernels take one scale, or one for each output column of a 2-D matrix."""
    if b.axis is None:
        return
    rank = None if b.q.shape is None else len(b.q.shape)
    if rank != 2 or b.axis != (0 if transposed else 1):
        raise Refused(
            f"the right side (rank {rank}) has its scales along axis {b.axis}; "
            "the kernels take them per output column of a matrix"
        )


def following_bias(
    site: Site, product: oir.Value
) -> tuple[oir.Value, oir.Node | None, oir.Value | None]:
    """(value to write, the Add that goes, its bias) for ``product + bias`` with a 1-D float constant."""
    add = single_consumer(product)
    if add is None or add.op_type != "Add" or add.domain != "":
        return product, None, None
    other = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    array = constant(other)
    stored = dequantized(other)
    if stored is not None and (q := constant(stored.q)) is not None and stored.axis in (None, 0):
        # a bias kept as int32 for static kernels: this kernel adds it in float
        array = (q.astype(np.float64) - stored.zero_point.astype(np.float64)) * stored.scale.astype(
            np.float64
        )
        other = None
    columns = _columns(site.node)
    if array is None or array.ndim != 1 or columns is None or array.size != columns:
        return product, None, None
    if other is None:
        other = site.const("bias", array.astype(np.float32))
    return (add.outputs[0], add, other) if array.size else (product, None, None)


def _columns(node: oir.Node) -> int | None:
    right = node.inputs[1]
    if right is None or right.shape is None or len(right.shape) < 2:
        return None
    last = right.shape[-1]
    return last if isinstance(last, int) else None


def _integer_bias(
    site: Site, index: int, x: QTensor, w: QTensor, factor: float = 1.0
) -> oir.Value | None:
    """The bias as int32 with scale ``factor * s_x * s_w`` and zero point 0; None without bias."""
    value = site.float_input(index)
    if value is None:
        return None
    scale = np.float64(factor) * x.scale.reshape(()).astype(np.float64) * w.scale.astype(np.float64)
    stored = dequantized(value)
    if stored is not None and stored.dtype == "int32" and not np.any(stored.zero_point):
        try:
            fits = np.allclose(stored.scale, scale, rtol=_BIAS_SCALE_TOLERANCE, atol=0.0)
        except ValueError:
            fits = False
        if fits:
            return stored.q
        held = constant(stored.q)
        real = None if held is None else held * stored.scale.astype(np.float64)
    else:
        real = constant(value)
    if real is None:
        raise Refused(f"the bias '{value.name}' is not constant")
    return site.const("bias_int32", _to_int32(real, scale, value.name))


def _to_int32(
    real: npt.NDArray[np.generic], scale: npt.NDArray[np.float64], name: str | None
) -> npt.NDArray[np.int32]:
    with np.errstate(divide="ignore", over="ignore"):
        steps = np.rint(real.astype(np.float64) / scale)
    if not np.all(np.abs(steps) < 2**31):
        raise Refused(f"the bias '{name}' does not fit int32 at scale s_x * s_w")
    return steps.astype(np.int32)
