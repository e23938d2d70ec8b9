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

from qcompile.backends.ort_channels import keep_channels, widen
from qcompile.backends.ort_edges import QTensor, dequantized, tail
from qcompile.backends.ort_fold_width import fold_width
from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.backends.ort_site import Edit, Refused, Site
from qcompile.ir.graph import constant, single_consumer

__all__ = ["following_bias", "lower_conv", "lower_gemm", "lower_matmul"]

_BIAS_SCALE_TOLERANCE = 1e-4
"""Relative; a bias stored with a scale this close to s_x * s_w is off by less than 1e-4 of itself."""


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
    folded = fold_width(site, x, w, bias, to)
    if folded is not None:
        return folded
    wide = widen(site, x, w, bias)
    inputs = [wide.read, site.scale(x), site.zero(x), wide.weight, wide.scale, wide.zero]
    inputs += [site.scale(to.out), site.zero(to.out)]
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    conv = site.make(
        "QLinearConv",
        inputs if wide.bias is None else [*inputs, wide.bias],
        site.attributes(*names),
        absorbed=to.absorbed,
    )
    return site.write(keep_channels(site, conv, wide), to)


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
        inputs = [a.q, a_scale, site.zero(a), b.q, site.scale(b), site.zero(b)]
        inputs += [site.scale(to.out), site.zero(to.out)]
        site.edit.removes += scaled
        return site.write(site.make("QLinearMatMul", inputs, absorbed=[*scaled, *to.absorbed]), to)
    site.needs("MatMulIntegerToFloat", MICROSOFT, a.dtype)
    output, add, bias = following_bias(site, product)
    gone = [*scaled, *([] if add is None else [add])]
    made = site.make(
        "MatMulIntegerToFloat",
        [a.q, b.q, a_scale, site.scale(b), site.zero(a), site.zero(b)]
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
    inputs += [b.q, site.scale(b), site.zero(b), bias]
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
