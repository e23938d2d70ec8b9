"""fuse-softmax: with the axis kept by the reductions or put back behind them."""

from __future__ import annotations

import pytest

from qcompile.passes.fuse_softmax import FuseSoftmax
from tests.passes.checks import check_passes, parse

NUMBERS = """<int64[1] axis = {1}, int64[3] shape = {-1, 1, 4}, float low = {-1.0},
    float lowest = {-3.4028235e38}>"""


def model(body: str, opset: int = 17) -> str:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    return f"{head}g (float[N, 3, 4] x) => (float[N, 3, 4] y) {NUMBERS} {{ {body} }}"


KEPT = """m = ReduceMax<axes = [1]>(x)
    d = Sub(x, m)
    e = Exp(d)
    s = ReduceSum(e, axis)
    y = Div(e, s)"""
DROPPED = """m = ReduceMax<axes = [1], keepdims = 0>(x)
    f = Max(lowest, m)
    k = Reshape(f, shape)
    d = Sub(x, k)
    e = Exp(d)
    s = ReduceSum<keepdims = 0>(e, axis)
    t = Unsqueeze(s, axis)
    y = Div(e, t)"""


@pytest.mark.parametrize("body", [KEPT, DROPPED])
def test_fused(body: str) -> None:
    (node,) = check_passes(parse(model(body)), FuseSoftmax(), ["Softmax"]).graph
    assert node.attributes.get_int("axis") == -2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            model(KEPT.replace("ReduceSum(e, axis)", "ReduceSum<keepdims = 1>(e, both)")),
            "one known axis",
        ),
        (model(DROPPED.replace("lowest", "low")), "limited"),
    ],
)
def test_kept(text: str, reason: str) -> None:
    text = text.replace("<int64[1] axis", "<int64[2] both = {1, 2}, int64[1] axis")
    check_passes(parse(text), FuseSoftmax(), notes=[reason], changed=False)


def test_below_opset_13() -> None:
    text = model(KEPT.replace("ReduceSum(e, axis)", "ReduceSum<axes = [1]>(e)"), 12)
    check_passes(parse(text), FuseSoftmax(), notes=["needs opset 13"], changed=False)


def test_the_sum_of_something_else_stays() -> None:
    text = model(KEPT.replace("ReduceSum(e, axis)", "ReduceSum(x, axis)"))
    check_passes(parse(text), FuseSoftmax(), changed=False)
