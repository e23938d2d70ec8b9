"""Why a layer errs: evidence from its tensors and weights, in the words of a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.departures import Quantized, TensorStats
from qcompile.ir.graph import origin
from qcompile.ir.weights import IntegerWeight

__all__ = [
    "BROKEN",
    "OUTLYING",
    "PLAIN",
    "REMEDIES",
    "UNLIKE_DATA",
    "Cause",
    "tensor_cause",
    "weight_cause",
    "worst",
]

OUTLIER = 16.0
"""A channel this many times larger than the middle one leaves the others less than 4 of 8 bits."""

GAIN = 100.0
"""A weight channel this many times larger than the middle one makes the rounding of its input count so
much more; batch norms that were folded leave factors of ten or thirty."""

UNLIKE = 0.2
"""Share of the calibrated width that data of the same kind use at least."""

BROKEN = 1000.0
"""Weights of a channel this many times the middle one's are a fault of the model itself, which comes
before all that follows from it."""

CLIPPED = 0.001
"""Share of clipped values worth a word."""

HALF = 65504.0

PLAIN = "8 bits are too coarse"
UNLIKE_DATA = "calibration data unlike the input"
OUTLYING = "outlier channel"

REMEDIES = {
    UNLIKE_DATA: "calibrate on data prepared as in deployment: the same "
    "scaling, mean and colour order (--preprocess)",
    OUTLYING: "keep the layers that read it in float (--keep-float), or let fold-scales or "
    "smooth-quant spread the channel over its neighbours",
    "clipped range": "calibrate on more samples that reach these values, or with --method minmax",
    "range far wider than the values": "calibrate without the samples that stretch it, or with "
    "--method percentile or mse",
    "saturating integers": "choose the weight's range by its largest value (--disable learn-weights)",
    "tiny scale": "keep the layer in float (--keep-float): its values are next to nothing",
    "zero variance": "check the samples: the tensor holds one value in all of them",
    "overflow of FP16": "keep what is not integer in float32 (--rest fp32)",
    PLAIN: "keep the layer in float (--keep-float), or give --effort max more time",
}
"""Cause -> what to do about it."""


@dataclass(frozen=True)
class Cause:
    """One piece of evidence.

    Attributes:
        kind: a key of ``REMEDIES``.
        node: origin id of the layer that is to blame; "" for an input of the model.
        tensor: what the evidence was found in.
        text: the evidence with its numbers.
        noise: share of the tensor's (or weight's) signal that rounding loses, by channel.
        channel: the one that the evidence is about, where it is about one.
        gain: how many times the middle channel's weights are that channel's; 0 of other evidence.
    """

    kind: str
    node: str
    tensor: str
    text: str
    noise: float
    channel: int | None = None
    gain: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """Equal for evidence of one and the same cause: a channel is followed to who makes it."""
        return self.kind, self.tensor if self.channel is None else self.node

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.kind]


def tensor_cause(
    value: oir.Value, pair: Quantized, stats: TensorStats, *, first: bool, half: bool = False
) -> Cause:
    """What is wrong with the rounding of an activation.

    Args:
        value: the tensor in the prepared float model.
        pair: its Q/DQ.
        stats: what the samples show of it.
        first: nothing before it is quantized, so that it depends on the data alone.
        half: the artifact computes in float16 around it.
    """
    producer = value.producer()
    node = "" if producer is None else origin(producer) or producer.name or ""
    low, high = pair.limits
    width, used = high - low, stats.high - stats.low
    beyond = max(low - stats.low, stats.high - high, 0.0)
    share = stats.clipped / max(1, stats.count)
    seen = f"{stats.low:.4g} to {stats.high:.4g}"
    kept = f"{low:.4g} to {high:.4g}"
    channel, ratio = _outlier(stats.peaks)

    def cause(kind: str, text: str, channel: int | None = None) -> Cause:
        return Cause(kind, node, pair.name, text, stats.rounding_share, channel)

    if half and max(abs(stats.low), abs(stats.high)) > HALF:
        return cause("overflow of FP16", f"it reaches {seen}; FP16 ends at {HALF:.0f}")
    if stats.constant:
        return cause("zero variance", f"all {stats.count} values are {stats.low:.4g}")
    if first and (used < UNLIKE * width or beyond > 0.5 * width):
        return cause(
            UNLIKE_DATA,
            f"calibrated for {kept}, these samples hold {seen} "
            f"({used / width:.3g} of the calibrated width)",
        )
    if ratio > OUTLIER:
        return cause(
            OUTLYING,
            f"channel {channel} reaches {stats.peaks[channel]:.4g}, {ratio:.3g} times the middle one; "
            f"one step of its scale is {float(pair.qparams.scale):.3g}",
            channel,
        )
    if share > CLIPPED and beyond > 0.05 * width:
        return cause(
            "clipped range", f"{share:.2%} of the values lie outside of {kept}; they reach {seen}"
        )
    if used < UNLIKE * width:
        return cause(
            "range far wider than the values", f"the range is {kept}, the values hold {seen}"
        )
    if float(pair.qparams.scale) < 1e-12:
        return cause("tiny scale", f"its scale is {float(pair.qparams.scale):.3g}")
    return cause(
        PLAIN,
        f"the values hold {seen}, in steps of {float(pair.qparams.scale):.3g}",
    )


def weight_cause(
    node: str, name: str, real: npt.NDArray[np.generic], weight: IntegerWeight
) -> Cause:
    """What is wrong with the rounding of a weight."""
    from qcompile.ir.affine import dequantize

    axis = weight.qparams.spec.granularity.axis
    wide = np.moveaxis(real.astype(np.float64), axis or 0, 0)
    rows = wide.reshape(wide.shape[0], -1)
    stands = np.moveaxis(dequantize(weight.values, weight.qparams), axis or 0, 0).reshape(
        rows.shape
    )
    energy = np.square(rows).sum(axis=1)
    there = energy > 0
    lost = np.square(rows - stands)[there].sum(axis=1) / energy[there]
    noise = float(np.minimum(lost, 1).mean()) if there.any() else 0.0
    spec = weight.qparams.spec
    full = np.abs(weight.values.astype(np.int32)) >= spec.qmax
    # One value of each channel is at the end of the range by right.
    saturated = (int(full.sum()) - rows.shape[0]) / max(1, full.size)
    inputs = (
        np.abs(wide.reshape(*wide.shape[:2], -1)).max(axis=(0, 2)) if wide.ndim > 1 else rows[0]
    )
    channel, ratio = _outlier(np.abs(inputs))
    sizes = np.abs(rows).max(axis=1)
    loudest, gain = _outlier(sizes)
    if gain > GAIN:
        text = (
            f"output channel {loudest} reaches {sizes[loudest]:.4g}, {gain:.3g} times the middle one: "
            "it makes the rounding of what the layer reads louder"
        )
        return Cause(OUTLYING, node, name, text, noise, loudest, gain)
    if saturated > 0.02:
        text = f"{saturated:.1%} of its integers are at the ends of their range"
        return Cause("saturating integers", node, name, text, noise)
    if ratio > OUTLIER:
        text = f"input channel {channel} reaches {inputs[channel]:.4g}, {ratio:.3g} times the middle one"
        return Cause(OUTLYING, node, name, text, noise)
    if float(weight.qparams.scale.min()) < 1e-12:
        text = f"its least scale is {float(weight.qparams.scale.min()):.3g}"
        return Cause("tiny scale", node, name, text, noise)
    text = f"rounding loses {noise:.2%} of its energy by channel"
    return Cause(PLAIN, node, name, text, noise)


def _outlier(peaks: npt.NDArray[np.float64]) -> tuple[int, float]:
    """The largest channel, and how many times the middle one it is."""
    if peaks.size < 2:
        return 0, 1.0
    middle = float(np.median(peaks[peaks > 0])) if (peaks > 0).any() else 0.0
    largest = int(np.argmax(peaks))
    return largest, float(peaks[largest]) / middle if middle > 0 else 1.0


def worst(causes: Sequence[Cause]) -> Cause | None:
    """The one to blame: a broken channel, then what is more than plain rounding, whose loses most."""
    return max(causes, key=lambda c: (c.gain > BROKEN, c.kind != PLAIN, c.noise), default=None)
