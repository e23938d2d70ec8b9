"""Forms for ONNX Runtime's float kernels: equal, and only where they are meant."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.prepare import runtime_passes
from qcompile.passes.spell_shifts import SpellShifts
from qcompile.passes.spell_softmax import SpellSoftmax
from tests.passes.checks import check_passes, parse

PARTS = ["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]


def softmax(axis: int, opset: int = 17, inner: int = 20) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 4, {inner}] x) => (float[N, 4, {inner}] y) {{ y = Softmax<axis = {axis}>(x) }}"""


@pytest.mark.parametrize("axis", [0, 1, -2])
@pytest.mark.parametrize("opset", [13, 18])
def test_softmax_over_an_inner_axis(axis: int, opset: int) -> None:
    check_passes(parse(softmax(axis, opset)), SpellSoftmax(), PARTS)


@pytest.mark.parametrize("text", [softmax(-1), softmax(2), softmax(1, 12), softmax(1, inner=3)])
def test_other_softmaxes_stay(text: str) -> None:
    check_passes(parse(text), SpellSoftmax(), ["Softmax"], changed=False)


def shifts(body: str, signature: str = "(float[N, 3, 4, 4] x) => (float[N, 2, H, W] y)") -> str:
    return f"""<ir_version: 8, opset_import: ["" : 17]>
        g {signature} <float k = {{0.5}}, float[1, 3, 1, 1] v = {{1.0, 2.0, 3.0}},
        float[4] row = {{1.0, 2.0, 3.0, 4.0}}>
        {{ {body} }}"""


W = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("add", ["Add(x, k)", "Add(v, x)"])
def test_shifts_before_convs(add: str) -> None:
    text = shifts(f"a = {add}\n y = Conv<pads = [1, 1, 1, 1]>(a, w)")
    check_passes(parse(text, w=W), SpellShifts(), ["BatchNormalization", "Conv"])


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, row)\n y = Conv(a, w)",
        "a = Add(x, k)\n b = Relu(a)\n y = Conv(b, w)",
        "a = Add(x, k)\n b = Conv(a, w)\n c = Conv(a, w)\n y = Add(b, c)",
        "a = Mul(x, k)\n y = Conv(a, w)",
    ],
)
def test_other_shifts_stay(body: str) -> None:
    check_passes(parse(shifts(body), w=W), SpellShifts(), changed=False)


def test_all_together_twice() -> None:
    signature = "(float[N, 3, 8, 8] x) => (float[N, 2, 6, 6] y)"
    text = shifts("a = Add(x, k)\n b = Conv(a, w)\n y = Softmax<axis = 1>(b)", signature)
    check_passes(parse(text, w=W), runtime_passes(), ["BatchNormalization", "Conv", *PARTS])
