"""Operators with an integer kernel and an output scale of their own: sums, products, gates, pools.

Q(act(DQ(a) + DQ(b)))      ->  QLinearAdd(a, b)        likewise Mul
Q(sigmoid(DQ(x)))          ->  QLinearSigmoid(x)       likewise LeakyRelu
Q(pool(DQ(x)))             ->  QLinearAveragePool, QLinearGlobalAveragePool
Q(where(c, DQ(a), DQ(b)))  ->  QLinearWhere
Q(softmax(DQ(x)))          ->  QLinearSoftmax
"""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor, tail_through
from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.backends.ort_rules_layout import TO_LAST, channels_last
from qcompile.backends.ort_site import Edit, Refused, Site, eight_bit_constant
from qcompile.ir.graph import constant

__all__ = [
    "lower_binary",
    "lower_clip",
    "lower_global_average_pool",
    "lower_reduce_mean",
    "lower_softmax",
    "lower_unary",
    "lower_where",
]


def _one(site: Site, x: QTensor) -> list[oir.Value | None]:
    return [x.q, site.scale(x), site.zero(x)]


def lower_binary(site: Site) -> Edit:
    """Add, Mul -> QLinearAdd, QLinearMul."""
    a, b = site.need_input(0), site.need_input(1)
    to = site.need_tail()
    op_type = f"QLinear{site.node.op_type}"
    site.needs(op_type, MICROSOFT, to.out.dtype)
    inputs = [
        *eight_bit_constant(site, a, to.out.dtype),
        *eight_bit_constant(site, b, to.out.dtype),
    ]
    inputs += [site.scale(to.out), site.zero(to.out)]
    return site.write(site.make(op_type, inputs, domain=MICROSOFT, absorbed=to.absorbed), to)


def lower_unary(site: Site) -> Edit:
    """Sigmoid, LeakyRelu -> their QLinear forms (a table of 256 entries inside the kernel)."""
    x = site.need_input(0)
    to = site.need_tail(x.dtype)
    op_type = f"QLinear{site.node.op_type}"
    site.needs(op_type, MICROSOFT, x.dtype)
    inputs = [*_one(site, x), site.scale(to.out), site.zero(to.out)]
    made = site.make(
        op_type, inputs, site.attributes("alpha"), domain=MICROSOFT, absorbed=to.absorbed
    )
    return site.write(made, to)


def lower_clip(site: Site) -> Edit:
    """Relu, Clip -> Clip on the integers; through a requantizing table where parameters change.

    Q is monotonic, so limits on the reals are limits on the integers. QLinearLeakyRelu with slope 1
    is the bare requantization: one pass over the bytes with a table of 256 entries.
    """
    x = site.need_input(0)
    to = tail_through(site.node)
    if to is None or to.out.dtype != x.dtype:
        raise Refused("its output is not quantized, or its limits are not constant")
    if to.out.same_parameters(x):
        if not to.clamps:
            return site.write(site.make("Identity", [x.q]), to)
        return site.clamp(x.q, to)
    site.needs("QLinearLeakyRelu", MICROSOFT, x.dtype)
    inputs = [*_one(site, x), site.scale(to.out), site.zero(to.out)]
    slope = {"alpha": oir.AttrFloat32("alpha", 1.0)}
    made = site.make("QLinearLeakyRelu", inputs, slope, domain=MICROSOFT, absorbed=to.absorbed)
    return site.write(made, to)


def lower_global_average_pool(site: Site) -> Edit:
    """GlobalAveragePool -> QLinearGlobalAveragePool."""
    x = site.need_input(0)
    to = site.need_tail(x.dtype)
    site.needs("QLinearGlobalAveragePool", MICROSOFT, x.dtype)
    made = site.make(
        "QLinearGlobalAveragePool",
        [*_one(site, x), site.scale(to.out), site.zero(to.out)],
        domain=MICROSOFT,
        absorbed=to.absorbed,
    )
    return site.write(made, to)


def lower_reduce_mean(site: Site) -> Edit:
    """ReduceMean over all spatial axes -> QLinearGlobalAveragePool, with a Reshape when dims go."""
    x = site.need_input(0)
    to = site.need_tail(x.dtype)
    value = site.float_input(0)
    rank = None if value is None or value.shape is None else len(value.shape)
    axes = site.attribute("axes")
    if axes is None and (given := site.float_input(1)) is not None:
        array = constant(given)
        axes = None if array is None else tuple(int(a) for a in array.reshape(-1))
    if rank is None or rank < 3 or not isinstance(axes, tuple):
        raise Refused(
            "there is no integer ReduceMean kernel; only a mean over all spatial axes has one"
        )
    if sorted(a + rank if a < 0 else a for a in axes) != list(range(2, rank)):
        raise Refused(
            f"the mean runs over axes {axes}; only all spatial axes have an integer kernel"
        )
    site.needs("QLinearGlobalAveragePool", MICROSOFT, x.dtype)
    made = site.make(
        "QLinearGlobalAveragePool",
        [*_one(site, x), site.scale(to.out), site.zero(to.out)],
        domain=MICROSOFT,
        absorbed=to.absorbed,
    )
    if not site.attribute("keepdims", 1):
        result = made.outputs[0]
        if rank == 4 and channels_last(x.q):
            # written so that it cancels with the Transpose behind a channels-last mean
            result = site.make("Transpose", [result], TO_LAST, suffix="to_last").outputs[0]
        shape = site.const("shape", np.array([0, -1], dtype=np.int64))
        made = site.make("Reshape", [result, shape], suffix="reshape")
    return site.write(made, to)


def lower_softmax(site: Site) -> Edit:
    """Softmax -> QLinearSoftmax."""
    x = site.need_input(0)
    to = site.need_tail(x.dtype)
    site.needs("QLinearSoftmax", MICROSOFT, x.dtype)
    opset = site.lowering.opset("")
    axis = site.attribute("axis", -1 if opset >= 13 else 1)
    made = site.make(
        "QLinearSoftmax",
        [*_one(site, x), site.scale(to.out), site.zero(to.out)],
        {
            "axis": oir.AttrInt64("axis", axis if isinstance(axis, int) else -1),
            "opset": oir.AttrInt64("opset", opset),
        },
        domain=MICROSOFT,
        absorbed=to.absorbed,
    )
    return site.write(made, to)


def lower_where(site: Site) -> Edit:
    """Where -> QLinearWhere."""
    condition = site.float_input(0)
    x, y = site.need_input(1), site.need_input(2)
    to = site.need_tail()
    site.needs("QLinearWhere", MICROSOFT, to.out.dtype)
    inputs: list[oir.Value | None] = [condition]
    inputs += [
        *eight_bit_constant(site, x, to.out.dtype),
        *eight_bit_constant(site, y, to.out.dtype),
    ]
    inputs += [site.scale(to.out), site.zero(to.out)]
    made = site.make("QLinearWhere", inputs, domain=MICROSOFT, absorbed=to.absorbed)
    return site.write(made, to)
