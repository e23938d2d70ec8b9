"""Concat on integers: what is rounded how often, and what is copied."""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from tests.backends.ort_models import feeds_for, lowered, ops, parse, run

SPLIT = """
agraph (float[1,8,32,32] x) => (float[1,12,32,32] y)
  <float sa = {0.01}, uint8 za = {60}, float sb = {0.03}, uint8 zb = {60}, int64[2] two = {4, 4},
   float sw = {0.01}, int8 zw = {0}, int8[12,12,1,1] w = {WEIGHT}>
{
  g = Sigmoid(x) h = Mul(x, g)
  hq = QuantizeLinear(h, sa, za) hd = DequantizeLinear(hq, sa, za)
  a, b = Split<axis=1>(hd, two)
  aq = QuantizeLinear(a, sa, za) ad = DequantizeLinear(aq, sa, za)
  bq = QuantizeLinear(b, sa, za) bd = DequantizeLinear(bq, sa, za)
  m = LeakyRelu<alpha=0.5>(bd)
  mq = QuantizeLinear(m, sa, za) md = DequantizeLinear(mq, sa, za)
  o = Concat<axis=1>(ORDER, md)
  oq = QuantizeLinear(o, sb, zb) od = DequantizeLinear(oq, sb, zb)
  wd = DequantizeLinear(w, sw, zw)
  c = Conv<kernel_shape=[1,1]>(od, wd) cq = QuantizeLinear(c, sb, zb)
  y = DequantizeLinear(cq, sb, zb)
}
"""


def split(order: str = "ad, bd", second: float = 0.03) -> oir.Model:
    numbers = ", ".join(str(n % 17 - 8) for n in range(144))
    text = SPLIT.replace("WEIGHT", numbers).replace("ORDER", order)
    return parse(text.replace("sb = {0.03}", f"sb = {{{second}}}"))


def test_a_whole_split_is_the_tensor_before_it_and_is_rounded_once() -> None:
    result = lowered(split(), step=0.1)
    assert ops(result.model) == [
        "QuickGelu", "QuantizeLinear", "Slice", "QLinearLeakyRelu", "QuantizeLinear", "Concat",
        "QLinearConv", "DequantizeLinear",
    ]  # fmt: skip
    first, second = (n for n in result.model.graph if n.op_type == "QuantizeLinear")
    assert first.inputs[0] is second.inputs[0]


def test_equal_scales_copy_the_integers_before_the_split() -> None:
    result = lowered(split(second=0.01), step=0.04)
    concat = next(n for n in result.model.graph if n.op_type == "Concat")
    assert ops(result.model).count("QuantizeLinear") == 1
    producer = None if concat.inputs[0] is None else concat.inputs[0].producer()
    assert producer is not None and producer.op_type == "QuantizeLinear"


def test_a_split_in_another_order_stays() -> None:
    result = lowered(split("bd, ad"), step=0.1)
    assert "Split" in ops(result.model) and "Slice" not in ops(result.model)


GROWN = """
agraph (float[1,2,16,16] x, float[1,2,32,32] z) => (float[1,4,32,32] y, float[1,2,16,16] r)
  <float sa = {0.01}, uint8 za = {128}, float sb = {0.03}, uint8 zb = {128},
   float[4] grow = {1, 1, 2, 2}, float sw = {0.01}, int8 zw = {0},
   int8[4,4,1,1] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>
{
  t = Tanh(x)
  tq = QuantizeLinear(t, sa, za) td = DequantizeLinear(tq, sa, za)
  l = LeakyRelu<alpha=0.5>(td)
  lq = QuantizeLinear(l, sa, za) r = DequantizeLinear(lq, sa, za)
  u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
             nearest_mode="floor">(td, , grow)
  uq = QuantizeLinear(u, sa, za) ud = DequantizeLinear(uq, sa, za)
  zq = QuantizeLinear(z, sb, zb) zd = DequantizeLinear(zq, sb, zb)
  o = Concat<axis=1>(ud, zd)
  oq = QuantizeLinear(o, sb, zb) od = DequantizeLinear(oq, sb, zb)
  wd = DequantizeLinear(w, sw, zw)
  c = Conv<kernel_shape=[1,1]>(od, wd) cq = QuantizeLinear(c, sb, zb)
  y = DequantizeLinear(cq, sb, zb)
}
"""


def test_what_grows_for_a_concat_alone_is_quantized_for_it_before_it_grows() -> None:
    result = lowered(parse(GROWN), step=0.05)
    nodes = list(result.model.graph)
    resize = next(n for n in nodes if n.op_type == "Resize")
    before = None if resize.inputs[0] is None else resize.inputs[0].producer()
    assert before is not None and before.op_type == "QuantizeLinear"
    scale = before.inputs[1]
    assert scale is not None and scale.const_value is not None
    assert float(scale.const_value.numpy()) == np.float32(0.03)
    assert sum(n.op_type == "QuantizeLinear" for n in nodes) == 3


def test_the_saturation_of_a_users_quantize_stays() -> None:
    model = split()
    for node in model.graph:
        node.metadata_props["qcompile.origin"] = node.name or ""
    lower = lowered(model, step=0.1)
    (got,) = run(lower.model, feeds_for(model))
    (want,) = run(model, feeds_for(model), optimize=False)
    np.testing.assert_allclose(got, want, atol=0.1)


REACH = """
agraph (float[1,2,32,32] x, float[1,2,32,32] z) => (float[1,4,32,32] y, float[1,2,32,32] r)
  <float sa = {0.0110}, uint8 za = {128}, float sb = {SCALE}, uint8 zb = {128},
   float sw = {0.01}, int8 zw = {0}, int8[4,4,1,1] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>
{
  t = Tanh(x) tq = QuantizeLinear(t, sa, za) td = DequantizeLinear(tq, sa, za)
  l = LeakyRelu<alpha=0.5>(td) lq = QuantizeLinear(l, sa, za) r = DequantizeLinear(lq, sa, za)
  u = Tanh(z) uq = QuantizeLinear(u, sb, zb) ud = DequantizeLinear(uq, sb, zb)
  o = Concat<axis=1>(td, ud) oq = QuantizeLinear(o, sb, zb) od = DequantizeLinear(oq, sb, zb)
  wd = DequantizeLinear(w, sw, zw)
  c = Conv<kernel_shape=[1,1]>(od, wd) cq = QuantizeLinear(c, sb, zb)
  y = DequantizeLinear(cq, sb, zb)
}
"""


def test_a_range_that_ends_a_little_before_its_parts_reaches_them() -> None:
    result = lowered(parse(REACH.replace("SCALE", "0.0100")), step=0.03)
    concat = next(n for n in result.model.graph if n.op_type == "Concat")
    written = [v.producer() for v in concat.inputs if v is not None]
    scales = {float(n.inputs[1].const_value.numpy()) for n in written if n and n.inputs[1]}  # type: ignore[union-attr]
    assert len(scales) == 1 and scales.pop() > 0.0105
    assert ops(result.model).count("QuantizeLinear") == 2


def test_a_part_far_beyond_the_range_keeps_its_own_scale() -> None:
    result = lowered(parse(REACH.replace("SCALE", "0.0060")), step=0.9)
    assert "QLinearConcat" in ops(result.model)
