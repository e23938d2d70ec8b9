"""fuse-layernorm: spellings of old PyTorch, Paddle and TensorFlow; other axes and opsets stay."""

from __future__ import annotations

import pytest

from qcompile.passes.fuse_layernorm import FuseLayerNorm
from tests.passes.checks import check_passes, parse

CONSTANTS = """<float two = {2.0}, float one = {1.0}, float eps = {0.00001}, float minus = {-0.5},
    float[4] gain = {1.0, 2.0, 3.0, 4.0}, float[4] offset = {0.1, 0.2, 0.3, 0.4}, int64[1] axes = {-1},
    float[3, 1] tall = {1.0, 2.0, 3.0}>"""
CENTRE = "m = ReduceMean<axes = [-1]>(x)\n d = Sub(x, m)\n"
SQUARES = ["s = Pow(d, two)\n", "s = Mul(d, d)\n"]
LEVEL = "v = ReduceMean<axes = [-1]>(s)\n l = Add(v, eps)\n"
QUOTIENTS = [
    "r = Sqrt(l)\n n = Div(d, r)\n",
    "r = Sqrt(l)\n i = Reciprocal(r)\n n = Mul(d, i)\n",
    "r = Sqrt(l)\n i = Div(one, r)\n n = Mul(i, d)\n",
    "i = Pow(l, minus)\n n = Mul(d, i)\n",
]
AFFINE = "k = Mul(n, gain)\n y = Add(k, offset)"


def model(body: str, opset: int = 17) -> str:
    head = f'<ir_version: 9, opset_import: ["" : {opset}]>\n'
    return f"{head}g (float[N, 3, 4] x) => (float[N, 3, 4] y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("quotient", QUOTIENTS)
def test_layer_norm(square: str, quotient: str) -> None:
    text = model(CENTRE + square + LEVEL + quotient + AFFINE)
    check_passes(parse(text), FuseLayerNorm(), ["LayerNormalization"])


@pytest.mark.parametrize(
    ("tail", "inputs"),
    [("y = Mul(gain, n)", 2), ("y = Add(offset, n)", 3), ("y = Identity(n)", 2)],
)
def test_gain_and_offset_are_optional(tail: str, inputs: int) -> None:
    text = model(CENTRE + SQUARES[0] + LEVEL + QUOTIENTS[0] + tail)
    after = check_passes(parse(text), FuseLayerNorm())
    first = next(iter(after.graph))
    assert first.op_type == "LayerNormalization"
    assert len(first.inputs) == inputs


def test_gain_inside_the_factor() -> None:
    body = "r = Sqrt(l)\n i = Reciprocal(r)\n j = Mul(i, gain)\n n = Mul(d, j)\n y = Add(n, offset)"
    text = model(CENTRE + SQUARES[1] + LEVEL + body)
    check_passes(parse(text), FuseLayerNorm(), ["LayerNormalization"])


def test_two_subtractions_of_one_mean() -> None:
    body = """m = ReduceMean<axes = [-1]>(x)
        d = Sub(x, m)
        e = Sub(x, m)
        s = Mul(e, e)
        """
    text = model(body + LEVEL + QUOTIENTS[0] + AFFINE)
    check_passes(parse(text), FuseLayerNorm(), ["LayerNormalization"])


def test_axes_as_input() -> None:
    text = model(CENTRE + SQUARES[0] + LEVEL + QUOTIENTS[0] + AFFINE, 18)
    text = text.replace("ReduceMean<axes = [-1]>(x)", "ReduceMean(x, axes)")
    text = text.replace("ReduceMean<axes = [-1]>(s)", "ReduceMean(s, axes)")
    check_passes(parse(text), FuseLayerNorm(), ["LayerNormalization"])


def test_another_axis_goes_between_transposes() -> None:
    body = (CENTRE + SQUARES[0] + LEVEL + QUOTIENTS[0] + AFFINE).replace("[-1]", "[1]")
    text = model(body.replace("gain", "tall").replace("offset", "tall"))
    after = check_passes(
        parse(text), FuseLayerNorm(), ["Transpose", "LayerNormalization", "Transpose"]
    )
    norm = list(after.graph)[1]
    assert norm.name == "Add_8"


@pytest.mark.parametrize("back", ["Reshape(%s, shape)", "Unsqueeze(%s, axes)"])
@pytest.mark.parametrize("positive", ["", "p = Max(zero, v)\n", "p = Relu(v)\n"])
def test_mean_of_squares_as_jax_writes_it(back: str, positive: str) -> None:
    body = f"""a = ReduceSum<keepdims = 0>(x, axes)
        m = Mul(a, quarter)
        s = Mul(x, x)
        b = ReduceSum<keepdims = 0>(s, axes)
        q = Mul(quarter, b)
        mm = Mul(m, m)
        v = Sub(q, mm)
        {positive}vk = {back % ("p" if positive else "v")}
        mk = {back % "m"}
        d = Sub(x, mk)
        l = Add(vk, eps)
        r = Sqrt(l)
        i = Reciprocal(r)
        g2 = Mul(i, gain)
        n = Mul(d, g2)
        y = Add(n, offset)"""
    extra = "<float zero = {0.0}, float quarter = {0.25}, int64[3] shape = {-1, 3, 1}, float two"
    text = model(body).replace("<float two", extra)
    check_passes(parse(text), FuseLayerNorm(), ["LayerNormalization"], rtol=1e-4, atol=1e-5)
    wrong = text.replace("quarter = {0.25}", "quarter = {0.2}")
    check_passes(parse(wrong), FuseLayerNorm(), notes=["not divided by 4"], changed=False)


@pytest.mark.parametrize(
    ("body", "opset", "reason"),
    [
        (CENTRE + SQUARES[0] + LEVEL + QUOTIENTS[0] + AFFINE, 13, "needs opset 17"),
        (
            (CENTRE + SQUARES[0] + LEVEL + QUOTIENTS[0] + AFFINE).replace("[-1]", "[1, 2]"),
            17,
            "does not reduce one known axis",
        ),
        (
            CENTRE + SQUARES[0] + LEVEL + QUOTIENTS[0] + AFFINE.replace("gain", "tall"),
            17,
            "gamma is no vector",
        ),
    ],
)
def test_left_alone(body: str, opset: int, reason: str) -> None:
    check_passes(parse(model(body, opset)), FuseLayerNorm(), notes=[reason])


def test_rms_norm_waits_for_its_opset() -> None:
    body = (
        "s = Pow(x, two)\n"
        + LEVEL
        + "r = Sqrt(l)\n i = Div(one, r)\n n = Mul(x, i)\n y = Mul(gain, n)"
    )
    check_passes(parse(model(body)), FuseLayerNorm(), notes=["needs opset 23"], changed=False)
    text = model(body, 23).replace("ReduceMean<axes = [-1]>(s)", "ReduceMean(s, axes)")
    check_passes(parse(text), FuseLayerNorm(), ["RMSNormalization"])
