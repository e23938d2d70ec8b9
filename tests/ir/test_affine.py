"""Affine arithmetic: bounds from theory, and bit equality with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.ir.affine import (
    ACCUMULATOR_LIMIT,
    QParams,
    TensorRange,
    accumulator_bound,
    bias_qparams,
    dequantize,
    expand,
    fake_quantize,
    quantize,
    quantize_bias,
    quantize_weight,
    solve,
    storage_dtype,
    weight_range,
)
from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.ir.spec import PER_TENSOR, Granularity, QDType, QuantSpec, per_axis, per_block

UINT8 = QuantSpec("uint8", symmetric=False)
INT8 = QuantSpec("int8", symmetric=True, granularity=per_axis(0))
SPECS = [
    QuantSpec(dtype, symmetric=symmetric, narrow=narrow, bits=bits)
    for dtype in ("uint8", "int8", "uint16", "int16", "uint4", "int4")
    for symmetric in (False, True)
    for narrow in (False, True)
    for bits in (None, 7)
    if bits is None or dtype in ("uint8", "int8")
]
reals = st.floats(-(2.0**100), 2.0**100, width=32)


def limits(low: float, high: float) -> TensorRange:
    return TensorRange(np.float64(low), np.float64(high))


@given(st.sampled_from(SPECS), reals, reals, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_error_is_at_most_half_a_step_within_the_range(
    spec: QuantSpec, a: float, b: float, fractions: list[float]
) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    q = solve(limits(low, high), spec)
    x = (low + (high - low) * np.array(fractions)).astype(np.float32)
    error = np.abs(x.astype(np.float64) - fake_quantize(x, q))
    # float32 rounds the scale and the quotient: up to 2**-23 of the value more than half a step
    bound = float(q.scale) / 2 + np.abs(x) * 2.0**-22 + 2.0**-60
    assert (error <= bound).all()


@given(st.sampled_from(SPECS), reals, reals)
def test_zero_is_exact_and_integers_stay_within_limits(spec: QuantSpec, a: float, b: float) -> None:
    q = solve(limits(min(a, b), max(a, b)), spec)
    assert q.scale > 0
    assert np.isfinite(q.scale)
    assert fake_quantize(np.zeros(3, np.float32), q).tolist() == [0, 0, 0]
    assert spec.qmin <= int(q.zero_point) <= spec.qmax
    huge = quantize(np.array([-np.inf, -3e38, 3e38, np.inf, np.nan], np.float32), q)
    assert huge.min() >= spec.qmin
    assert huge.max() <= spec.qmax
    assert huge.dtype == storage_dtype(spec) == q.zero_point.dtype
    assert np.isfinite(dequantize(huge, q)).all()


@given(reals, reals)
def test_quantizing_twice_changes_nothing(a: float, b: float) -> None:
    q = solve(limits(min(a, b), max(a, b)), UINT8)
    x = np.linspace(min(a, b), max(a, b), 50).astype(np.float32)
    once = fake_quantize(x, q)
    assert np.array_equal(fake_quantize(once, q), once)


@pytest.mark.parametrize(
    ("dtype", "narrow", "bits", "zero", "scale"),
    [
        ("uint8", False, None, 128, 8.0 / 127),
        ("uint8", False, 7, 64, 8.0 / 63),
        ("int8", False, None, 0, 8.0 / 127),
        ("int8", True, None, 0, 8.0 / 127),
        ("int4", False, None, 0, 8.0 / 7),
        ("uint4", False, None, 8, 8.0 / 7),
    ],
)
def test_symmetric_zero_points(
    dtype: QDType, narrow: bool, bits: int | None, zero: int, scale: float
) -> None:
    q = solve(limits(-8, 8), QuantSpec(dtype, symmetric=True, narrow=narrow, bits=bits))
    assert int(q.zero_point) == zero
    assert q.scale == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 0.0), (1e-45, 1e-45), (-1e-38, 1e-39), (3.4e38, 3.4e38), (-3.4e38, 3.4e38)],
)
def test_degenerate_ranges_give_safe_scales(low: float, high: float) -> None:
    for spec in SPECS:
        q = solve(limits(low, high), spec)
        assert float(q.scale) ** 2 > float(np.finfo(np.float32).tiny)
        assert np.isfinite(dequantize(np.array([spec.qmin, spec.qmax]), q)).all()
    assert solve(limits(0, 0), UINT8).scale == 1


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1), (0, np.inf), (-np.inf, 0), (2, 1)])
def test_unusable_ranges_are_refused(low: float, high: float) -> None:
    with pytest.raises(CalibrationError, match="range"):
        solve(limits(low, high), UINT8)


def test_half_rounds_to_even() -> None:
    q = QParams(np.float32(1), np.uint8(10), UINT8)
    assert quantize(np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), q).tolist() == [
        10,
        12,
        12,
        10,
        8,
    ]


@settings(max_examples=25)
@given(
    hnp.arrays(np.float32, (4, 6), elements=st.floats(-50, 50, width=32)),
    st.floats(0.0009765625, 1.0, width=32),
    st.integers(0, 255),
)
def test_integers_equal_those_of_onnx_runtime(x: np.ndarray, scale: float, zero: int) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13]>
        g (float[4,6] x, float s, uint8 z) => (uint8[4,6] q, float[4,6] y) {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }"""
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    q, y = session.run(
        None, {"x": x, "s": np.array(scale, np.float32), "z": np.array(zero, np.uint8)}
    )
    params = QParams(np.float32(scale), np.uint8(zero), UINT8)
    assert np.array_equal(quantize(x, params), q)
    assert np.array_equal(dequantize(q, params), y)


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [(PER_TENSOR, ()), (per_axis(0), (8,)), (per_axis(-1), (16,)), (per_block(0, 4), (2, 16))],
)
def test_scales_have_the_shapes_of_the_docstring(
    granularity: Granularity, shape: tuple[int, ...]
) -> None:
    w = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    spec = QuantSpec("int8", symmetric=True, granularity=granularity)
    q, params = quantize_weight(w, spec)
    assert params.scale.shape == params.zero_point.shape == shape
    error = np.abs(dequantize(q, params) - w)
    assert (error <= expand(params.scale, w.shape, granularity) / 2 * (1 + 1e-5)).all()


def test_a_short_last_block_has_its_own_scale() -> None:
    w = np.arange(10, dtype=np.float32).reshape(5, 2)
    spec = QuantSpec("int4", symmetric=True, granularity=per_block(0, 2))
    q, params = quantize_weight(w, spec)
    assert params.scale.shape == (3, 2)
    assert q[4].tolist() == [7, 7]
    assert np.abs(q).max() <= 7


def test_weight_range_is_abs_max_per_channel() -> None:
    w = np.array([[[1.0, -3.0]], [[2.0, 0.5]]], np.float32)
    found = weight_range(w, INT8)
    assert found.low.tolist() == [-3, -2]
    assert found.high.tolist() == [3, 2]
    free = weight_range(w, QuantSpec("uint8", symmetric=False))
    assert (float(free.low), float(free.high)) == (-3, 2)


def test_zero_channels_share_the_mean_scale_and_stay_zero() -> None:
    w = np.array([[0.0, 0.0], [1.27, -1.0], [2.54, 0.0]], np.float32)
    q, params = quantize_weight(w, INT8)
    assert q[0].tolist() == [0, 0]
    assert params.scale == pytest.approx([0.015, 0.01, 0.02], rel=1e-5)
    q, params = quantize_weight(np.zeros((2, 2), np.float32), INT8)
    assert params.scale.tolist() == [1, 1]
    assert not q.any()


def test_empty_weights_have_a_scale() -> None:
    q, params = quantize_weight(np.zeros((0, 3), np.float32), INT8)
    assert q.shape == (0, 3)
    assert params.scale.shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_and_biases_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        quantize_weight(np.array([[1.0, bad]], np.float32), INT8)
    with pytest.raises(ModelError, match="NaN or infinity"):
        quantize_bias(np.array([bad]), np.float32(1), np.ones(1, np.float32))


@given(
    st.lists(st.floats(-1e12, 1e12), min_size=3, max_size=3),
    st.floats(1e-12, 10.0),
    st.lists(st.floats(1e-15, 1.0), min_size=3, max_size=3),
    st.floats(0, 2.0**33),
)
def test_biases_never_overflow(
    bias: list[float], s_x: float, s_w: list[float], accumulator: float
) -> None:
    real, scale = np.array(bias), np.array(s_w, np.float32)
    q, adjusted = quantize_bias(real, np.float32(s_x), scale, accumulator)
    assert q.dtype == np.int32
    assert (adjusted >= scale).all()
    # the products shrink as the weight scale grows
    grown = accumulator * scale.astype(np.float64) / adjusted
    assert (np.abs(q.astype(np.float64)) + grown <= 2.0**31 - 1).all()
    step = bias_qparams(np.float32(s_x), adjusted).scale.astype(np.float64)
    assert (np.abs(q * step - real) <= step / 2 + np.abs(real) * 1e-6).all()


def test_only_the_channel_that_overflows_is_adjusted() -> None:
    scale = np.array([0.01, 1e-9], np.float32)
    q, adjusted = quantize_bias(np.array([0.5, 3.0]), np.float32(0.1), scale)
    assert adjusted[0] == scale[0]
    assert adjusted[1] > scale[1]
    assert q[0] == 500
    assert q[1] <= ACCUMULATOR_LIMIT * (1 + 1e-6)


def test_a_scalar_weight_scale_stays_scalar() -> None:
    q, adjusted = quantize_bias(np.array([1.0, 1e9]), np.float32(0.1), np.float32(1e-3))
    assert adjusted.shape == ()
    assert adjusted > 1e-3
    assert abs(int(q[1])) <= ACCUMULATOR_LIMIT * (1 + 1e-6)
    q, adjusted = quantize_bias(np.zeros(0), np.float32(0.1), np.float32(1e-3))
    assert q.shape == (0,)


def test_accumulators_of_long_sums_enlarge_the_scale() -> None:
    w = np.ones((1, 100_000), np.float32)
    q_w, params = quantize_weight(w, INT8)
    reach = accumulator_bound(q_w, UINT8, 0)
    assert reach == 100_000 * 127 * 255
    _, adjusted = quantize_bias(np.zeros(1), np.float32(0.1), params.scale, reach)
    again = quantize(w, QParams(adjusted, params.zero_point, INT8))
    assert accumulator_bound(again, UINT8, 0) < 2**31
    assert accumulator_bound(q_w, UINT8, None) == reach[0]
