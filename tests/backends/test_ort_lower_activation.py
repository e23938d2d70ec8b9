"""HardSwish, HardSigmoid and SiLU: clipped integers, aligned scales, QuickGelu."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.backends.ort_lower import lower_ort
from tests.backends.ort_models import feeds_for, lowered, ops, parse, run

TEXT = """
agraph (float[1,4,3,3] x) => (float[1,4,3,3] y)
  <float s = {SCALE}, uint8 z = {ZERO}, float so = {SO}, uint8 zo = {ZO}, float sw = {0.01},
   int8 zw = {0}, float sy = {0.05}, uint8 zy = {128},
   int8[4,4,1,1] w = {10,-20,30,40,-50,60,7,-80,9,100,-110,120,5,6,-7,8}>
{
  xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
  BODY
  oq = QuantizeLinear(o, so, zo) od = DequantizeLinear(oq, so, zo)
  wd = DequantizeLinear(w, sw, zw)
  c = Conv<kernel_shape=[1,1]>(od, wd) cq = QuantizeLinear(c, sy, zy)
  y = DequantizeLinear(cq, sy, zy)
}
"""


def text(body: str, scale: float = 0.05, zero: int = 128, so: float = 0.03, zo: int = 20) -> str:
    """``o`` from ``xd``, followed by an integer Conv."""
    made = TEXT.replace("BODY", body).replace("SCALE", repr(scale)).replace("ZERO", str(zero))
    return made.replace("SO}", f"{so!r}}}").replace("ZO}", f"{zo}}}")


def test_hard_swish_is_a_clip_and_a_product() -> None:
    result = lowered(parse(text("o = HardSwish(xd)")), step=0.05)
    assert ops(result.model) == [
        "QuantizeLinear", "Clip", "QLinearMul", "QLinearConv", "DequantizeLinear",
    ]  # fmt: skip


def test_scale_is_moved_so_that_three_is_a_whole_number_of_steps() -> None:
    result = lowered(parse(text("o = HardSwish(xd)", scale=0.047)), step=0.15)
    used = result.model.graph[0].inputs[1]
    assert used is not None and used.const_value is not None
    scale = float(used.const_value.numpy())
    assert abs(3 / scale - round(3 / scale)) < 1e-4 and 0.047 <= scale < 0.05


def test_range_is_widened_to_reach_the_foot() -> None:
    result = lowered(parse(text("o = HardSwish(xd)", scale=0.05, zero=50)), step=0.15)
    assert "QLinearMul" in ops(result.model)
    assert "to reach -3" in result.notes[0].text and result.notes[0].changed


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.01, 0.2), zero=st.integers(0, 255), alpha=st.sampled_from([1 / 6, 0.2, 0.5])
)
def test_hard_activations_stay_within_a_few_steps(scale: float, zero: int, alpha: float) -> None:
    low, high = -scale * zero, scale * (255 - zero)
    body = f"g = HardSigmoid<alpha={alpha!r}, beta=0.5>(xd) o = Mul(xd, g)"
    for body in (f"o = HardSigmoid<alpha={alpha!r}, beta=0.5>(xd)", "o = HardSwish(xd)"):
        swish = "HardSwish" in body
        so = max(high, 0.5) / 245 if swish else 1 / 255
        model = parse(text(body, scale, zero, so, 8 if swish else 0))
        feeds = {"x": np.linspace(low, high, 36, dtype=np.float32).reshape(1, 4, 3, 3)}
        want = run(model, feeds, optimize=False)[0]
        got = run(lower_ort(model).model, feeds)[0]
        # one step of the input's (perhaps coarser) scale, of the output's, and of the Conv's, as
        # the Conv's weights (at most 2.9 in sum) pass them on
        assert np.abs(got - want).max() <= 2.9 * (2 * 1.5 * scale + 2 * so) + 0.05 * 2


def test_range_far_above_the_foot_stays_float() -> None:
    result = lowered(parse(text("o = HardSwish(xd)", scale=0.004, zero=0)), step=None)
    assert "HardSwish" in ops(result.model) and "stays float" in result.notes[0].text


def test_hard_sigmoid_is_a_clip() -> None:
    result = lowered(
        parse(text("o = HardSigmoid<alpha=0.2, beta=0.5>(xd)", so=0.004, zo=0)), step=0.05
    )
    assert ops(result.model) == ["QuantizeLinear", "Clip", "QLinearConv", "DequantizeLinear"]


def test_silu_becomes_quick_gelu() -> None:
    body = """g = Sigmoid(xd) gq = QuantizeLinear(g, sg, zg) gd = DequantizeLinear(gq, sg, zg)
      o = Mul(xd, gd)"""
    made = text(body).replace("float s =", "float sg = {0.00392}, uint8 zg = {0}, float s =")
    result = lowered(parse(made), step=0.1)
    assert "QuickGelu" in ops(result.model) and "QLinearSigmoid" not in ops(result.model)
    fused = next(n for n in result.model.graph if n.op_type == "QuickGelu")
    assert fused.metadata_props["qcompile.origin"] == "n_o\nn_g"


def test_gate_of_another_tensor_is_no_silu() -> None:
    body = "t = Tanh(x) g = Sigmoid(t) o = Mul(xd, g)"
    result = lower_ort(parse(text(body)))
    assert "QuickGelu" not in ops(result.model)
    feeds = feeds_for(result.model)
    np.testing.assert_allclose(
        run(result.model, feeds)[0], run(result.model, feeds, optimize=False)[0], atol=0.0501
    )
