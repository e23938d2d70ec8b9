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


@pytest.mark.parametrize(
    ("body", "opset", "reason"),
    [
        (CENTRE + SQUARES[0] + LEVEL + QUOTIENTS[0] + AFFINE, 13, "needs opset 17"),
        (
            (CENTRE + SQUARES[0] + LEVEL + QUOTIENTS[0] + AFFINE).replace("[-1]", "[1]"),
            17,
            "does not reduce the last axis",
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
