"""All arithmetic of affine quantization, pure numpy: real = scale * (q - zero_point).

Rounding is half to even and division happens in float32, as ONNX's QuantizeLinear prescribes, so that
what is predicted here is what a runtime computes, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.ir.spec import FLOAT8, INTEGER_BITS, PER_TENSOR, Granularity, QuantSpec, per_axis

__all__ = [
    "BIAS_SPEC",
    "QParams",
    "TensorRange",
    "accumulator_bound",
    "bias_qparams",
    "dequantize",
    "expand",
    "fake_quantize",
    "quantize",
    "quantize_bias",
    "quantize_weight",
    "solve",
    "storage_dtype",
    "weight_range",
]

MIN_SCALE = 2.0**-60
"""Lowest scale handed out: the product of two (a bias's scale) is still a normal float32."""

MAX_SCALE = 2.0**120
"""Highest scale handed out: 8 bits of it stay finite in float32."""

ACCUMULATOR_LIMIT = 2**31 - 2**24
"""Largest bias + accumulator allowed; the slack covers re-rounding of weights whose scale grew."""

BIAS_SPEC = QuantSpec("int32", symmetric=True)

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TensorRange:
    """Real limits seen or chosen for a tensor; scalars, or one per channel.

    Attributes:
        low: lowest value to represent.
        high: highest value to represent.
        method: the estimator that chose them ("minmax", "percentile", "entropy", "mse", "weights").
    """

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    method: str = "minmax"


@dataclass(frozen=True)
class QParams:
    """Result: what stands in the graph. Arrays are scalar () or one per channel or block.

    Attributes:
        scale: float32, strictly positive.
        zero_point: of the spec's dtype, same shape as scale.
        spec: the request they answer.
    """

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.generic]
    spec: QuantSpec


def storage_dtype(spec: QuantSpec) -> np.dtype[np.generic]:
    """The numpy dtype that holds a spec's integers; 4-bit values lie unpacked in 8-bit ones."""
    if spec.dtype == FLOAT8:
        return oir.DataType.FLOAT8E4M3FN.numpy()
    bits, signed = INTEGER_BITS[spec.dtype]
    return np.dtype(f"{'int' if signed else 'uint'}{max(bits, 8)}")


def solve(limits: TensorRange, spec: QuantSpec) -> QParams:
    """Scale and zero point that represent ``limits``, and zero exactly.

    The range is widened to include 0. An empty one (a tensor that was always 0) gets scale 1; scales
    too small or large for safe float32 arithmetic are moved to the nearest safe one.

    Examples:
        >>> p = solve(TensorRange(np.float64(0), np.float64(25.5)), QuantSpec("uint8", symmetric=False))
        >>> float(p.scale), int(p.zero_point)
        (0.10000000149011612, 0)

    Raises:
        CalibrationError: a limit is NaN or infinite, or low is above high.
    """
    low = np.minimum(np.asarray(limits.low, np.float64), 0.0)
    high = np.maximum(np.asarray(limits.high, np.float64), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise CalibrationError(f"a range must be finite to be quantized, found [{low}, {high}]")
    if np.any(np.asarray(limits.low) > np.asarray(limits.high)):
        raise CalibrationError(
            f"a range's low must not exceed its high, found [{limits.low}, {limits.high}]"
        )
    qmin, qmax = spec.qmin, spec.qmax
    if spec.symmetric:
        zero = 0 if qmin < 0 else (qmax + 1) // 2
        scale = np.maximum(high / (qmax - zero), -low / (zero - qmin))
    else:
        scale = high / (qmax - qmin) - low / (qmax - qmin)
    scale = _safe_scale(scale)
    if spec.symmetric:
        zero_point = np.full(scale.shape, zero)
    else:
        zero_point = np.clip(np.rint(qmin - low / scale.astype(np.float64)), qmin, qmax)
    return QParams(scale, zero_point.astype(storage_dtype(spec)), spec)


def _safe_scale(scale: npt.NDArray[np.float64]) -> FloatArray:
    bounded = np.clip(scale, MIN_SCALE, MAX_SCALE)
    return np.asarray(np.where(scale == 0.0, 1.0, bounded), np.float32)


def expand(param: Array, shape: tuple[int, ...], granularity: Granularity) -> Array:
    """``param`` (a scale or zero point) shaped so that it broadcasts against a tensor of ``shape``.

    Examples for shape (8, 16): () stays (); axis=0 (8,) -> (8, 1); axis=0, block=4 (2, 16) -> (8, 16).
    """
    if granularity.axis is None or param.ndim == 0:
        return param
    axis = granularity.axis % len(shape)
    if granularity.block is not None:
        whole = np.repeat(param, granularity.block, axis=axis)
        return whole[(slice(None),) * axis + (slice(shape[axis]),)]
    return param.reshape((-1,) + (1,) * (len(shape) - 1 - axis))


def quantize(x: Array, qparams: QParams) -> Array:
    """Integers that stand for ``x``, saturated to the spec's limits; NaN becomes the highest.

    8-bit floats are rounded to the nearest of theirs, half to even.

    The dtype is ``storage_dtype(spec)``.
    """
    spec = qparams.spec
    # 32 bits do not fit float32's 24-bit mantissa.
    real = np.float64 if spec.dtype == "int32" else np.float32
    scale = expand(qparams.scale, x.shape, spec.granularity).astype(real)
    zero = expand(qparams.zero_point, x.shape, spec.granularity).astype(real)
    with np.errstate(over="ignore"):
        q = x.astype(real) / scale
        if spec.dtype != FLOAT8:
            q = np.rint(q) + zero
    # fmin and fmax, unlike clip, give NaN a defined result.
    bounded = np.fmax(np.fmin(q, real(spec.qmax)), real(spec.qmin))
    return np.asarray(bounded, storage_dtype(spec))


def dequantize(q: Array, qparams: QParams) -> FloatArray:
    """The float32 values that integers stand for."""
    granularity = qparams.spec.granularity
    scale = np.asarray(expand(qparams.scale, q.shape, granularity), np.float32)
    if qparams.spec.dtype == FLOAT8:
        return np.asarray(q.astype(np.float32) * scale, np.float32)
    zero = expand(qparams.zero_point, q.shape, granularity).astype(np.int64)
    return np.asarray((q.astype(np.int64) - zero).astype(np.float32) * scale, np.float32)


def fake_quantize(x: Array, qparams: QParams) -> FloatArray:
    """``x`` as a runtime sees it after Q and DQ."""
    return dequantize(quantize(x, qparams), qparams)


def weight_range(w: Array, spec: QuantSpec) -> TensorRange:
    """Limits of a constant: +-abs max for a symmetric spec, else lowest and highest.

    One per channel or block as ``spec.granularity`` asks; a last block may be shorter.
    """
    axis, block = spec.granularity.axis, spec.granularity.block
    wide = w.astype(np.float64)
    if wide.size == 0:
        empty = np.zeros(() if axis is None else (w.shape[axis],))
        return TensorRange(empty, empty, "weights")
    if axis is None:
        low, high = np.asarray(wide.min()), np.asarray(wide.max())
    elif block is None:
        rest = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
        low, high = np.asarray(wide.min(axis=rest)), np.asarray(wide.max(axis=rest))
    else:
        starts = np.arange(0, w.shape[axis], block)
        low = np.minimum.reduceat(wide, starts, axis=axis)
        high = np.maximum.reduceat(wide, starts, axis=axis)
    if spec.symmetric:
        high = np.maximum(np.abs(low), np.abs(high))
        low = -high
    return TensorRange(low, high, "weights")


def quantize_weight(
    w: Array, spec: QuantSpec, limits: TensorRange | None = None
) -> tuple[Array, QParams]:
    """Integers and parameters of a constant, from ``limits`` (by default its own range).

    An all-zero channel takes the mean scale of the others instead of 1, so that a bias which shares
    its scale keeps its precision.

    Raises:
        ModelError: the constant holds NaN or infinity.
    """
    if not np.isfinite(w).all():
        raise ModelError(
            "a weight holds NaN or infinity, so no scale represents it; repair the model"
        )
    limits = limits or weight_range(w, spec)
    qparams = solve(limits, spec)
    dead = (np.asarray(limits.low) == 0) & (np.asarray(limits.high) == 0)
    if dead.any() and not dead.all():
        mean = np.float32(qparams.scale[~dead].astype(np.float64).mean())
        qparams = QParams(np.where(dead, mean, qparams.scale), qparams.zero_point, spec)
    return quantize(w, qparams), qparams


def bias_qparams(input_scale: Array, weight_scale: Array) -> QParams:
    """Parameters of an int32 bias: scale s_x * s_w as a kernel's accumulator has it, zero point 0."""
    scale = np.asarray(
        np.asarray(input_scale, np.float32) * np.asarray(weight_scale, np.float32), np.float32
    )
    granularity = PER_TENSOR if scale.ndim == 0 else per_axis(0)
    spec = QuantSpec("int32", symmetric=True, granularity=granularity)
    return QParams(scale, np.zeros(scale.shape, np.int32), spec)


def accumulator_bound(
    q_weight: Array, activation: QuantSpec, axis: int | None
) -> npt.NDArray[np.float64]:
    """Largest |sum of q_x * q_w| that a kernel can reach, one per index of ``axis`` (None: overall).

    ``axis`` is the output-channel axis; without one the bound is that of the whole weight. Kernels that
    read 16 bits accumulate in more than 32, so only the bias itself has to fit: their bound is 0.
    """
    wide = INTEGER_BITS.get(activation.dtype, (8, False))[0] > 8
    reach = 0.0 if wide else float(activation.qmax - activation.qmin)
    rest = (
        None
        if axis is None
        else tuple(i for i in range(q_weight.ndim) if i != axis % q_weight.ndim)
    )
    return np.asarray(reach * np.abs(q_weight.astype(np.float64)).sum(axis=rest))


def quantize_bias(
    bias: Array,
    input_scale: Array,
    weight_scale: Array,
    accumulator: Array | float = 0.0,
) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """An int32 bias that cannot overflow, and the weight scale that it needs.

    Where |bias| / (s_x * s_w) plus ``accumulator`` (see ``accumulator_bound``) would leave int32, the
    weight scale of that channel is enlarged just enough. The caller must quantize the weight again
    with the returned scale wherever it differs from ``weight_scale``.

    Args:
        bias: float, one per output channel.
        input_scale: scalar.
        weight_scale: scalar or one per output channel; a scalar stays one, enlarged for the worst
            channel.
        accumulator: what the products can add at most, scalar or one per channel.

    Raises:
        ModelError: the bias holds NaN or infinity.
    """
    if not np.isfinite(bias).all():
        raise ModelError("a bias holds NaN or infinity, so int32 cannot hold it; repair the model")
    s_x = np.asarray(input_scale, np.float64)
    s_w = np.asarray(weight_scale, np.float32)
    real = bias.astype(np.float64)
    need = np.abs(real) / (s_x * s_w.astype(np.float64)) + np.asarray(accumulator, np.float64)
    if s_w.ndim == 0:
        need = np.asarray(need.max(initial=0.0))
    grow = np.maximum(need / ACCUMULATOR_LIMIT, 1.0)
    adjusted = np.where(grow > 1.0, (s_w * grow).astype(np.float32), s_w).astype(np.float32)
    scale = bias_qparams(np.asarray(input_scale), adjusted).scale.astype(np.float64)
    limit = float(np.iinfo(np.int32).max)
    return np.clip(np.rint(real / scale), -limit, limit).astype(np.int32), adjusted
