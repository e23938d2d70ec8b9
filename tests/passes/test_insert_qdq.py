"""InsertQDQ: where the pairs stand, what the numbers are, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as oir
import pytest

from qcompile.ir.affine import TensorRange, fake_quantize, quantize_weight
from qcompile.ir.errors import CalibrationError, PassError, TargetError
from qcompile.ir.graph import origin
from qcompile.ir.manager import PassManager
from qcompile.ir.plan import FLOAT, INT8, PrecisionPlan
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.integer_region import qdq_tensors
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.passes.share_scales import ShareScales
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import (
    B1,
    RNG,
    TWO_CONVS,
    VNNI,
    W1,
    W2,
    M,
    everything_int8,
    feed_for,
    initializers,
    insert,
    node_named,
    ops,
    run,
    sqnr_db,
    state_of,
    text_model,
)


def test_pairs_stand_behind_producers_and_relu_is_taken_in() -> None:
    """One Q behind the input, one behind Relu (not behind Conv), one behind the output."""
    proto = text_model(TWO_CONVS, w1=W1, b1=B1, w2=W2)
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert ops(made) == ["Q", "DQ", "DQ", "DQ", "Conv", "Relu", "Q", "DQ", "DQ", "Conv", "Q", "DQ"]
    assert list(node_named(made, "n_a").input) == [
        "x_dequantized",
        "w1_dequantized",
        "b1_dequantized",
    ]
    assert list(node_named(made, "r_QuantizeLinear").input) == ["r", "r_scale", "r_zero_point"]
    assert list(node_named(made, "n_y").output) == ["y_float"]
    assert [o.name for o in made.graph.output] == ["y"]
    held = initializers(made)
    assert held["r_zero_point"] == 0, "a range from zero makes the Relu exact in the requantization"
    assert held["w1_quantized"].dtype == np.int8
    assert held["w1_scale"].shape == (4,)
    assert held["b1_quantized"].dtype == np.int32
    np.testing.assert_array_equal(held["b1_scale"], held["x_scale"] * held["w1_scale"])
    assert "w1" not in held, "the float weight is gone"
    assert {origin(n) for n in state.model.graph} == {"", "n_a", "n_r", "n_y"}
    assert node_named(made, "w1_DequantizeLinear").attribute[0].i == 0


def test_the_numbers_are_those_of_the_arithmetic() -> None:
    """One MatMul: what ONNX Runtime gives is fake-quantized x times fake-quantized W."""
    proto = text_model("g (float[N,8] x) => (float[N,8] y) { y = MatMul (x, w) }", w=M)
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    feed = feed_for(proto)
    values, qparams = quantize_weight(
        M, replace(VNNI.weight, granularity=state.qparams["w"].spec.granularity)
    )
    np.testing.assert_array_equal(initializers(made)["w_quantized"], values)
    weight = (values * qparams.scale).astype(np.float32)
    want = fake_quantize(feed["x"], state.qparams["x"]) @ weight
    np.testing.assert_allclose(run(made, feed)[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
)
def test_every_optimization_level_agrees(level: str) -> None:
    """A half-quantized site would let the optimizer quantize weights per tensor by itself."""
    proto = text_model(TWO_CONVS, w1=W1, b1=B1, w2=W2)
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    feed = feed_for(proto, seed=0)
    step = float(state.qparams["y"].scale)
    plain = run(made, feed)[0]
    # Kernels may round a tie the other way: one step of the output's scale.
    np.testing.assert_allclose(run(made, feed, level)[0], plain, atol=step * 1.01)
    assert sqnr_db(run(proto, feed)[0], plain) > 30


def test_matmul_writes_float_where_nothing_integer_follows() -> None:
    proto = text_model(
        "g (float[N,8] x) => (float[N,8] y) { m = MatMul (x, w)  y = Tanh (m) }", w=M
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    assert ops(insert(state)) == ["Q", "DQ", "DQ", "MatMul", "Tanh"]


def test_one_pair_for_all_consumers_and_float_readers_keep_the_float_tensor() -> None:
    """x feeds two MatMuls and a float Tanh: one Q; the Tanh still reads x."""
    proto = text_model(
        """g (float[N,8] x) => (float[N,8] y) {
          a = MatMul (x, w)  b = MatMul (x, v)  t = Tanh (x)  s = Sum (a, b)  y = Sum (s, t) }""",
        w=M,
        v=M[::-1].copy(),
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert ops(made).count("Q") == 1
    assert list(node_named(made, "n_t").input) == ["x"]


def test_float_readers_of_an_integer_kernel_read_its_dq() -> None:
    """A Conv writes integers only, so no float tensor exists beside them."""
    proto = text_model(
        "g (float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv (x, w1)  y = Tanh (a) }", w1=W1
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert list(node_named(made, "n_y").input) == ["a_dequantized"]


def test_readers_inside_a_branch_read_the_dq_too() -> None:
    proto = text_model(
        """g (float[1,3,8,8] x, bool c) => (float[1,4,6,6] y) {
          a = Conv (x, w1)
          y = If (c) <then_branch = t () => (float[1,4,6,6] u) { u = Tanh (a) },
                      else_branch = e () => (float[1,4,6,6] v) { v = Neg (a) }>
        }""",
        w1=W1,
    )
    state = state_of(proto, calibrate=False)
    one = np.asarray(3.0)
    state.ranges = {"x": TensorRange(-one, one), "a": TensorRange(-one, one)}
    state.plan = default_plan(state)
    made = insert(state)
    branch = node_named(made, "n_y").attribute[0].g
    assert list(branch.node[0].input) == ["a_dequantized"]
    feed = {"x": feed_for(proto)["x"], "c": np.asarray(True)}
    assert sqnr_db(run(proto, feed)[0], run(made, feed)[0]) > 20


def test_movers_share_the_scale_of_what_they_move() -> None:
    proto = text_model(
        """g (float[1,3,8,8] x) => (float[1,4,1,1] y) {
          a = Conv (x, w1)
          p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)
          y = Conv (p, w2)
        }""",
        w1=W1,
        w2=W2,
    )
    state = state_of(proto)
    del state.ranges["p"]  # what a mover writes needs no range of its own
    state.plan = default_plan(state)
    held = initializers(insert(state))
    assert held["a_scale"] == held["p_scale"]
    assert held["a_zero_point"] == held["p_zero_point"]


CONCAT = """g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
  a = Conv (x, w1)  r = Relu (a)  b = Conv (x, w3)
  c = Concat <axis = 1> (r, b)
  y = Conv (c, w4)
}"""
CONCAT_WEIGHTS = {
    "w1": W1,
    "w3": W1 * 3,
    "w4": (RNG.standard_normal((4, 8, 3, 3)) * 0.3).astype(np.float32),
}


def test_concat_inputs_keep_their_own_scales() -> None:
    state = state_of(text_model(CONCAT, **CONCAT_WEIGHTS))
    state.plan = default_plan(state)
    held = initializers(insert(state))
    assert len({float(held[f"{n}_scale"]) for n in ("r", "b", "c")}) > 1


def test_concat_shares_one_scale_where_the_target_needs_it() -> None:
    state = state_of(text_model(CONCAT, **CONCAT_WEIGHTS), replace(VNNI, concat_shares_scale=True))
    state.plan = default_plan(state)
    held = initializers(insert(state))
    assert len({float(held[f"{n}_scale"]) for n in ("r", "b", "c")}) == 1


def test_constant_operands_become_integers_of_the_activation_type() -> None:
    """QLinearMul wants both operands of one type, so a constant factor is uint8, without a Q."""
    proto = text_model(
        """g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
          a = Conv (x, w1)  m = Mul (a, k)  y = Conv (m, w2) }""",
        w1=W1,
        w2=W2,
        k=np.linspace(0.5, 2, 4, dtype=np.float32).reshape(1, 4, 1, 1),
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert initializers(made)["k_quantized"].dtype == np.uint8
    feed = feed_for(proto)
    assert sqnr_db(run(proto, feed)[0], run(made, feed, "ORT_ENABLE_ALL")[0]) > 25


def test_a_missing_range_names_the_tensor() -> None:
    state = state_of(text_model(TWO_CONVS, w1=W1, b1=B1, w2=W2))
    state.plan = default_plan(state)
    del state.ranges["r"]
    with pytest.raises(CalibrationError, match="tensor 'r' needs a range"):
        InsertQDQ().run(state)


def test_no_plan_is_an_error_of_ours() -> None:
    with pytest.raises(PassError, match="no plan"):
        InsertQDQ().run(state_of(text_model(TWO_CONVS, w1=W1, b1=B1, w2=W2)))


def test_the_plan_needs_no_range_but_those_it_names() -> None:
    state = state_of(text_model(TWO_CONVS, w1=W1, b1=B1, w2=W2))
    state.plan = default_plan(state)
    assert qdq_tensors(state) == ("x", "r", "y")
    state.plan = state.plan.with_choice(["n_y"], FLOAT, "test")
    assert qdq_tensors(state) == ("x", "r")


def test_a_float_plan_changes_nothing() -> None:
    proto = text_model(TWO_CONVS, w1=W1, b1=B1, w2=W2)
    state = state_of(proto)
    plan = default_plan(state)
    state.plan = PrecisionPlan(tuple(replace(layer, precision=FLOAT) for layer in plan.layers))
    assert ops(insert(state)) == ["Conv", "Relu", "Conv"]


def test_relu_follows_its_kernel() -> None:
    """Conv float, Relu int8: there is no Relu of its own, so nothing is inserted before it."""
    state = state_of(text_model(TWO_CONVS, w1=W1, b1=B1, w2=W2))
    state.plan = default_plan(state).with_choice(["n_a"], FLOAT, "test")
    assert ops(insert(state)) == ["Conv", "Relu", "Q", "DQ", "DQ", "Conv", "Q", "DQ"]


def test_a_pin_that_cannot_be_kept_is_refused() -> None:
    proto = text_model("g (float[N,8] x) => (float[N,8] y) { y = Tanh (x) }")
    state = state_of(proto)
    state.plan = default_plan(state).pin({"n_y": INT8})
    with pytest.raises(TargetError, match=r"'n_y' \(Tanh\) is pinned to int8 but cannot be"):
        InsertQDQ().run(state)


def test_names_that_are_taken_are_left_alone() -> None:
    proto = text_model(
        """g (float[N,8] x, float[N,8] x_quantized) => (float[N,8] y) {
          a = MatMul (x, w)  y = Sum (a, x_quantized) }""",
        w=M,
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert node_named(made, "x_QuantizeLinear").output[0] == "x_quantized_1"


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul (m, x)",
        "y = MatMul (x, x)",
        "t = Tanh (x)  y = Gemm (x, t)",
        "t = Tanh (x)  a = MatMul (x, t)  y = MatMul (a, m)",
        "a = MatMul (x, v)  y = Unsqueeze (a, first)",
    ],
)
def test_products_of_all_kinds_run(body: str) -> None:
    """A constant on the left, two activations, a vector."""
    arrays = {"m": M, "v": M[0], "first": np.asarray([1], np.int64)}
    used = {k: a for k, a in arrays.items() if f"({k}," in body or f" {k})" in body}
    columns = 1 if "v)" in body else 8
    proto = text_model(f"g (float[8,8] x) => (float[8,{columns}] y) {{ {body} }}", **used)
    state = state_of(proto)
    state.plan = default_plan(state)
    assert state.plan.precision("n_y") == INT8 or "Unsqueeze" in body
    made = insert(state)
    feed = feed_for(proto)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        assert sqnr_db(run(proto, feed)[0], run(made, feed, level)[0]) > 30


def test_the_passes_one_by_one_give_the_same_model() -> None:
    """Passes that search ranges or learn rounding stand between them."""
    proto = text_model(TWO_CONVS, w1=W1, b1=B1, w2=W2)
    made = []
    for passes in ([InsertQDQ()], [ShareScales(), QuantizeWeights(), InsertQDQ()]):
        state = state_of(proto)
        state.plan = default_plan(state)
        PassManager(passes).run(state)
        made.append(oir.to_proto(state.model).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_everything_at_once_is_valid() -> None:
    """Int8 asked of every node, contiguous or not."""
    proto = text_model(CONCAT, **CONCAT_WEIGHTS)
    state = state_of(proto)
    state.plan = everything_int8(state)
    made = insert(state)
    feed = feed_for(proto)
    assert sqnr_db(run(proto, feed)[0], run(made, feed, "ORT_ENABLE_ALL")[0]) > 30
