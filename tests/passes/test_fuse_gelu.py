"""fuse-gelu: both forms in the spellings of PyTorch, TensorFlow and JAX; whole where not fused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qcompile.ir.target import OpSupport
from qcompile.passes.fold_affine import FoldAffine
from qcompile.passes.fuse_gelu import FuseGelu
from qcompile.passes.protected import protected
from qcompile.passes.quantizable import quantizable
from tests.passes.checks import TARGET, check_passes, parse, state_of

CONSTANTS = """<float one = {1.0}, float two = {2.0}, float half = {0.5}, float three = {3.0},
    float root2 = {1.4142135}, float k = {0.044715}, float c = {0.7978846}, float q = {1.702}>"""
EXACT = [
    "d = Div(x, root2)\n e = Erf(d)\n p = Add(e, one)\n m = Mul(x, p)\n y = Mul(m, half)",
    "d = Div(x, root2)\n e = Erf(d)\n p = Add(one, e)\n m = Mul(half, x)\n y = Mul(m, p)",
    "d = Div(x, root2)\n e = Erf(d)\n p = Add(one, e)\n m = Mul(half, p)\n y = Mul(x, m)",
    "d = Div(x, root2)\n e = Erf(d)\n p = Add(one, e)\n m = Mul(x, p)\n y = Div(m, two)",
]
TANH = [
    "a = Pow(x, three)\n b = Mul(k, a)\n s = Add(x, b)\n u = Mul(s, c)",
    "a = Mul(k, x)\n b = Mul(x, a)\n d = Mul(x, b)\n s = Add(x, d)\n u = Mul(c, s)",
    "a = Mul(x, x)\n b = Mul(x, a)\n d = Mul(k, b)\n s = Add(d, x)\n u = Mul(c, s)",
    "a = Mul(x, x)\n b = Mul(k, a)\n d = Add(one, b)\n s = Mul(c, x)\n u = Mul(s, d)",
]
TAIL = "\n t = Tanh(u)\n p = Add(t, one)\n m = Mul(half, p)\n y = Mul(x, m)"


def model(body: str, opset: int = 20) -> str:
    head = f'<ir_version: 9, opset_import: ["" : {opset}]>\n'
    return f"{head}g (float[N, 4] x) => (float[N, 4] y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize("body", EXACT)
def test_exact(body: str) -> None:
    (node,) = check_passes(parse(model(body)), FuseGelu(), ["Gelu"]).graph
    assert node.attributes.get_string("approximate") == "none"


@pytest.mark.parametrize("body", TANH)
def test_tanh(body: str) -> None:
    (node,) = check_passes(parse(model(body + TAIL)), FuseGelu(), ["Gelu"]).graph
    assert node.attributes.get_string("approximate") == "tanh"


@pytest.mark.parametrize(("body", "name"), [(EXACT[0], "Gelu"), (TANH[1] + TAIL, "FastGelu")])
def test_below_opset_20(body: str, name: str) -> None:
    count = body.count("=")
    after = check_passes(
        parse(model(body, 17)), FuseGelu(), notes=["needs opset 20"], changed=False
    )
    assert len(after.graph) == count
    (node,) = check_passes(parse(model(body, 17)), FuseGelu(contrib=True), [name]).graph
    assert node.domain == "com.microsoft"


def test_quick_gelu_is_contrib_only() -> None:
    text = model("a = Mul(x, q)\n b = Sigmoid(a)\n y = Mul(b, x)", 17)
    check_passes(parse(text), FuseGelu(), ["Mul", "Sigmoid", "Mul"], changed=False)
    check_passes(parse(text), FuseGelu(contrib=True), ["QuickGelu"])


@pytest.mark.parametrize(
    "body",
    [
        EXACT[0].replace("Div(x, root2)", "Div(x, two)"),
        EXACT[0].replace("Add(e, one)", "Add(e, two)"),
        TANH[0].replace("Mul(k, a)", "Mul(half, a)") + TAIL,
    ],
)
def test_what_only_looks_like_gelu(body: str) -> None:
    check_passes(parse(model(body)), FuseGelu(), changed=False)


def test_a_fold_does_not_take_a_gelu_apart() -> None:
    body = EXACT[0].replace("y = ", "g = ") + "\n y = MatMul(g, w)"
    square = ", float[4, 4] w = {" + ", ".join("1.5" for _ in range(16)) + "}>"
    text = model(body, 17).replace(">\ng", "@").replace("}>", "}" + square).replace("@", ">\ng")
    state = state_of(parse(text))
    assert len(protected(state.model.graph)) == 5
    check_passes(
        parse(text), FoldAffine(), ["Div", "Erf", "Add", "Mul", "Mul", "MatMul"], changed=False
    )


def test_a_gelu_left_whole_is_not_quantized_in_parts() -> None:
    rows = {"Mul": OpSupport("Mul", "elementwise", None)}
    for body, reasons in ((EXACT[0], 2), ("a = Mul(x, half)\n y = Mul(a, x)", 0)):
        state = state_of(parse(model(body, 17)))
        sites = quantizable(state.model, replace(TARGET, ops=rows))
        assert len(sites) == 2
        assert sum("fuse whole" in site.reason for site in sites) == reasons
