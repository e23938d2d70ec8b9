"""16-bit activations, as NPUs have kernels for: legal from opset 21 on, and refused before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from qcompile.ir.plan import FLOAT, INT8
from qcompile.ir.spec import QDType, QuantSpec
from qcompile.ir.target import Target
from qcompile.ir.verify import verify
from qcompile.passes.quantizable import classify
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import VNNI, feed_for, insert, ops, run, sqnr_db, state_of, text_model

RNG = np.random.default_rng(11)

NET = """g (float[1, 16, 8, 8] x) => (float[1, 16, 4, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    y = Conv <pads = [1, 1, 1, 1]> (p, w2)
}"""


def wide(dtype: QDType) -> Target:
    """A synthetic NPU: 16-bit activations, 8-bit weights."""
    kernels = {k: VNNI.ops[k] for k in ("Conv", "Relu", "MaxPool")}
    return replace(
        VNNI,
        name="npu",
        backend="none",
        device="none",
        activation=QuantSpec(dtype, symmetric=dtype == "int16"),
        ops=kernels,
        qdq_opset=21,
    )


def net(opset: int = 21) -> onnx.ModelProto:
    def weight(*shape: int) -> np.ndarray:
        return (RNG.standard_normal(shape) * 0.2).astype(np.float32)

    proto = text_model(NET, opset, w1=weight(16, 16, 3, 3), b1=weight(16), w2=weight(16, 16, 3, 3))
    proto.ir_version = 10
    return proto


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_the_graph_is_legal_and_nearly_exact(dtype: QDType) -> None:
    proto = net()
    state = state_of(proto, wide(dtype))
    state.plan = default_plan(state)
    assert {c.precision for c in state.plan.layers} == {INT8}
    result = insert(state)
    verify(state.model)
    onnx.checker.check_model(result, full_check=True)
    held = {i.name: onnx.numpy_helper.to_array(i) for i in result.graph.initializer}
    activations = [n for n in result.graph.node if n.op_type == "QuantizeLinear"]
    assert len(activations) == 4  # x, r, p and y
    assert {held[n.input[2]].dtype.name for n in activations} == {dtype}
    if dtype == "int16":
        assert all(held[n.input[2]] == 0 for n in activations)
    weights = [n for n in result.graph.node if n.input[0] == "w1_quantized"]
    assert held[weights[0].input[0]].dtype == np.int8
    feed = feed_for(proto)
    exact, found = run(proto, feed)[0], run(result, feed)[0]
    eight = state_of(proto, replace(wide(dtype), activation=VNNI.activation))
    eight.plan = default_plan(eight)
    coarse = run(insert(eight), feed)[0]
    # what is left is the rounding of the weights
    assert sqnr_db(exact, found) > sqnr_db(exact, coarse)


def test_only_the_bias_must_fit_beside_16_bits() -> None:
    proto = net()
    state = state_of(proto, wide("uint16"))
    state.plan = default_plan(state)
    insert(state)
    eight = state_of(proto, VNNI)
    eight.plan = default_plan(eight)
    insert(eight)
    np.testing.assert_array_equal(
        state.weights["w1"].qparams.scale, eight.weights["w1"].qparams.scale
    )


def test_before_opset_21_it_is_refused() -> None:
    state = state_of(net(20), wide("uint16"))
    reasons = {s.origin: s.reason for s in classify(state)}
    assert reasons["n_a"] == "opset 20 has no integer form; it needs opset 21"
    state.plan = default_plan(state)
    assert {c.precision for c in state.plan.layers} == {FLOAT}
    assert "Q" not in ops(insert(state))
