"""fuse-activations: every spelling becomes one operator, near misses stay."""

from __future__ import annotations

import pytest

from qcompile.passes.fuse_activations import FuseActivations
from tests.passes.checks import check_passes, parse

CONSTANTS = """<float one = {1.0}, float three = {3.0}, float six = {6.0}, float sixth = {0.16666667},
    float half = {0.5}, float fifth = {0.2}, float zero = {0.0}, float two = {2.0}, float low = {-1.0},
    float[4] many = {6.0, 6.0, 6.0, 5.0}>"""


def model(body: str, opset: int = 17) -> str:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    return f"{head}g (float[N, 4] x) => (float[N, 4] y) {CONSTANTS} {{ {body} }}"


CLIPS = [
    "c = Clip(a, zero, six)",
    "r = Max(a, zero)\n c = Min(r, six)",
    "r = Min(six, a)\n c = Max(zero, r)",
    "r = Relu(a)\n c = Min(r, six)",
    "r = Relu(a)\n c = Clip(r, zero, six)",
]
PRODUCTS = [
    "m = Mul(x, c)\n y = Div(m, six)",
    "m = Mul(c, x)\n y = Mul(sixth, m)",
    "m = Div(c, six)\n y = Mul(x, m)",
    "m = Mul(c, sixth)\n y = Mul(m, x)",
    "m = Div(x, six)\n y = Mul(m, c)",
    "m = Mul(sixth, x)\n y = Mul(c, m)",
]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_hard_swish(clip: str, product: str) -> None:
    text = model(f"a = Add(three, x)\n {clip}\n {product}")
    check_passes(parse(text), FuseActivations(), ["HardSwish"])


def test_hard_swish_below_opset_14() -> None:
    text = model("a = Add(x, three)\n c = Clip(a, zero, six)\n m = Mul(x, c)\n y = Div(m, six)", 12)
    check_passes(parse(text), FuseActivations(), ["HardSigmoid", "Mul"])


def test_hard_swish_of_a_hard_sigmoid() -> None:
    text = model("a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)\n y = Mul(x, a)")
    check_passes(parse(text), FuseActivations(), ["HardSwish"])
    text = model("a = HardSigmoid<alpha = 0.2, beta = 0.5>(x)\n y = Mul(x, a)")
    check_passes(parse(text), FuseActivations(), ["HardSigmoid", "Mul"], notes=["x / 6 + 1 / 2"])


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, two)\n c = Clip(a, zero, six)\n m = Mul(x, c)\n y = Div(m, six)",
        "a = Add(x, three)\n c = Clip(a, zero, six)\n m = Mul(a, c)\n y = Div(m, six)",
        "a = Add(x, three)\n c = Clip(a, zero, two)\n m = Mul(x, c)\n y = Div(m, six)",
        "a = Add(x, three)\n c = Clip(a, zero, six)\n m = Mul(x, c)\n y = Div(m, many)",
    ],
)
def test_what_only_looks_like_hard_swish(body: str) -> None:
    check_passes(parse(model(body)), FuseActivations(), changed=False)


def test_hard_swish_whose_gate_is_read_elsewhere() -> None:
    text = model("a = Add(x, three)\n c = Clip(a, zero, six)\n m = Mul(x, c)\n y = Div(m, six)")
    text = text.replace("=> (float[N, 4] y)", "=> (float[N, 4] y, float[N, 4] c)")
    check_passes(parse(text), FuseActivations(), notes=["output of the model"], changed=False)


@pytest.mark.parametrize(
    "body",
    [
        "m = Mul(x, fifth)\n a = Add(m, half)\n y = Clip(a, zero, one)",
        "m = Div(x, six)\n a = Add(half, m)\n r = Relu(a)\n y = Min(r, one)",
        "a = Add(x, three)\n c = Clip(a, zero, six)\n y = Div(c, six)",
        "a = Add(x, three)\n c = Clip(a, zero, six)\n y = Mul(sixth, c)",
        "a = Add(x, one)\n c = Clip(a, zero, two)\n y = Mul(half, c)",
    ],
)
def test_hard_sigmoid(body: str) -> None:
    check_passes(parse(model(body)), FuseActivations(), ["HardSigmoid"])


def test_hard_sigmoid_with_another_upper_limit_stays() -> None:
    text = model("a = Add(x, three)\n c = Clip(a, zero, six)\n y = Div(c, two)")
    check_passes(parse(text), FuseActivations(), ["Add", "Clip", "Div"], changed=False)


def test_sigmoid() -> None:
    text = model("n = Neg(x)\n e = Exp(n)\n d = Add(one, e)\n y = Div(one, d)")
    check_passes(parse(text), FuseActivations(), ["Sigmoid"])
    text = model("n = Neg(x)\n e = Exp(n)\n d = Add(e, one)\n y = Reciprocal(d)")
    check_passes(parse(text), FuseActivations(), ["Sigmoid"])
    text = model("n = Neg(x)\n e = Exp(n)\n d = Add(e, two)\n y = Reciprocal(d)")
    check_passes(parse(text), FuseActivations(), changed=False)


def test_leaky_relu() -> None:
    text = model("m = Mul(fifth, x)\n y = Max(m, x)")
    check_passes(parse(text), FuseActivations(), ["LeakyRelu"])
    text = model("m = Mul(two, x)\n y = Max(m, x)")
    check_passes(parse(text), FuseActivations(), ["Mul", "Max"], notes=["between 0 and 1"])


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu(x)\n y = Min(r, six)",
        "r = Max(x, low)\n y = Min(r, six)",
        "r = Min(x, six)\n y = Relu(r)",
        "r = Clip(x, low, six)\n y = Relu(r)",
        "r = Relu(x)\n y = Clip(r, low, six)",
    ],
)
def test_clip(body: str) -> None:
    check_passes(parse(model(body)), FuseActivations(), ["Clip"])


def test_limits_that_differ_along_an_axis_stay() -> None:
    text = model("r = Relu(x)\n y = Min(r, many)")
    check_passes(parse(text), FuseActivations(), ["Relu", "Min"], changed=False)
