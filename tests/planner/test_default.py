"""The plan without measurements: contiguous integer regions, with reasons."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from qcompile.ir.errors import OptionError
from qcompile.ir.plan import FLOAT, INT8
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import state_of, text_model

W = np.ones((4, 3, 3, 3), np.float32)
W2 = np.ones((4, 4, 3, 3), np.float32)


def choices(graph: str, **arrays: npt.NDArray[np.generic]) -> dict[str, tuple[str, str]]:
    """origin -> (precision, reason)."""
    state = state_of(text_model(graph, **arrays), calibrate=False)
    return {layer.origin: (layer.precision, layer.reason) for layer in default_plan(state).layers}


def test_a_chain_between_two_convs_is_integer_as_a_whole() -> None:
    """Each of Mul and Add is justified only by the other."""
    found = choices(
        """g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
          a = Conv (x, w)  m = Mul (a, k)  s = Add (m, a)  r = Relu (s)  y = Conv (r, w2) }""",
        w=W,
        w2=W2,
        k=np.asarray(2, np.float32),
    )
    assert {name: precision for name, (precision, _) in found.items()} == dict.fromkeys(
        ("n_a", "n_m", "n_s", "n_r", "n_y"), INT8
    )
    assert found["n_m"][1] == "between integer nodes"
    assert found["n_r"][1] == "taken into the requantization of 'n_s'"


def test_nothing_integer_behind_means_float() -> None:
    """An Add before the output would pay a Q and a DQ for nothing; and so back up the chain."""
    found = choices(
        """g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
          a = Conv (x, w)  m = Mul (a, a)  y = Add (m, m) }""",
        w=W,
    )
    assert found["n_a"][0] == INT8
    assert found["n_y"] == (FLOAT, "nothing integer reads its result")
    assert found["n_m"] == (FLOAT, "nothing integer reads its result")


def test_a_float_input_means_float() -> None:
    found = choices(
        """g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
          a = Conv (x, w)  t = Tanh (a)  m = Mul (a, t)  r = Relu (m)  y = Conv (r, w2) }""",
        w=W,
        w2=W2,
    )
    assert found["n_m"] == (FLOAT, "its input 't' is float")
    assert found["n_r"] == (FLOAT, "'n_m' before it is float")
    assert found["n_t"][0] == FLOAT
    assert found["n_y"][0] == INT8


def test_the_users_pins_stand_and_unknown_selectors_name_the_nearest() -> None:
    state = state_of(
        text_model("g (float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv (x, w) }", w=W)
    )
    plan = default_plan(state)
    pinned = plan.pin({"n_*": FLOAT})
    assert pinned.precision("n_y") == FLOAT
    assert pinned.by_origin()["n_y"].pinned
    assert pinned.with_choice(["n_y"], INT8, "planner") == pinned
    with pytest.raises(
        OptionError, match=r"selector 'n_z' matches no quantizable node.*nearest: n_y"
    ):
        plan.pin({"n_z": INT8})


HEAD = """g (float[1,3,8,8] x) => (float[1,8,6,6] found, float[1,4,4,4] y) {
    a = Conv (x, w)
    b = Relu (a)
    far = Conv <pads = [1, 1, 1, 1]> (b, w2)
    near = Conv <pads = [1, 1, 1, 1]> (b, w2)
    scores = Sigmoid (near)
    boxes = Mul (far, stride)
    found = Concat <axis = 1> (boxes, scores)
    both = Concat <axis = 1> (boxes, scores)
    y = Conv (both, w3)
}"""
"""As a detector ends: boxes in pixels beside scores, here read by another Conv too."""


def test_boxes_and_scores_are_kept_apart_and_the_tail_stays_float() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": W.shape, "w2": W2.shape}
    arrays = {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()}
    arrays |= {"w3": np.ones((4, 8, 3, 3), np.float32), "stride": np.asarray(320, np.float32)}
    state = state_of(text_model(HEAD, **arrays))
    found = {layer.origin: layer for layer in default_plan(state).layers}
    assert found["n_far"].precision == found["n_near"].precision == INT8
    for name in ("n_found", "n_both"):
        assert found[name].precision == FLOAT and found[name].pinned
        assert "times as wide as 'scores', and its result has one scale" in found[name].reason
    assert found["n_scores"].precision == found["n_boxes"].precision == FLOAT
    even = text_model(HEAD, **{**arrays, "stride": np.asarray(1, np.float32)})
    layers = default_plan(state_of(even)).by_origin()
    assert not layers["n_both"].pinned and layers["n_both"].precision == INT8
