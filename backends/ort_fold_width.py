"""A Conv of one channel, read as four channels: neighbouring columns stand in one pixel.

ONNX Runtime's fast integer kernel wants channels in multiples of four. One channel padded to four costs
a copy, a Transpose and three zeros in four products. An image of one channel is channels-last already,
and so is it as (n, h, w/4, 4): each output pixel then holds the outputs of four columns.

    QLinearConv(q (n, 1, h, w))  ->  Reshape (n, h, w/g, g), channels-last QLinearConv with w' (p o, g,
                                     kh, kw'), Reshape (n, h', w', o), Transpose

with g a multiple of 4 and of the stride s, p = g / s outputs a group. Column k of output j of a group is
column j s - left + k d of the input, so it lies in group floor(c / g) at place c mod g; the other
weights are zero, and the integers of the result are the same. A first Conv 1 -> 16, 3x3, stride 2, at
28 x 28 takes 7 us, so read 3 (of 30 for the whole network).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor, Tail
from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.backends.ort_rules_layout import TO_FIRST
from qcompile.backends.ort_site import Edit, Site
from qcompile.ir.graph import constant

__all__ = ["fold_width"]

_CHANNELS = 4
"""Input channels, and output channels too, of the fast kernel come in multiples of this."""

_FEWEST = 16
"""Output channels from which the fast kernel serves."""


@dataclass(frozen=True)
class _Window:
    """How one axis of a Conv reads: (taps, stride, dilation, padding before, padding behind)."""

    taps: int
    stride: int
    dilation: int
    before: int
    behind: int

    def outputs(self, length: int) -> int:
        """Positions that it writes."""
        reach = (self.taps - 1) * self.dilation + 1
        return (length + self.before + self.behind - reach) // self.stride + 1


def fold_width(site: Site, x: QTensor, w: QTensor, bias: oir.Value | None, to: Tail) -> Edit | None:
    """The Conv with columns as channels; None where it does not fit or saves nothing."""
    held, value = constant(w.q), site.float_input(0)
    if held is None or held.ndim != 4 or held.shape[1] != 1 or site.attribute("group", 1) != 1:
        return None
    if w.dtype != "int8" or np.any(w.zero_point) or value is None or value.shape is None:
        return None
    height, width = list(value.shape)[2:]
    windows = _windows(site, held.shape[2:])
    if windows is None or not isinstance(height, int) or not isinstance(width, int):
        return None
    down, across = windows
    group = lcm(_CHANNELS, across.stride)
    count = group // across.stride
    if width % group or across.outputs(width) * across.stride != width or down.outputs(height) < 1:
        return None
    columns = [
        [j * across.stride - across.before + k * across.dilation for k in range(across.taps)]
        for j in range(count)
    ]
    first = min(min(c) for c in columns) // group
    last = max(max(c) for c in columns) // group
    outputs, taps = len(held), last - first + 1
    if outputs * count < _FEWEST or outputs * count % _CHANNELS:
        return None
    if taps * group > across.taps * _CHANNELS or first > 0 or last < 0:
        return None
    kernels, opset = site.lowering.kernels, site.lowering.opset("")
    if not kernels.has("QLinearConv", MICROSOFT, 1, x.dtype) or opset < 13:
        return None
    shifted = None if bias is None else constant(bias)
    if bias is not None and shifted is None:
        return None
    wide = np.zeros((count, outputs, group, down.taps, taps), np.int8)
    for j, places in enumerate(columns):
        for k, column in enumerate(places):
            wide[j, :, column % group, :, column // group - first] = held[:, 0, :, k]

    def repeated(suffix: str, array: np.ndarray) -> oir.Value:
        return site.const(suffix, np.tile(array, count))

    def reshape(source: oir.Value, shape: list[int], suffix: str) -> oir.Value:
        sizes = site.const(suffix, np.array(shape, np.int64))
        return site.make("Reshape", [source, sizes], suffix=suffix).outputs[0]

    per_channel = w.axis is not None
    inputs: list[oir.Value | None] = [
        reshape(x.q, [-1, height, width // group, group], "columns"),
        site.scale(x),
        site.zero(x),
        site.const("weight", wide.reshape(count * outputs, group, down.taps, taps)),
        repeated("weight_scale", w.scale) if per_channel else site.scale(w),
        repeated("weight_zero_point", w.zero_point) if per_channel else site.zero(w),
        site.scale(to.out),
        site.zero(to.out),
    ]
    if shifted is not None:
        inputs.append(repeated("bias", shifted))
    attributes = {
        "channels_last": oir.AttrInt64("channels_last", 1),
        "kernel_shape": oir.AttrInt64s("kernel_shape", [down.taps, taps]),
        "strides": oir.AttrInt64s("strides", [down.stride, 1]),
        "dilations": oir.AttrInt64s("dilations", [down.dilation, 1]),
        "pads": oir.AttrInt64s("pads", [down.before, -first, down.behind, last]),
    }
    conv = site.make("QLinearConv", inputs, attributes, domain=MICROSOFT, absorbed=to.absorbed)
    size = [-1, down.outputs(height), across.outputs(width), outputs]
    apart = reshape(conv.outputs[0], size, "apart")
    return site.write(site.make("Transpose", [apart], TO_FIRST, suffix="to_first"), to)


def _windows(site: Site, kernel: tuple[int, ...]) -> tuple[_Window, _Window] | None:
    if site.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    strides, dilations = site.attribute("strides", (1, 1)), site.attribute("dilations", (1, 1))
    pads = site.attribute("pads", (0, 0, 0, 0))
    if not (
        isinstance(strides, tuple) and isinstance(dilations, tuple) and isinstance(pads, tuple)
    ):
        return None
    one, other = (
        _Window(kernel[i], strides[i], dilations[i], pads[i], pads[i + 2]) for i in (0, 1)
    )
    return one, other
