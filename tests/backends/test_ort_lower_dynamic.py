"""Layers that quantize their input at run time; float parts; operators kept float."""

from __future__ import annotations

import numpy as np
import onnx_ir as oir
import onnxruntime as ort
import pytest

from qcompile.backends.ort_kernels import RECORDED, installed_kernels, recorded_kernels
from qcompile.backends.ort_lower import lower_ort
from qcompile.ir.plan import LayerChoice, PrecisionPlan
from tests.backends.ort_models import feeds_for, lowered, ops, parse, run


def dynamic(*origins: str) -> PrecisionPlan:
    return PrecisionPlan(tuple(LayerChoice(o, "", "int8-dynamic", "test") for o in origins))


def compare(model: oir.Model, plan: PrecisionPlan, tolerance: float) -> oir.Model:
    """The lowered model; its outputs lie within ``tolerance`` of the float model's largest value."""
    result = lower_ort(model, plan)
    assert result.notes == ()
    feeds = feeds_for(model)
    for want, got in zip(run(model, feeds), run(result.model, feeds), strict=True):
        assert np.abs(got - want).max() <= tolerance * np.abs(want).max()
    return result.model


def weights(shape: tuple[int, ...], seed: int = 0) -> str:
    values = np.random.default_rng(seed).standard_normal(int(np.prod(shape)))
    return ",".join(f"{v:.4f}" for v in values)


def test_matmul_with_bias() -> None:
    text = f"""
    agraph (float[2,5,16] x) => (float[2,5,8] y)
      <float[16,8] w = {{{weights((16, 8))}}}, float[8] b = {{{weights((8,))}}}>
    {{ m = MatMul(x, w) y = Add(m, b) }}"""
    made = compare(parse(text), dynamic("n_m"), 0.02)
    assert ops(made) == ["DynamicQuantizeMatMul"]
    assert made.graph[0].metadata_props["qcompile.origin"] == "n_m\nn_y"


def test_readers_of_one_tensor_share_its_quantization() -> None:
    text = f"""
    agraph (float[2,5,16] x) => (float[2,5,8] p, float[2,5,8] q)
      <float[16,8] w = {{{weights((16, 8))}}}, float[16,8] v = {{{weights((16, 8), 1)}}}>
    {{ p = MatMul(x, w) q = MatMul(x, v) }}"""
    made = compare(parse(text), dynamic("n_p", "n_q"), 0.02)
    assert ops(made) == ["DynamicQuantizeLinear", "MatMulIntegerToFloat", "MatMulIntegerToFloat"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    shape = (8, 16) if transposed else (16, 8)
    text = f"""
    agraph (float[N,16] x) => (float[N,8] y)
      <float[{shape[0]},{shape[1]}] w = {{{weights(shape)}}}, float[8] b = {{{weights((8,))}}}>
    {{ y = Gemm<transB={transposed}>(x, w, b) }}"""
    assert ops(compare(parse(text), dynamic("n_y"), 0.02)) == ["DynamicQuantizeMatMul"]


LSTM = """
agraph (float[6,2,12] x) => (float[6,{D},2,16] y, float[{D},2,16] h)
  <float[{D},64,12] w = {{{W}}}, float[{D},64,16] r = {{{R}}}, float[{D},128] b = {{{B}}}>
{{ y, h = LSTM<hidden_size=16, direction="{NAME}">(x, w, r, b) }}"""


@pytest.mark.parametrize(("directions", "name"), [(1, "forward"), (2, "bidirectional")])
@pytest.mark.parametrize("uneven", [False, True])
def test_lstm(directions: int, name: str, uneven: bool) -> None:
    def scaled(shape: tuple[int, ...], seed: int) -> str:
        values = np.random.default_rng(seed).choice([-0.3, 0.1, 0.3], shape)
        if uneven:
            values[:, 0] *= 8
        return ",".join(f"{v:.4f}" for v in values.reshape(-1))

    text = LSTM.format(
        D=directions, NAME=name, W=scaled((directions, 64, 12), 0),
        R=scaled((directions, 64, 16), 1), B=scaled((directions, 128), 2),
    )  # fmt: skip
    made = compare(parse(text), dynamic("n_y"), 0.05)
    assert ops(made) == ["DynamicQuantizeLSTM"]
    scale = made.graph[0].inputs[8]
    assert scale is not None and scale.shape is not None
    assert len(scale.shape) == (2 if uneven else 1)


def test_weights_already_int8_are_taken_as_they_are() -> None:
    integers = ",".join(str(v) for v in np.random.default_rng(0).integers(-127, 128, 32))
    text = f"""
    agraph (float[2,8] x) => (float[2,4] y)
      <int8[8,4] w = {{{integers}}}, float[4] s = {{0.01,0.02,0.01,0.03}}, int8[4] z = {{0,0,0,0}}>
    {{ wd = DequantizeLinear<axis=1>(w, s, z) y = MatMul(x, wd) }}"""
    made = compare(parse(text), dynamic("n_y"), 0.02)
    assert ops(made) == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = MatMul(x, x)", "no constant matrix"),
        ("y = Gemm<alpha=2.0>(x, w)", "alpha"),
        ("y = Gemm<transA=1>(x, w)", "left side is transposed"),
        ("y = Tanh(x)", "no kernel"),
    ],
)
def test_refusals(body: str, reason: str) -> None:
    text = f"agraph (float[4,4] x) => (float[4,4] y) <float[4,4] w = {{{weights((4, 4))}}}> {{ {body} }}"
    result = lower_ort(parse(text), dynamic("n_y"))
    assert reason in result.notes[0].text


NORM = """
agraph (float[2,8] x, float[2,8] r) => (float[2,8] y)
  <float[8] g = {1,1,1,1,1,1,1,1}, float[8] b = {0,0,0,0,0,0,0,0}>
{ s = Add(x, r) y = LayerNormalization<axis=-1>(s, g, b) }"""


def test_add_before_layer_normalization_becomes_sum() -> None:
    result = lowered(parse(NORM), step=1e-5)
    assert ops(result.model) == ["Sum", "LayerNormalization"]


def test_depthwise_conv_left_float_between_integer_ones_keeps_its_weights() -> None:
    # per-channel weights 100 times apart: quantized per tensor, the small ones would be lost
    dw = ",".join(f"{v * s:.5f}" for s in (1.0, 0.01, 0.02, 0.5) for v in (0.1, -0.2, 0.3) * 3)
    text = f"""
    agraph (float[1,4,6,6] x) => (float[1,4,6,6] y)
      <float s = {{0.02}}, uint8 z = {{128}}, float t = {{0.002}}, float sw = {{0.01}}, int8 zw = {{0}},
       int8[4,4,1,1] w = {{10,-20,30,40,-50,60,7,-80,9,100,-110,120,5,6,-7,8}}, float[4,1,3,3] dw = {{{dw}}}>
    {{
      xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, sw, zw)
      a = Conv<kernel_shape=[1,1]>(xd, wd) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)
      d = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=4>(ad, dw)
      dq = QuantizeLinear(d, t, z) dd = DequantizeLinear(dq, t, z)
      e = Conv<kernel_shape=[1,1]>(dd, wd) eq = QuantizeLinear(e, t, z) y = DequantizeLinear(eq, t, z)
    }}"""
    result = lowered(parse(text), step=0.01)
    assert "FusedConv" in ops(result.model)


def test_gemm_left_float_between_integer_ones_keeps_its_weights() -> None:
    big = ",".join(f"{v:.5f}" for v in (0.5, 0.004, -0.003, 0.002) * 4)
    text = f"""
    agraph (float[2,4] x) => (float[2,4] y)
      <float s = {{0.02}}, uint8 z = {{128}}, float t = {{0.001}}, float sw = {{0.01}}, int8 zw = {{0}},
       int8[4,4] w = {{10,-20,30,40,-50,60,7,-80,9,100,-110,120,5,6,-7,8}}, float[4,4] f = {{{big}}}>
    {{
      xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, sw, zw)
      a = MatMul(xd, wd) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)
      d = Gemm(ad, f) dq = QuantizeLinear(d, t, z) dd = DequantizeLinear(dq, t, z)
      e = MatMul(dd, wd) eq = QuantizeLinear(e, t, z) y = DequantizeLinear(eq, t, z)
    }}"""
    lowered(parse(text), step=0.001)


@pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 31),
    reason="recorded from ONNX Runtime 1.31; older ones lack some of these kernels",
)
@pytest.mark.parametrize("opset", [11, 13])
def test_conv_transpose_between_integer_convs_keeps_its_weights(opset: int) -> None:
    kernel = ",".join(f"{v * s:.5f}" for s in (1.0, 0.01) for v in (0.1, -0.2, 0.3, 0.05) * 2)
    text = f"""
    agraph (float[1,2,4,4] x) => (float[1,2,8,8] y)
      <float s = {{0.02}}, uint8 z = {{128}}, float t = {{0.001}}, float sw = {{0.01}}, int8 zw = {{0}},
       int8[2,2,1,1] w = {{50,-60,70,80}}, float[2,2,2,2] k = {{{kernel}}}>
    {{
      xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, sw, zw)
      a = Conv<kernel_shape=[1,1]>(xd, wd) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)
      d = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(ad, k)
      dq = QuantizeLinear(d, t, z) dd = DequantizeLinear(dq, t, z)
      e = Conv<kernel_shape=[1,1]>(dd, wd) eq = QuantizeLinear(e, t, z) y = DequantizeLinear(eq, t, z)
    }}"""
    result = lowered(parse(text, opset), step=0.004)
    assert "ConvTranspose" in ops(result.model)


def test_recorded_kernels_are_those_of_the_installed_runtime() -> None:
    installed, recorded = installed_kernels(), recorded_kernels()
    for (domain, op_type), (first, types) in RECORDED.items():
        version = max(first, 17) if domain == "" else 1
        for dtype in types:
            assert recorded.has(op_type, domain, version, dtype)
            assert installed.has(op_type, domain, version, dtype), (domain, op_type, dtype)


def test_rules_ask_the_kernel_set() -> None:
    result = lower_ort(parse(NORM))
    assert result.notes[0].where == "n_s"
