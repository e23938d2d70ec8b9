"""Operators whose fast integer kernels work on channels-last tensors.

ONNX Runtime runs integer Convs channels-last and moves Transposes to the borders of such a region.
It leaves a MaxPool without such neighbours in a kernel 90 times slower (5.2 against 0.06 ns an
element) and pushes a Resize into one 6 times slower than copying rows. So these are written
channels-last here, between Transposes that cancel with their neighbours'.

    MaxPool(q)           ->  T, NhwcMaxPool, T'
    Resize(q), repeated  ->  T, Reshape (n,h,1,w,1,c), Expand (n,h,f,w,g,c), Reshape, T'
    AveragePool(DQ(x))   ->  depthwise QLinearConv of ones (0.06 against 1.0 ns of QLinearAveragePool)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor
from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.backends.ort_site import Edit, Refused, Site
from qcompile.ir.graph import constant

__all__ = [
    "TO_FIRST",
    "TO_LAST",
    "channels_last",
    "lower_average_pool",
    "nhwc_max_pool",
    "repeat_rows",
]

TO_LAST = {"perm": oir.AttrInt64s("perm", [0, 2, 3, 1])}
TO_FIRST = {"perm": oir.AttrInt64s("perm", [0, 3, 1, 2])}
_FOLLOWED = 16
"""How many operators back to look for the integer Conv that makes a region channels-last."""


def lower_average_pool(site: Site) -> Edit:
    """AveragePool -> depthwise QLinearConv with weights 1 and scale 1 / (kernel size)."""
    x = site.need_input(0)
    to = site.need_tail(x.dtype)
    value = site.float_input(0)
    kernel = site.attribute("kernel_shape")
    shape = None if value is None else value.shape
    if not isinstance(kernel, tuple) or shape is None or not isinstance(shape[1], int):
        raise Refused("the number of channels is unknown")
    pads = site.attribute("pads")
    auto = site.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    padded = auto or (isinstance(pads, tuple) and any(pads))
    if padded and not site.attribute("count_include_pad", 0):
        raise Refused("padding that does not count has no integer kernel that pays")
    if site.attribute("ceil_mode", 0):
        raise Refused("windows cut off by ceil_mode have no integer kernel that pays")
    site.needs("QLinearConv", "", x.dtype)
    channels, size = shape[1], int(np.prod(kernel))
    weight = site.const("ones", np.ones((channels, 1, *kernel), np.int8))
    inputs = [x.q, site.scale(x), site.zero(x), weight]
    inputs += [site.const("weight_scale", np.array(1.0 / size, np.float32))]
    inputs += [
        site.const("weight_zero_point", np.array(0, np.int8)),
        site.scale(to.out),
        site.zero(to.out),
    ]
    attributes = site.attributes("auto_pad", "dilations", "kernel_shape", "pads", "strides")
    attributes["group"] = oir.AttrInt64("group", channels)
    return site.write(site.make("QLinearConv", inputs, attributes, absorbed=to.absorbed), to)


def nhwc_max_pool(site: Site, x: QTensor) -> oir.Value:
    """What a MaxPool of ``x`` writes, through NhwcMaxPool."""
    value = site.float_input(0)
    rank = None if value is None or value.shape is None else len(value.shape)
    if rank != 4:
        raise Refused(f"the integer MaxPool of rank {rank} is slower than the float one")
    site.needs("NhwcMaxPool", MICROSOFT, x.dtype)
    last = site.make("Transpose", [x.q], TO_LAST, suffix="to_last")
    names = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    pool = site.make("NhwcMaxPool", last.outputs, site.attributes(*names), domain=MICROSOFT)
    return site.make("Transpose", pool.outputs, TO_FIRST, suffix="to_first").outputs[0]


def repeat_rows(site: Site, x: QTensor) -> oir.Value | None:
    """What a nearest Resize by whole factors writes in a channels-last region; None elsewhere."""
    value = site.float_input(0)
    shape = None if value is None else value.shape
    factors = _repeats(site)
    if factors is None or shape is None or len(shape) != 4 or not channels_last(x.q):
        return None
    _, channels, height, width = shape
    if not isinstance(channels, int):
        return None
    down, across = factors
    last = site.make("Transpose", [x.q], TO_LAST, suffix="to_last")
    six = site.const("rows", np.array([0, 0, 1, -1, 1, channels], np.int64))
    rows = site.make("Reshape", [last.outputs[0], six], suffix="rows")
    grown = site.const("repeats", np.array([1, 1, down, 1, across, 1], np.int64))
    copied = site.make("Expand", [rows.outputs[0], grown])
    if isinstance(height, int) and isinstance(width, int):
        size = site.const("size", np.array([0, down * height, across * width, channels], np.int64))
    else:
        before = site.make("Shape", last.outputs, suffix="shape")
        by = site.const("factors", np.array([1, down, across, 1], np.int64))
        size = site.make("Mul", [before.outputs[0], by], suffix="size").outputs[0]
    back = site.make("Reshape", [copied.outputs[0], size], suffix="joined")
    return site.make("Transpose", back.outputs, TO_FIRST, suffix="to_first").outputs[0]


def _repeats(site: Site) -> tuple[int, int] | None:
    """(down, across) where the Resize repeats each row and column a whole number of times."""
    if site.attribute("mode", "nearest") != "nearest" or site.attribute("axes") is not None:
        return None
    how = (
        site.attribute("coordinate_transformation_mode", "half_pixel"),
        site.attribute("nearest_mode", "round_prefer_floor"),
    )
    if how not in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")):
        return None
    scales = constant(site.float_input(2))
    value, result = site.float_input(0), site.node.outputs[0]
    if scales is None or scales.size != 4:
        if value is None or value.shape is None or result.shape is None:
            return None
        if constant(site.float_input(3)) is None:
            return None
        found = [1.0, 1.0]
        for before, after in zip(list(value.shape)[2:], list(result.shape)[2:], strict=True):
            if not isinstance(before, int) or not isinstance(after, int) or before == 0:
                return None
            found.append(after / before)
    else:
        found = [float(s) for s in scales]
    if found[:2] != [1.0, 1.0] or any(f != int(f) or f < 1 for f in found[2:]):
        return None
    return int(found[2]), int(found[3])


def channels_last(q: oir.Value | None) -> bool:
    """Whether an integer Conv not far before this tensor makes its region channels-last."""
    for _ in range(_FOLLOWED):
        node = None if q is None else q.producer()
        if node is None or node.op_type in ("Reshape", "Flatten", "MatMul", "Gemm", "QGemm"):
            return False
        if node.op_type == "QLinearConv":
            return True
        first = 2 if node.op_type == "QLinearConcat" else 0
        q = node.inputs[first] if len(node.inputs) > first else None
    return False
