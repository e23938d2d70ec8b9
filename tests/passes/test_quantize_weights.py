"""QuantizeWeights: the room that scales leave for the int32 bias."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.ir.affine import QParams
from qcompile.passes.integer_region import integer_region
from qcompile.passes.quantize_weights import choose_weights, integer_bias
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import VNNI, state_of, text_model

GEMM = "g (float[N,8] x) => (float[N,64] y) { y = Gemm (x, w, b) }"


@settings(max_examples=60, deadline=None)
@given(
    size=st.floats(-12, 2),
    bias=st.floats(-3, 3),
    input_scale=st.floats(-6, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_bias_fits_once_room_was_made(
    size: float, bias: float, input_scale: float, seed: int
) -> None:
    """Weights from 1e-12 to 100: no rounding of an enlarged scale may leave the bias outside."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((8, 64)) * 10**size).astype(np.float32)
    proto = text_model(GEMM, w=weight, b=(rng.standard_normal(64) * 10**bias).astype(np.float32))
    state = state_of(proto, calibrate=False)
    state.plan = default_plan(state)
    scale = np.asarray(10**input_scale, np.float32)
    state.qparams["x"] = QParams(scale, np.asarray(3, np.uint8), VNNI.activation)
    region = integer_region(state)
    choose_weights(state, region)
    site = next(iter(region.sites.values()))
    values, qparams = integer_bias(state, site, state.weights["w"])
    reach = 255.0 * np.abs(state.weights["w"].values.astype(np.float64)).sum(axis=0)
    assert (np.abs(values.astype(np.float64)) + reach <= 2**31 - 1).all()
    np.testing.assert_array_equal(qparams.scale, scale * state.weights["w"].qparams.scale)
