"""Both products of an attention have one precision, and 8 bits only where an engine fuses them."""

from __future__ import annotations

import onnx_ir as oir
import pytest

from qcompile.ir.plan import FLOAT, INT8
from qcompile.planner.attention import Attention, find_attention, kept_short, kept_whole
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import state_of, text_model
from tests.passes.test_insert_qdq_trt import SM80

PAIR = Attention("n_s", "n_y", "p")


def _graph(between: str = "a = Div (s, two)\n b = Add (a, mask)", last: str = "b") -> oir.Graph:
    proto = text_model(
        f"""g (float[2, 20, 32] q, float[2, 32, 20] k, float[2, 20, 32] v, float[20, 20] mask,
              float[2, 20, 20] other, float two) => (float[2, 20, 32] y) {{
            s = MatMul (q, k)
            {between}
            p = Softmax ({last})
            y = MatMul (p, v)
        }}"""
    )
    return state_of(proto, SM80).model.graph


@pytest.mark.parametrize(
    ("between", "last"),
    [
        ("a = Div (s, two)\n b = Add (a, mask)", "b"),
        ("b = Add (mask, s)", "b"),
        ("b = Identity (s)", "b"),
    ],
)
def test_scales_and_masks_may_stand_between(between: str, last: str) -> None:
    assert find_attention(_graph(between, last)) == [PAIR]


def test_a_softmax_of_something_else_is_none() -> None:
    assert find_attention(_graph("b = Relu (s)")) == []
    assert find_attention(_graph("b = Add (mask, other)")) == []


def test_one_product_in_float_takes_the_other_along() -> None:
    proto = text_model(
        """g (float[2, 20, 32] q, float[2, 32, 20] k, float[2, 20, 32] v) => (float[2, 20, 32] y) {
            s = MatMul (q, k)
            p = Softmax (s)
            y = MatMul (p, v)
        }"""
    )
    plan = default_plan(state_of(proto, SM80))
    assert kept_whole(plan, [PAIR]) == plan
    mixed = kept_whole(plan.with_choice(["n_s"], FLOAT, "for the test"), [PAIR])
    assert mixed.precision("n_y") == FLOAT
    assert mixed.by_origin()["n_y"].reason == "the other product of its attention is float"


@pytest.mark.parametrize(("positions", "precision"), [(512, INT8), (513, FLOAT)])
def test_long_attention_is_float(positions: int, precision: str) -> None:
    proto = text_model(
        """g (float[2, 20, 32] q, float[2, 32, 20] k, float[2, 20, 32] v) => (float[2, 20, 32] y) {
            s = MatMul (q, k)
            p = Softmax (s)
            y = MatMul (p, v)
        }"""
    )
    plan = default_plan(state_of(proto, SM80))
    shapes = {"p": (2, 20, positions)}
    found = kept_short(plan, [PAIR], shapes, SM80.longest_attention)
    assert {found.precision(n) for n in ("n_s", "n_y")} == {precision}
    if precision == FLOAT:
        assert "513 positions" in found.by_origin()["n_s"].reason
