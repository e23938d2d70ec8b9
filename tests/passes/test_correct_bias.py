"""CorrectBias: shifts go into the biases of integer layers, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
import pytest

from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC, PrecisionPlan
from qcompile.passes.correct_bias import CorrectBias, takes_shift
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import feed_for, initializers, ops, run, state_of, text_model

RNG = np.random.default_rng(7)
SHIFT = np.arange(1, 5, dtype=np.float32)
W = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
M = RNG.standard_normal((8, 4)).astype(np.float32)
B = RNG.standard_normal(4).astype(np.float32)

CONV = "g (float[1,3,6,6] x) => (float[1,4,4,4] y) { y = Conv (x, w) }"
CONV_BIAS = "g (float[1,3,6,6] x) => (float[1,4,4,4] y) { y = Conv (x, w, b) }"
GEMM = "g (float[2,8] x) => (float[2,4] y) { y = Gemm (x, m, b) }"
GEMM_BARE = "g (float[2,8] x) => (float[2,4] y) { y = Gemm (x, m) }"
MATMUL_ADD = "g (float[2,3,8] x) => (float[2,3,4] y) { t = MatMul (x, m)  y = Add (b, t) }"


def corrected(
    proto: onnx.ModelProto, shifts: dict[str, npt.NDArray[np.float32]], precision: str = INT8
) -> tuple[onnx.ModelProto, PassManager, CompileState]:
    state = state_of(proto, calibrate=False)
    plan = default_plan(state)
    state.plan = PrecisionPlan(tuple(replace(c, precision=precision) for c in plan.layers))
    state.bias_shifts = dict(shifts)
    manager = PassManager([CorrectBias()])
    manager.run(state)
    made = oir.to_proto(state.model)
    onnx.checker.check_model(made, full_check=True)
    return made, manager, state


@pytest.mark.parametrize(
    ("graph", "node"),
    [
        (CONV, "n_y"),
        (CONV_BIAS, "n_y"),
        (GEMM, "n_y"),
        (GEMM_BARE, "n_y"),
        (MATMUL_ADD, "n_t"),
    ],
)
def test_every_output_channel_moves_by_its_shift(graph: str, node: str) -> None:
    arrays = {"w": W, "m": M, "b": B}
    used = {k: v for k, v in arrays.items() if f", {k}" in graph or f"({k}" in graph}
    proto = text_model(graph, **used)
    made, manager, state = corrected(proto, {node: SHIFT})
    assert manager.records[0].changed == 1
    feed = feed_for(proto)
    shape = (1, 4, 1, 1) if "Conv" in graph else (4,)
    expected = run(proto, feed)[0] + SHIFT.reshape(shape)
    np.testing.assert_allclose(run(made, feed)[0], expected, rtol=1e-5, atol=1e-5)
    assert ops(made) == ops(proto)
    assert "b" not in initializers(made)
    again = PassManager([CorrectBias()])
    again.run(state)
    assert again.records[0].changed == 0


@pytest.mark.parametrize("bias", [np.ones(1, np.float32), np.ones((1, 4), np.float32)])
def test_gemm_biases_that_broadcast_become_one_number_a_channel(
    bias: npt.NDArray[np.float32],
) -> None:
    made, _, _ = corrected(text_model(GEMM, m=M, b=bias), {"n_y": SHIFT})
    assert [a.shape for n, a in initializers(made).items() if n != "m"] in ([(4,)], [(1, 4)])


def test_layers_that_the_plan_leaves_float_keep_their_biases() -> None:
    proto = text_model(CONV_BIAS, w=W, b=B)
    made, manager, _ = corrected(proto, {"n_y": SHIFT}, FLOAT)
    assert manager.records[0].changed == 0
    np.testing.assert_array_equal(initializers(made)["b"], B)


def test_layers_that_quantize_at_run_time_are_integer_too() -> None:
    _, manager, _ = corrected(text_model(MATMUL_ADD, m=M, b=B), {"n_t": SHIFT}, INT8_DYNAMIC)
    assert manager.records[0].changed == 1


def test_a_bias_with_another_reader_stays_for_it() -> None:
    proto = text_model(
        """g (float[2,8] x) => (float[2,4] y) {
          a = Gemm (x, m, b)  t = Tanh (a)  y = Add (t, b) }""",
        m=M,
        b=B,
    )
    made, _, _ = corrected(proto, {"n_a": SHIFT})
    np.testing.assert_array_equal(initializers(made)["b"], B)
    np.testing.assert_allclose(initializers(made)["b_corrected"], B + SHIFT)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("{ y = MatMul (x, m) }", "no constant is added"),
        ("{ t = MatMul (x, m)  y = Add (t, t) }", "no constant is added"),
        ("{ t = MatMul (x, m)  u = Add (t, b)  y = Mul (u, t) }", "no constant is added"),
    ],
)
def test_products_without_a_constant_of_their_own_are_left(graph: str, reason: str) -> None:
    arrays = {"m": M, "b": B} if ", b" in graph else {"m": M}
    proto = text_model(f"g (float[2,3,8] x) => (float[2,3,4] y) {graph}", **arrays)
    node = proto.graph.node[0].name
    _, manager, _ = corrected(proto, {node: SHIFT})
    assert manager.records[0].changed == 0
    assert reason in manager.records[0].notes[0].text


def test_a_constant_that_widens_the_product_takes_no_shift() -> None:
    """(2,1) + (4): the channels of the sum are not those of the product."""
    proto = text_model(
        "g (float[2,8] x) => (float[2,4] y) { t = MatMul (x, m)  y = Add (t, b) }",
        m=M[:, :1],
        b=B,
    )
    state = state_of(proto, calibrate=False)
    assert takes_shift(next(iter(state.model.graph))) == (
        "no constant is added to its result alone"
    )


def test_unknown_origins_are_ignored() -> None:
    proto = text_model(CONV, w=W)
    made, manager, _ = corrected(proto, {"elsewhere": SHIFT})
    assert manager.records[0].changed == 0
    assert len(made.graph.node[0].input) == 2
