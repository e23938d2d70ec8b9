"""Convs with channel counts that ONNX Runtime's fast integer kernel does not take.

Tried with 1.31: that kernel (int8 weights with zero point 0) needs input channels in multiples of
four, and at least 16 output channels in multiples of four. Others run 1.5 to 2 times slower:

    3 -> 64 channels, 3x3 at 240 x 240    3.4 ms, with a fourth channel of zeros 1.6 ms
    33 -> 64 channels, 3x3 at 40 x 40     133 us, with three more 100 us, the copy counted
    16 -> 18 channels, 3x3 at 80 x 80     185 us, with two more outputs cut off again 133 us

So zeros are added. Their products are zero, the results are the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor
from qcompile.backends.ort_site import Site
from qcompile.ir.graph import constant

__all__ = ["Widened", "keep_channels", "widen"]

_FEWEST = 16
"""Output channels from which the fast kernel serves."""

_LARGEST_FILL = 1 << 20
"""Bytes of constant zeros up to which they are stored in the model."""

_ZEROS = 512
"""Products with zero, per tap, up to which the fast kernel saves more than they cost (1 -> 258
channels with 256 taps: 0.9 ms as it is, 3.7 ms with three channels of zeros)."""


@dataclass(frozen=True)
class Widened:
    """Inputs of a QLinearConv, channels added or not.

    Attributes:
        read: the activation.
        weight: its integers.
        scale: of the weight.
        zero: zero point of the weight.
        bias: int32, or None.
        keep: output channels to cut back to, None when none were added.
    """

    read: oir.Value
    weight: oir.Value
    scale: oir.Value
    zero: oir.Value
    bias: oir.Value | None
    keep: int | None = None


def widen(site: Site, x: QTensor, w: QTensor, bias: oir.Value | None) -> Widened:
    """The inputs of a Conv, with channels added where the fast kernel then serves and pays."""
    plain = Widened(x.q, w.q, site.scale(w), site.zero(w), bias)
    held = constant(w.q)
    if held is None or site.attribute("group", 1) != 1 or held.ndim < 3:
        return plain
    if w.dtype != "int8" or np.any(w.zero_point):
        return plain
    outputs, inputs, *kernel = held.shape
    more_in = -inputs % 4
    more_out = -outputs % 4
    if outputs + more_out < _FEWEST and (more_out or np.prod(kernel) > 1):
        more_out = _FEWEST - outputs
    if outputs + more_out < _FEWEST or more_in * outputs > _ZEROS or not more_in + more_out:
        return plain
    if not _has_kernels(site, x.dtype):
        return plain
    base = w.q.name or "weight"
    columns = [(0, more_out), (0, more_in), *[(0, 0)] * len(kernel)]
    weight = _shared(site, w.q, (more_in, more_out), f"{base}_wide", np.pad(held, columns))
    scale, zero = plain.scale, plain.zero
    if more_out and w.axis is not None:
        rows = [(0, more_out)]
        wider = np.pad(w.scale, rows, mode="edge")
        scale = _shared(site, plain.scale, (0, more_out), f"{base}_scale_wide", wider)
        zero = site.lowering.constant(f"{base}_zero_wide", np.pad(w.zero_point, rows))
    if more_out and bias is not None:
        array = constant(bias)
        if array is None:
            return plain
        bias = site.const("bias_wide", np.pad(array, [(0, more_out)]))
    read = x.q
    if more_in:
        key = (x.q, more_in, 0)
        if key not in site.lowering.shared:
            site.lowering.shared[key] = _added_channels(site, x, more_in, held.ndim)
        read = site.lowering.shared[key]
    return Widened(read, weight, scale, zero, bias, outputs if more_out else None)


def keep_channels(site: Site, conv: oir.Node, wide: Widened) -> oir.Node:
    """Cut the added output channels off again."""
    if wide.keep is None:
        return conv
    limits = [np.array([v], np.int64) for v in (0, wide.keep, 1)]
    names = ("starts", "ends", "axes")
    inputs = [site.const(n, v) for n, v in zip(names, limits, strict=True)]
    return site.make("Slice", [conv.outputs[0], *inputs], suffix="keep")


def _has_kernels(site: Site, dtype: str) -> bool:
    opset = site.lowering.opset("")
    kernels = site.lowering.kernels
    return kernels.has("Pad", "", opset, dtype) and kernels.has("Slice", "", opset, dtype)


def _shared(
    site: Site,
    source: oir.Value,
    added: tuple[int, int],
    base: str,
    array: npt.NDArray[np.generic],
) -> oir.Value:
    key = (source, *added)
    if key not in site.lowering.shared:
        site.lowering.shared[key] = site.lowering.constant(base, array)
    return site.lowering.shared[key]


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
