"""InsertQDQ: weights, biases and constant operands, and the hooks of passes that choose them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qcompile.ir.affine import QParams, quantize_weight
from qcompile.ir.weights import IntegerWeight
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import (
    B1,
    RNG,
    TWO_CONVS,
    VNNI,
    W1,
    W2,
    Array,
    M,
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


def test_a_shared_weight_is_stored_once() -> None:
    proto = text_model(
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul (x, w)  t = Tanh (a)  y = MatMul (t, w) }",
        w=M,
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert [n for n in initializers(made) if n.startswith("w")] == [
        "w_quantized",
        "w_scale",
        "w_zero_point",
    ]
    assert ops(made).count("DQ") == 3


def test_a_weight_that_float_nodes_read_stays_beside_its_integers() -> None:
    proto = text_model(
        "g (float[8,8] x) => (float[8,8] y) { a = MatMul (x, w)  y = Sum (a, w) }", w=M
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert list(node_named(made, "n_y").input) == ["a", "w"]


def test_a_weight_read_along_two_axes_has_two_integer_forms() -> None:
    proto = text_model(
        """g (float[N,8] x) => (float[N,8] y) {
          a = Gemm (x, w)  t = Tanh (a)  y = Gemm <transB = 1> (t, w) }""",
        w=M,
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    held = initializers(made)
    assert set(state.weights) == {"w", "w:axis0"}
    assert {"w_quantized", "w_quantized_1"} <= set(held)
    feed = feed_for(proto)
    assert sqnr_db(run(proto, feed)[0], run(made, feed, "ORT_ENABLE_ALL")[0]) > 30


def test_a_shared_bias_is_copied_because_its_scale_differs() -> None:
    proto = text_model(
        """g (float[N,8] x) => (float[N,8] y) {
          a = Gemm (x, w, b)  t = Tanh (a)  y = Gemm (t, v, b) }""",
        w=M,
        v=M * 2,
        b=np.arange(8, dtype=np.float32),
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    held = initializers(insert(state))
    assert {"b_quantized", "b_quantized_1"} <= set(held)
    assert not np.array_equal(held["b_quantized"], held["b_quantized_1"])


@pytest.mark.parametrize("shape", [(1,), (1, 8), (8,)])
def test_gemm_bias_of_every_shape_becomes_one_number_a_column(shape: tuple[int, ...]) -> None:
    bias = np.full(shape, 0.5, np.float32)
    proto = text_model("g (float[N,8] x) => (float[N,8] y) { y = Gemm (x, w, b) }", w=M, b=bias)
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert initializers(made)["b_quantized"].shape == (8,)
    feed = feed_for(proto)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        assert sqnr_db(run(proto, feed)[0], run(made, feed, level)[0]) > 30


def _with_a_large_bias() -> tuple[onnx.ModelProto, Array]:
    """Channel 2's weights are 1e-9 and its bias 40: b / (s_x * s_w) would be 1e13."""
    weight = M.copy()
    weight[:, 2] = 1e-9
    bias = np.zeros(8, np.float32)
    bias[2] = 40
    text = "g (float[N,8] x) => (float[N,8] y) { y = Gemm (x, w, b) }"
    return text_model(text, w=weight, b=bias), weight


def test_a_bias_that_would_overflow_enlarges_the_weight_scale() -> None:
    proto, _ = _with_a_large_bias()
    state = state_of(proto)
    state.plan = default_plan(state)
    result = InsertQDQ().run(state)
    assert any("cannot overflow" in note.text and note.where == "w" for note in result.notes)
    held = {v.name: v.const_value.numpy() for v in state.model.graph.initializers.values()}
    real = held["b_quantized"].astype(np.float64) * held["b_scale"]
    np.testing.assert_allclose(real[2], 40, rtol=1e-6)
    np.testing.assert_array_equal(held["b_scale"], held["x_scale"] * held["w_scale"])


def test_scales_and_weights_chosen_before_are_kept() -> None:
    """The hooks of range search and learned rounding."""
    proto = text_model("g (float[N,8] x) => (float[N,8] y) { y = MatMul (x, w) }", w=M)
    state = state_of(proto)
    state.plan = default_plan(state)
    given = QParams(np.asarray(0.5, np.float32), np.asarray(7, np.uint8), VNNI.activation)
    state.qparams["x"] = given
    values, qparams = quantize_weight(M, VNNI.weight)
    values = np.clip(values + 1, -127, 127).astype(np.int8)
    state.weights["w"] = IntegerWeight(values, qparams, "learned rounding")
    held = initializers(insert(state))
    assert held["x_scale"] == np.float32(0.5)
    assert held["x_zero_point"] == 7
    np.testing.assert_array_equal(held["w_quantized"], values)
    assert held["w_scale"].shape == ()


def test_learned_integers_survive_in_channels_whose_scale_has_room() -> None:
    proto, weight = _with_a_large_bias()
    state = state_of(proto)
    state.plan = default_plan(state)
    InsertQDQ().run(state)
    axis = state.qparams["w"].spec
    values, qparams = quantize_weight(weight, axis)
    again = state_of(proto)
    again.plan = default_plan(again)
    learned = np.where(values < 127, values + 1, values).astype(np.int8)
    again.weights["w"] = IntegerWeight(learned, qparams, "learned rounding")
    InsertQDQ().run(again)
    kept = np.arange(8) != 2
    np.testing.assert_array_equal(again.weights["w"].values[:, kept], learned[:, kept])
    assert not np.array_equal(again.weights["w"].values[:, 2], learned[:, 2])


@pytest.mark.parametrize("opset", [11, 12])
def test_old_opsets_get_one_scale_per_weight(opset: int) -> None:
    """DequantizeLinear has an axis from opset 13 on."""
    proto = text_model(TWO_CONVS, opset, w1=W1, b1=B1, w2=W2)
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert initializers(made)["w1_scale"].shape == ()
    assert not node_named(made, "w1_DequantizeLinear").attribute
    feed = feed_for(proto)
    assert sqnr_db(run(proto, feed)[0], run(made, feed, "ORT_ENABLE_ALL")[0]) > 20


def test_batched_weights_get_one_scale() -> None:
    """ONNX Runtime accepts a scale per column of a 3-D weight and fails when it runs."""
    weight = RNG.standard_normal((2, 8, 5)).astype(np.float32)
    proto = text_model("g (float[2,4,8] x) => (float[2,4,5] y) { y = MatMul (x, w) }", w=weight)
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert initializers(made)["w_scale"].shape == ()
    feed = feed_for(proto)
    assert sqnr_db(run(proto, feed)[0], run(made, feed, "ORT_ENABLE_ALL")[0]) > 30


def test_weights_in_constant_nodes_are_weights() -> None:
    proto = text_model(
        """g (float[N,2] x) => (float[N,2] y) {
          w = Constant <value = float[2,2] {1, -2, 3, 4}> ()  y = MatMul (x, w) }"""
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    made = insert(state)
    assert ops(made) == ["Q", "DQ", "DQ", "MatMul"]
    np.testing.assert_array_equal(
        initializers(made)["w_scale"], np.asarray([3, 4], np.float32) / np.float32(127)
    )


def test_a_constant_may_be_weight_and_operand() -> None:
    """As MatMul's weight int8 per column, as Add's operand uint8."""
    proto = text_model(
        """g (float[8,8] x) => (float[8,8] y) {
          a = MatMul (x, w)  s = Add (a, w)  y = MatMul (s, w) }""",
        w=M,
    )
    state = state_of(proto)
    state.plan = default_plan(state)
    held = initializers(insert(state))
    assert {held[n].dtype.name for n in held if n.startswith("w_quantized")} == {"int8", "uint8"}
