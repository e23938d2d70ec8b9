"""Conv, MatMul and Gemm as integer operators: structure, numbers within one step, refusals."""

from __future__ import annotations

import pytest

from tests.backends.ort_models import lowered, ops, parse

CONV = """
agraph (float[1,3,6,6] x) => (float[1,4,6,6] y)
  <float sx = {0.02}, uint8 zx = {128}, float[4] sw = {0.01, 0.02, 0.015, 0.03}, int8[4] zw = {0,0,0,0},
   float[4] sb = {0.0002, 0.0004, 0.0003, 0.0006}, int32[4] zb = {0,0,0,0}, int32[4] b = {10,-200,30,500},
   float sy = {0.01}, uint8 zy = {ZY}, int8[4,3,1,1] w = {10,-20,30,40,-50,60,7,-80,9,100,-110,120}>
{
  xq = QuantizeLinear(x, sx, zx)
  xd = DequantizeLinear(xq, sx, zx)
  wd = DequantizeLinear<axis=0>(w, sw, zw)
  bd = DequantizeLinear<axis=0>(b, sb, zb)
  c = Conv<kernel_shape=[1,1]>(xd, wd, bd)
  ACT
  yq = QuantizeLinear(LAST, sy, zy)
  y = DequantizeLinear(yq, sy, zy)
}
"""


def conv(act: str = "", last: str = "c", zero: int = 100) -> str:
    return CONV.replace("ACT", act).replace("LAST", last).replace("ZY", str(zero))


def test_conv_becomes_qlinear_conv() -> None:
    result = lowered(parse(conv()), step=0.01)
    assert ops(result.model) == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
    node = result.model.graph[1]
    assert node.name == "n_c" and node.outputs[0].name == "yq"
    assert node.inputs[8] is not None and node.inputs[8].name == "b"
    assert result.notes == ()


def test_relu_is_absorbed_where_the_zero_point_is_lowest() -> None:
    result = lowered(parse(conv("r = Relu(c)", "r", zero=0)), step=0.01)
    assert ops(result.model) == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
    assert result.model.graph[1].metadata_props["qcompile.origin"] == "n_c\nn_r"


def test_relu_above_the_lowest_integer_becomes_an_integer_clip() -> None:
    result = lowered(parse(conv("r = Relu(c)", "r", zero=3)), step=0.01)
    assert ops(result.model) == ["QuantizeLinear", "QLinearConv", "Clip", "DequantizeLinear"]


@pytest.mark.parametrize(("high", "clips"), [("2.55", False), ("6.0", False), ("1.0", True)])
def test_clip_is_absorbed_where_the_range_ends_with_it(high: str, clips: bool) -> None:
    text = conv("r = Clip(c, lo, hi)", "r", zero=0).replace(
        "float sx", f"float lo = {{0.0}}, float hi = {{{high}}}, float sx"
    )
    result = lowered(parse(text), step=0.01)
    assert ("Clip" in ops(result.model)) is clips


def test_float_bias_is_quantized_at_the_product_of_the_scales() -> None:
    text = conv().replace("int32[4] b = {10,-200,30,500}", "float[4] b = {0.1,-0.2,0.05,0.4}")
    text = text.replace("bd = DequantizeLinear<axis=0>(b, sb, zb)\n", "").replace("wd, bd", "wd, b")
    result = lowered(parse(text), step=0.01)
    assert "QLinearConv" in ops(result.model)


def test_conv_without_quantized_output_stays() -> None:
    text = (
        conv()
        .replace("yq = QuantizeLinear(c, sy, zy)", "")
        .replace("y = DequantizeLinear(yq, sy, zy)", "y = Tanh(c)")
    )
    result = lowered(parse(text), step=None)
    assert "Conv" in ops(result.model)
    assert "is not quantized" in result.notes[0].text and result.notes[0].where == "n_c"


def test_conv_read_as_float_too_stays() -> None:
    text = conv().replace("(float[1,4,6,6] y)", "(float[1,4,6,6] y, float[1,4,6,6] z)")
    text = text.replace("yq = Quant", "z = Tanh(c)\n yq = Quant")
    result = lowered(parse(text), step=None)
    assert "Conv" in ops(result.model) and len(result.notes) == 1


def test_weight_scales_along_another_axis_stay() -> None:
    text = conv().replace(
        "wd = DequantizeLinear<axis=0>(w, sw, zw)", "wd = DequantizeLinear<axis=1>(w, s3, z3)"
    )
    text = text.replace("float sx", "float[3] s3 = {0.1,0.2,0.3}, int8[3] z3 = {0,0,0}, float sx")
    result = lowered(parse(text), step=None)
    assert ops(result.model) == ["Conv"] and "axis 1" in result.notes[0].text


MATMUL = """
agraph (float[N,5,4] x) => (float[N,5,3] y)
  <float sx = {0.02}, uint8 zx = {128}, float[3] sw = {0.01, 0.02, 0.015}, int8[3] zw = {0,0,0},
   float sy = {0.01}, uint8 zy = {120}, int8[4,3] w = {10,-20,30,40,-50,60,7,-80,9,100,-110,120},
   float[3] bias = {0.5, -0.25, 0.125}>
{
  xq = QuantizeLinear(x, sx, zx)
  xd = DequantizeLinear(xq, sx, zx)
  wd = DequantizeLinear<axis=1>(w, sw, zw)
  REST
}
"""


def matmul(rest: str) -> str:
    return MATMUL.replace("REST", rest)


def test_matmul_with_quantized_output() -> None:
    rest = "m = MatMul(xd, wd) yq = QuantizeLinear(m, sy, zy) y = DequantizeLinear(yq, sy, zy)"
    result = lowered(parse(matmul(rest)), step=0.01)
    assert ops(result.model) == ["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]


def test_matmul_with_float_output() -> None:
    result = lowered(parse(matmul("m = MatMul(xd, wd) y = Tanh(m)")), step=1e-5)
    assert ops(result.model) == ["QuantizeLinear", "MatMulIntegerToFloat", "Tanh"]


def test_matmul_takes_the_bias_behind_it() -> None:
    result = lowered(parse(matmul("m = MatMul(xd, wd) y = Add(bias, m)")), step=1e-5)
    assert ops(result.model) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert result.model.graph[1].metadata_props["qcompile.origin"] == "n_m\nn_y"
    assert result.model.graph.outputs[0].name == "y"


def test_no_rounding_between_a_matmul_and_its_bias() -> None:
    rest = """m = MatMul(xd, wd) mq = QuantizeLinear(m, sy, zy) md = DequantizeLinear(mq, sy, zy)
      a = Add(md, bias) aq = QuantizeLinear(a, sy, zy) ad = DequantizeLinear(aq, sy, zy)
      n = MatMul(ad, vd) y = Tanh(n)"""
    text = matmul(rest).replace("wd = Deq", "vd = DequantizeLinear<axis=1>(v, sw, zw) wd = Deq")
    text = text.replace("float sx", "int8[3,3] v = {1,2,3,4,5,6,7,8,9}, float sx")
    result = lowered(parse(text), step=0.04)
    assert ops(result.model) == [
        "QuantizeLinear", "MatMulIntegerToFloat", "QuantizeLinear", "MatMulIntegerToFloat", "Tanh",
    ]  # fmt: skip


def test_matmul_of_two_activations() -> None:
    text = """
    agraph (float[2,3,4] x, float[2,4,3] z) => (float[2,3,3] y)
      <float s = {0.03}, uint8 zp = {128}, float sy = {0.05}>
    {
      xq = QuantizeLinear(x, s, zp) xd = DequantizeLinear(xq, s, zp)
      zq = QuantizeLinear(z, s, zp) zd = DequantizeLinear(zq, s, zp)
      m = MatMul(xd, zd) yq = QuantizeLinear(m, sy, zp) y = DequantizeLinear(yq, sy, zp)
    }"""
    result = lowered(parse(text), step=0.05)
    assert ops(result.model).count("QLinearMatMul") == 1


def test_matmul_with_scales_along_rows_stays() -> None:
    rest = "m = MatMul(xd, wr) y = Tanh(m)"
    text = matmul(rest).replace(
        "wd = DequantizeLinear<axis=1>(w, sw, zw)", "wr = DequantizeLinear<axis=0>(w, s4, z4)"
    )
    text = text.replace(
        "float sx", "float[4] s4 = {0.1,0.1,0.2,0.3}, int8[4] z4 = {0,0,0,0}, float sx"
    )
    result = lowered(parse(text), step=None)
    assert "MatMul" in ops(result.model) and "axis 0" in result.notes[0].text


GEMM = """
agraph (float[N,4] x) => (float[N,3] y)
  <float sx = {0.02}, uint8 zx = {128}, float[3] sw = {0.01, 0.02, 0.015}, int8[3] zw = {0,0,0},
   float[3] sb = {0.0002, 0.0004, 0.0003}, int32[3] zb = {0,0,0}, int32[3] b = {100,-200,300},
   float sy = {0.01}, uint8 zy = {120}, int8[3,4] w = {10,-20,30,40,-50,60,7,-80,9,100,-110,120}>
{
  xq = QuantizeLinear(x, sx, zx)
  xd = DequantizeLinear(xq, sx, zx)
  wd = DequantizeLinear<axis=0>(w, sw, zw)
  bd = DequantizeLinear<axis=0>(b, sb, zb)
  REST
}
"""


def test_gemm_with_quantized_output() -> None:
    rest = "g = Gemm<transB=1>(xd, wd, bd) yq = QuantizeLinear(g, sy, zy) y = DequantizeLinear(yq, sy, zy)"
    result = lowered(parse(GEMM.replace("REST", rest)), step=0.01)
    assert ops(result.model) == ["QuantizeLinear", "QGemm", "DequantizeLinear"]


@pytest.mark.parametrize("inputs", ["xd, wd, bd", "xd, wd"])
def test_gemm_with_float_output(inputs: str) -> None:
    result = lowered(parse(GEMM.replace("REST", f"y = Gemm<transB=1>({inputs})")), step=1e-4)
    assert ops(result.model) == ["QuantizeLinear", "QGemm"]


@pytest.mark.parametrize("shape", ["", "[1]"])
def test_gemm_with_one_column(shape: str) -> None:
    """Exporters give a single channel's scale as a scalar or as a list of one."""
    text = f"""
    agraph (float[2,3] x) => (float[2,1] y)
      <float sx = {{0.02}}, uint8 zx = {{128}}, float{shape} sw = {{0.01}}, int8{shape} zw = {{0}},
       int8[3,1] w = {{10,-20,30}}>
    {{
      xq = QuantizeLinear(x, sx, zx)
      xd = DequantizeLinear(xq, sx, zx)
      wd = DequantizeLinear<axis=1>(w, sw, zw)
      y = Gemm(xd, wd)
    }}
    """
    assert ops(lowered(parse(text), step=1e-4).model) == ["QuantizeLinear", "QGemm"]


def test_gemm_with_beta_stays() -> None:
    result = lowered(
        parse(GEMM.replace("REST", "y = Gemm<transB=1, beta=0.5>(xd, wd, bd)")), step=None
    )
    assert "Gemm" in ops(result.model) and "beta" in result.notes[0].text


def test_operators_of_a_region_need_no_float_between() -> None:
    weight = ",".join(str((37 * i) % 255 - 127) for i in range(256))
    text = """
    agraph (float[1,16,4,4] x) => (float[1,16,4,4] y)
      <float s = {0.05}, uint8 z = {100}, float sw = {0.002}, int8 zw = {0},
       int8[16,16,1,1] w = {WEIGHT}>
    {
      xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
      wd = DequantizeLinear(w, sw, zw)
      c = Conv<kernel_shape=[1,1]>(xd, wd) cq = QuantizeLinear(c, s, z) cd = DequantizeLinear(cq, s, z)
      a = Add(cd, xd) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)
      g = Sigmoid(ad) gq = QuantizeLinear(g, s, z) gd = DequantizeLinear(gq, s, z)
      m = Mul(gd, cd) mq = QuantizeLinear(m, s, z) y = DequantizeLinear(mq, s, z)
    }"""
    result = lowered(parse(text.replace("WEIGHT", weight)), step=0.1)
    assert ops(result.model) == [
        "QuantizeLinear", "QLinearConv", "QLinearAdd", "QLinearSigmoid", "QLinearMul", "DequantizeLinear",
    ]  # fmt: skip
