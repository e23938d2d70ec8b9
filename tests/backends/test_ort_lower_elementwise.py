"""Sums, products, gates, Concat and Where as integer operators."""

from __future__ import annotations

import pytest

from tests.backends.ort_models import lowered, ops, parse

TWO = """
agraph (float[1,4,3,3] a, float[1,4,3,3] b) => (float[1,4,3,3] y)
  <float sa = {0.02}, uint8 za = {128}, float sb = {0.03}, uint8 zb = {100},
   float sy = {0.05}, uint8 zy = {ZY}, float sw = {0.01}, int8 zw = {0}, int8[4,4,1,1] w =
   {10,-20,30,40,-50,60,7,-80,9,100,-110,120,5,6,-7,8}>
{
  aq = QuantizeLinear(a, sa, za) ad = DequantizeLinear(aq, sa, za)
  bq = QuantizeLinear(b, sb, zb) bd = DequantizeLinear(bq, sb, zb)
  BODY
  oq = QuantizeLinear(o, sy, zy) od = DequantizeLinear(oq, sy, zy)
  wd = DequantizeLinear(w, sw, zw)
  c = Conv<kernel_shape=[1,1]>(od, wd) cq = QuantizeLinear(c, sy, zy)
  y = DequantizeLinear(cq, sy, zy)
}
"""


def two(body: str, zero: int = 100) -> str:
    """``o`` from ``ad`` and ``bd``, followed by an integer Conv."""
    return TWO.replace("BODY", body).replace("ZY", str(zero))


@pytest.mark.parametrize(
    ("body", "kernel"),
    [
        ("o = Add(ad, bd)", "QLinearAdd"),
        ("o = Mul(ad, bd)", "QLinearMul"),
        ("o = Sigmoid(ad)", "QLinearSigmoid"),
        ("o = LeakyRelu<alpha=0.1>(ad)", "QLinearLeakyRelu"),
    ],
)
def test_operator_with_a_kernel(body: str, kernel: str) -> None:
    result = lowered(parse(two(body)), step=0.05)
    assert kernel in ops(result.model)
    assert ops(result.model).count("DequantizeLinear") == 1


def test_relu_behind_a_sum_is_absorbed() -> None:
    result = lowered(parse(two("s = Add(ad, bd) o = Relu(s)", zero=0)), step=0.05)
    assert ops(result.model)[2:4] == ["QLinearAdd", "QLinearConv"]


def test_relu_with_other_parameters_is_one_table() -> None:
    result = lowered(parse(two("o = Relu(ad)", zero=0)), step=0.05)
    assert "QLinearLeakyRelu" in ops(result.model) and "Relu" not in ops(result.model)


def test_relu_with_equal_parameters_is_a_clip() -> None:
    text = two("o = Relu(ad)").replace("QuantizeLinear(o, sy, zy)", "QuantizeLinear(o, sa, za)")
    text = text.replace("DequantizeLinear(oq, sy, zy)", "DequantizeLinear(oq, sa, za)")
    result = lowered(parse(text), step=0.05)
    assert ops(result.model)[1:3] == ["Clip", "QLinearConv"] or "Clip" in ops(result.model)
    assert "QLinearLeakyRelu" not in ops(result.model)


def test_int8_constant_beside_a_uint8_activation_is_shifted() -> None:
    text = two("kd = DequantizeLinear(k, sb, zw) o = Mul(ad, kd)")
    text = text.replace("float sa", "int8[4,1,1] k = {3,-4,100,-100}, float sa")
    result = lowered(parse(text), step=0.05)
    assert "QLinearMul" in ops(result.model)


def test_float_partner_keeps_it_float() -> None:
    text = two("t = Tanh(b) o = Add(ad, t)")
    result = lowered(parse(text), step=None)
    assert "Add" in ops(result.model)
    assert "not quantized" in result.notes[0].text


CONCAT = """
agraph (float[1,2,3,3] a, float[1,2,3,3] b) => (float[1,4,3,3] y)
  <float sa = {0.02}, uint8 za = {128}, float sb = {0.03}, uint8 zb = {100},
   float sy = {0.05}, uint8 zy = {90}, float sw = {0.01}, int8 zw = {0}, int8[4,4,1,1] w =
   {10,-20,30,40,-50,60,7,-80,9,100,-110,120,5,6,-7,8}>
{
  aq = QuantizeLinear(a, sa, za) ad = DequantizeLinear(aq, sa, za)
  bq = QuantizeLinear(b, sb, zb) bd = DequantizeLinear(bq, sb, zb)
  EXTRA
  o = Concat<axis=1>(ad, bd)
  oq = QuantizeLinear(o, sy, zy) od = DequantizeLinear(oq, sy, zy)
  wd = DequantizeLinear(w, sw, zw)
  c = Conv<kernel_shape=[1,1]>(od, wd) cq = QuantizeLinear(c, sy, zy)
  y = DequantizeLinear(cq, sy, zy)
}
"""


def test_tensors_that_only_a_concat_reads_take_its_scale() -> None:
    result = lowered(parse(CONCAT.replace("EXTRA", "")), step=0.15)
    assert ops(result.model) == [
        "QuantizeLinear", "QuantizeLinear", "Concat", "QLinearConv", "DequantizeLinear",
    ]  # fmt: skip


def test_small_parts_with_another_scale_go_through_qlinear_concat() -> None:
    text = CONCAT.replace("EXTRA", "z = Tanh(ad)").replace(
        "=> (float[1,4,3,3] y)", "=> (float[1,4,3,3] y, float[1,2,3,3] z)"
    )
    result = lowered(parse(text), step=0.15)
    assert "QLinearConcat" in ops(result.model)


def test_large_parts_with_another_scale_are_requantized_before_a_plain_concat() -> None:
    text = CONCAT.replace("EXTRA", "z = Tanh(ad)").replace(
        "=> (float[1,4,3,3] y)", "=> (float[1,4,3,3] y, float[1,2,3,3] z)"
    )
    result = lowered(parse(text.replace("3,3]", "64,64]")), step=0.15)
    assert "Concat" in ops(result.model) and "QLinearConcat" not in ops(result.model)


def test_where() -> None:
    text = two("o = Where(m, ad, bd)").replace(
        "(float[1,4,3,3] a,", "(bool[1,1,3,3] m, float[1,4,3,3] a,"
    )
    result = lowered(parse(text), step=0.05)
    assert "QLinearWhere" in ops(result.model)


@pytest.mark.parametrize("body", ["o = GlobalAveragePool(ad)", "o = ReduceMean<axes=[2,3]>(ad)"])
def test_mean_over_the_plane(body: str) -> None:
    text = two(body).replace("=> (float[1,4,3,3] y)", "=> (float[1,4,1,1] y)")
    result = lowered(parse(text), step=0.05)
    assert "QLinearGlobalAveragePool" in ops(result.model)


def test_mean_over_one_axis_stays_float() -> None:
    text = two("o = ReduceMean<axes=[3]>(ad)").replace(
        "=> (float[1,4,3,3] y)", "=> (float[1,4,3,1] y)"
    )
    result = lowered(parse(text), step=None)
    assert "ReduceMean" in ops(result.model) and "spatial" in result.notes[0].text


def test_softmax_has_a_kernel() -> None:
    result = lowered(parse(two("o = Softmax<axis=1>(ad)")), step=0.05)
    assert "QLinearSoftmax" in ops(result.model)


def test_pairs_between_float_operators_vanish() -> None:
    text = """
    agraph (float[2,3] x) => (float[2,3] y) <float s = {0.02}, uint8 z = {128}>
    {
      a = Tanh(x) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)
      b = Exp(ad) bq = QuantizeLinear(b, s, z) y = DequantizeLinear(bq, s, z)
    }"""
    result = lowered(parse(text), step=None)
    assert ops(result.model) == ["Tanh", "Exp"]
    assert result.model.graph.outputs[0].name == "y"


def test_pairs_of_the_users_own_model_stay() -> None:
    text = """
    agraph (float[2,3] x) => (float[2,3] y) <float s = {0.02}, uint8 z = {0}>
    { a = Tanh(x) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z) y = Exp(ad) }"""
    result = lowered(parse(text, foreign=True), step=1e-5)
    assert ops(result.model) == ["Tanh", "QuantizeLinear", "DequantizeLinear", "Exp"]


def test_equal_parameters_cancel() -> None:
    text = two("o = Add(ad, bd)").replace(
        "wd = Deq", "oq2 = QuantizeLinear(od, sy, zy) od2 = DequantizeLinear(oq2, sy, zy) wd = Deq"
    )
    text = text.replace("Conv<kernel_shape=[1,1]>(od,", "Conv<kernel_shape=[1,1]>(od2,")
    result = lowered(parse(text), step=0.05)
    assert ops(result.model).count("QuantizeLinear") == 2
