"""Layers with 16-bit activations beside 8-bit ones: a pair for each width that is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.backends.ort_lower import lower_ort
from qcompile.ir.errors import TargetError
from qcompile.ir.manager import CompileState
from qcompile.ir.plan import INT16
from qcompile.ir.spec import QuantSpec
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import (
    VNNI,
    feed_for,
    initializers,
    insert,
    node_named,
    ops,
    run,
    sqnr_db,
    state_of,
    text_model,
)

WIDE = replace(VNNI, wide_activation=QuantSpec("uint16", symmetric=False), opset=21)
RNG = np.random.default_rng(5)
W1 = (RNG.standard_normal((16, 4, 3, 3)) * 0.3).astype(np.float32)
W2 = (RNG.standard_normal((16, 16, 3, 3)) * 0.3).astype(np.float32)
B1 = RNG.standard_normal(16).astype(np.float32)

CHAIN = """
g (float[1,4,8,8] x) => (float[1,16,2,2] y) {
  a = Conv (x, w1, b1)
  r = Relu (a)
  m = MaxPool <kernel_shape = [2, 2], strides = [1, 1]> (r)
  y = Conv (m, w2)
}"""


def chain(*wide: str) -> tuple[onnx.ModelProto, CompileState]:
    """The chain with some layers in 16 bits; the rest in 8."""
    proto = text_model(CHAIN.replace("2,2] y", "3,3] y"), opset=21, w1=W1, b1=B1, w2=W2)
    state = state_of(proto, WIDE)
    state.plan = default_plan(state).with_choice(wide, INT16, "asked")
    return proto, state


def test_a_wide_kernel_after_a_narrow_one_reads_a_second_pair() -> None:
    """m is written in 8 bits: its own pair, then the one of 16 bits that the wide Conv reads."""
    proto, state = chain("n_y")
    made = insert(state)
    held = initializers(made)
    assert held["m_zero_point"].dtype == np.uint8 and held["m_zero_point_1"].dtype == np.uint16
    assert node_named(made, "m_QuantizeLinear_1").input[0] == "m_dequantized"
    assert node_named(made, "n_y").input[0] == "m_dequantized_1"
    assert held["y_zero_point"].dtype == np.uint16
    assert ops(made).count("Q") == 5
    assert sqnr_db(run(proto, feed_for(proto))[0], run(made, feed_for(proto))[0]) > 30


def test_movers_hand_sixteen_bits_on_and_biases_stay_float() -> None:
    proto, state = chain("n_a", "n_r", "n_m")
    made = insert(state)
    held = initializers(made)
    assert list(node_named(made, "n_a").input)[2] == "b1"
    assert held["r_zero_point"].dtype == held["m_zero_point"].dtype == np.uint16
    assert held["r_scale"] == held["m_scale"], "MaxPool moves values: one scale"
    assert held["m_zero_point_1"].dtype == np.uint8
    low = held["m_scale_1"] * (0.0 - held["m_zero_point_1"])
    assert held["m_scale"] * (0.0 - held["m_zero_point"]) == pytest.approx(low, abs=1e-3)
    assert sqnr_db(run(proto, feed_for(proto))[0], run(made, feed_for(proto))[0]) > 30


def test_readers_of_both_widths_have_a_pair_each() -> None:
    proto = text_model(
        """g (float[1,4,8,8] x) => (float[1,16,6,6] y) {
          a = Conv (x, w1)  b = Conv (x, w1)  y = Add (a, b) }""",
        opset=21,
        w1=W1,
    )
    state = state_of(proto, WIDE)
    state.plan = default_plan(state).with_choice(["n_b"], INT16, "asked")
    made = insert(state)
    first, second = (node_named(made, name).input[0] for name in ("n_a", "n_b"))
    assert first != second
    held = initializers(made)
    assert {held["x_zero_point"].dtype, held["x_zero_point_1"].dtype} == {
        np.dtype(np.uint8),
        np.dtype(np.uint16),
    }


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_lowered_wide_layers_compute_what_the_portable_model_says(level: str) -> None:
    """The runtime's optimizer would quantize the float weights between 16-bit pairs: it must not."""
    proto, state = chain("n_y")
    portable = insert(state)
    lowered = oir.to_proto(lower_ort(state.model, state.plan).model)
    assert "QLinearConv" in ops(lowered)
    feed = feed_for(proto)
    want, found = run(portable, feed)[0], run(lowered, feed, level)[0]
    # an 8-bit kernel in front may requantize by one step
    assert sqnr_db(want, found) > 35
    assert sqnr_db(run(proto, feed)[0], found) > 30


def test_a_pin_to_sixteen_bits_needs_a_target_that_has_them() -> None:
    _, state = chain()
    assert state.plan is not None
    state = replace(state, target=VNNI, plan=state.plan.pin({"n_y": INT16}))
    with pytest.raises(
        TargetError, match="pinned to int16 but cannot be: the target's form is int8"
    ):
        insert(state)
