"""Moving operators, pools and upsampling on integers; Convs with odd channel counts."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.backends.ort_kernels import installed_kernels
from tests.backends.ort_models import lowered, ops, parse

CONVS = """
agraph (float[1,4,8,8] x) => (float[SHAPE] y)
  <float s = {0.05}, uint8 z = {110}, float sw = {0.01}, int8 zw = {0},
   int8[4,4,1,1] w = {10,-20,30,40,-50,60,7,-80,9,100,-110,120,5,6,-7,8} EXTRA>
{
  xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
  wd = DequantizeLinear(w, sw, zw)
  c = Conv<kernel_shape=[1,1]>(xd, wd) cq = QuantizeLinear(c, s, z) cd = DequantizeLinear(cq, s, z)
  BODY
}
"""


def convs(body: str, shape: str, extra: str = "") -> str:
    """``cd`` is what an integer Conv wrote."""
    made = CONVS.replace("BODY", body).replace("SHAPE", shape)
    return made.replace("EXTRA", f", {extra}" if extra else "")


def quantized(op: str) -> str:
    """``o`` through Q/DQ with the input's parameters into another Conv."""
    return f"""{op} oq = QuantizeLinear(o, s, z) od = DequantizeLinear(oq, s, z)
      e = Conv<kernel_shape=[1,1]>(od, wd) eq = QuantizeLinear(e, s, z) y = DequantizeLinear(eq, s, z)"""


def test_max_pool_runs_channels_last() -> None:
    text = convs(quantized("o = MaxPool<kernel_shape=[2,2], strides=[2,2]>(cd)"), "1,4,4,4")
    result = lowered(parse(text), step=0.05)
    assert "NhwcMaxPool" in ops(result.model) and ops(result.model).count("DequantizeLinear") == 1


def test_max_pool_of_three_dimensions_stays_float() -> None:
    text = """
    agraph (float[1,4,8] x) => (float[1,4,4] y)
      <float s = {0.05}, uint8 z = {110}, float sw = {0.01}, int8 zw = {0},
       int8[4,4,1] w = {10,-20,30,40,-50,60,7,-80,9,100,-110,120,5,6,-7,8}>
    {
      xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
      wd = DequantizeLinear(w, sw, zw)
      c = Conv<kernel_shape=[1]>(xd, wd) cq = QuantizeLinear(c, s, z) cd = DequantizeLinear(cq, s, z)
      y = MaxPool<kernel_shape=[2], strides=[2]>(cd)
    }"""
    result = lowered(parse(text), step=0.05)
    assert "MaxPool" in ops(result.model) and "rank 3" in result.notes[0].text


@pytest.mark.parametrize(
    "how",
    [
        'coordinate_transformation_mode="asymmetric", nearest_mode="floor"',
        'coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_floor"',
    ],
)
def test_nearest_upsampling_repeats_rows(how: str) -> None:
    body = quantized(f'o = Resize<mode="nearest", {how}>(cd, , sc)')
    text = convs(body, "1,4,16,24", "float[4] sc = {1.0,1.0,2.0,3.0}")
    result = lowered(parse(text), step=0.05)
    assert "Expand" in ops(result.model) and "Resize" not in ops(result.model)


def test_nearest_upsampling_of_unknown_size_repeats_rows() -> None:
    body = quantized(
        'o = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor">(cd, , sc)'
    )
    text = convs(body, "1,4,A,B", "float[4] sc = {1.0,1.0,2.0,3.0}").replace(
        "float[1,4,8,8] x", "float[1,4,H,W] x"
    )
    result = lowered(parse(text), step=0.05)
    assert "Expand" in ops(result.model) and "Shape" in ops(result.model)


def test_other_nearest_modes_keep_the_resize() -> None:
    body = quantized(
        'o = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="ceil">(cd, , sc)'
    )
    text = convs(body, "1,4,16,24", "float[4] sc = {1.0,1.0,2.0,3.0}")
    result = lowered(parse(text), step=0.05)
    assert "Resize" in ops(result.model) and ops(result.model).count("DequantizeLinear") == 1


def test_linear_resize_stays_float() -> None:
    body = quantized('o = Resize<mode="linear">(cd, , sc)')
    result = lowered(parse(convs(body, "1,4,16,16", "float[4] sc = {1.0,1.0,2.0,2.0}")), step=0.15)
    assert "Resize" in ops(result.model) and "half as fast" in result.notes[0].text


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("o = AveragePool<kernel_shape=[2,2], strides=[2,2]>(cd)", "1,4,4,4"),
        ("o = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(cd)", "1,4,8,8"),
    ],
)
def test_average_pool_is_a_depthwise_conv(op: str, shape: str) -> None:
    result = lowered(parse(convs(quantized(op), shape)), step=0.2)
    assert ops(result.model).count("QLinearConv") == 3


@pytest.mark.parametrize(
    "how", ["pads=[1,1,1,1]", "ceil_mode=1, strides=[2,2]"], ids=["padding", "ceil"]
)
def test_average_pool_with_partial_windows_stays_float(how: str) -> None:
    shape = "1,4,8,8" if "pads" in how else "1,4,4,4"
    text = convs(quantized(f"o = AveragePool<kernel_shape=[3,3], {how}>(cd)"), shape)
    result = lowered(parse(text), step=0.1)
    assert "AveragePool" in ops(result.model) and len(result.notes) == 1


@pytest.mark.parametrize(
    ("op", "shape", "extra"),
    [
        (
            "o = Slice(cd, st, en, ax)",
            "1,4,4,8",
            "int64[1] st = {2}, int64[1] en = {6}, int64[1] ax = {2}",
        ),
        ("o = Transpose<perm=[0,1,3,2]>(cd)", "1,4,8,8", ""),
        ("o = Pad(cd, p)", "1,4,10,10", "int64[8] p = {0,0,1,1,0,0,1,1}"),
        ("o = Pad(cd, p, v)", "1,4,10,10", "int64[8] p = {0,0,1,1,0,0,1,1}, float v = {1.03}"),
        ("o = Gather<axis=2>(cd, i)", "1,4,3,8", "int64[3] i = {0,5,2}"),
        ("r = DepthToSpace<blocksize=2>(cd) o = SpaceToDepth<blocksize=2>(r)", "1,4,8,8", ""),
    ],
)
def test_moving_operators_move_integers(op: str, shape: str, extra: str) -> None:
    if "DepthToSpace" in op and not installed_kernels().has("SpaceToDepth", "", 17, "uint8"):
        pytest.skip("this ONNX Runtime moves no integers in SpaceToDepth")
    result = lowered(parse(convs(quantized(op), shape, extra)), step=0.05)
    assert ops(result.model).count("DequantizeLinear") == 1
    assert ops(result.model).count("QuantizeLinear") == 1


def test_padding_value_out_of_range_stays_float() -> None:
    text = convs(
        quantized("o = Pad(cd, p, v)"),
        "1,4,10,10",
        "int64[8] p = {0,0,1,1,0,0,1,1}, float v = {99.0}",
    )
    result = lowered(parse(text), step=0.05)
    assert "outside the input's range" in result.notes[0].text


def test_split_moves_integers_to_each_output() -> None:
    body = """a, b = Split<axis=1>(cd) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)
      bq = QuantizeLinear(b, s, z) bd = DequantizeLinear(bq, s, z)
      m = Mul(ad, bd) mq = QuantizeLinear(m, s, z) md = DequantizeLinear(mq, s, z)
      y = GlobalAveragePool(md)"""
    result = lowered(parse(convs(body, "1,2,1,1")), step=0.05)
    assert "QLinearMul" in ops(result.model)


def test_float_reader_gets_its_dequantize_behind_the_move() -> None:
    body = "t = Transpose<perm=[0,2,3,1]>(cd) y = Tanh(t)"
    result = lowered(parse(convs(body, "1,8,8,4")), step=0.05)
    assert ops(result.model)[-3:] == ["Transpose", "DequantizeLinear", "Tanh"]


def test_quantize_goes_before_a_move_of_a_float_tensor() -> None:
    text = """
    agraph (float[1,8,8,4] x) => (float[1,4,8,8] y)
      <float s = {0.05}, uint8 z = {110}, float sw = {0.01}, int8 zw = {0},
       int8[4,4,1,1] w = {10,-20,30,40,-50,60,7,-80,9,100,-110,120,5,6,-7,8}>
    {
      t = Transpose<perm=[0,3,1,2]>(x)
      tq = QuantizeLinear(t, s, z) td = DequantizeLinear(tq, s, z) wd = DequantizeLinear(w, sw, zw)
      c = Conv<kernel_shape=[1,1]>(td, wd) cq = QuantizeLinear(c, s, z) y = DequantizeLinear(cq, s, z)
    }"""
    result = lowered(parse(text), step=0.05)
    assert ops(result.model)[:2] == ["QuantizeLinear", "Transpose"]


@pytest.mark.parametrize(("batch", "operator"), [("1", "Concat"), ("N", "Pad")])
def test_input_channels_are_filled_up_to_four(batch: str, operator: str) -> None:
    weight = ",".join(str(v) for v in np.random.default_rng(0).integers(-127, 128, 16 * 3 * 9))
    text = f"""
    agraph (float[{batch},3,8,8] x) => (float[{batch},16,8,8] y)
      <float s = {{0.05}}, uint8 z = {{110}}, float sw = {{0.001}}, int8 zw = {{0}},
       int8[16,3,3,3] w = {{{weight}}}>
    {{
      xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
      wd = DequantizeLinear(w, sw, zw)
      c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(xd, wd)
      cq = QuantizeLinear(c, s, z) y = DequantizeLinear(cq, s, z)
    }}"""
    result = lowered(parse(text), step=0.05)
    assert ops(result.model) == ["QuantizeLinear", operator, "QLinearConv", "DequantizeLinear"]
    weight_value = result.model.graph[2].inputs[3]
    assert weight_value is not None and weight_value.const_value is not None
    assert weight_value.const_value.numpy().shape == (16, 4, 3, 3)


@pytest.mark.parametrize(
    ("outputs", "kernel", "kept"), [(18, 1, True), (8, 3, True), (8, 1, False), (20, 3, False)]
)
def test_output_channels_are_filled_up_and_cut_again(outputs: int, kernel: int, kept: bool) -> None:
    rng = np.random.default_rng(0)
    weight = ",".join(str(v) for v in rng.integers(-127, 128, outputs * 4 * kernel**2))
    scales = ",".join(f"{v:.5f}" for v in rng.uniform(0.001, 0.004, outputs))
    zeros = ",".join("0" for _ in range(outputs))
    bias = ",".join(f"{v:.4f}" for v in rng.standard_normal(outputs))
    pads = kernel // 2
    text = f"""
    agraph (float[1,4,8,8] x) => (float[1,{outputs},8,8] y)
      <float s = {{0.05}}, uint8 z = {{110}}, float[{outputs}] sw = {{{scales}}},
       int8[{outputs}] zw = {{{zeros}}}, float[{outputs}] b = {{{bias}}},
       int8[{outputs},4,{kernel},{kernel}] w = {{{weight}}}>
    {{
      xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
      wd = DequantizeLinear<axis=0>(w, sw, zw)
      c = Conv<kernel_shape=[{kernel},{kernel}], pads=[{pads},{pads},{pads},{pads}]>(xd, wd, b)
      r = Relu(c)
      cq = QuantizeLinear(r, s, z) y = DequantizeLinear(cq, s, z)
    }}"""
    result = lowered(parse(text), step=0.05)
    assert ("Slice" in ops(result.model)) is kept
