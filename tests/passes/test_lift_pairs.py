"""Models that come with Q/DQ: pairs and integer weights are read, remembered, and given back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as oir
import pytest

from qcompile.ir.affine import QParams, dequantize
from qcompile.ir.graph import constant
from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.spec import QuantSpec
from qcompile.ir.target import OpSupport
from qcompile.passes.fold_affine import FoldAffine
from qcompile.passes.fold_batchnorm import FoldBatchNorm
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.keep_weights import KeepWeights
from qcompile.passes.lift_pairs import LiftPairs
from qcompile.passes.lift_weights import LiftWeights
from tests.passes.checks import TARGET, ops, parse, run, state_of

RNG = np.random.default_rng(5)
CONV = OpSupport(
    "Conv", "compute", activations=(0,), weight=1, bias=2, weight_axis=0, source="test"
)
MATMUL = OpSupport(
    "MatMul", "compute", activations=(0,), weight=1, bias=None, weight_axis=1, source="test"
)
LEGAL = replace(TARGET, ops={"Conv": CONV, "MatMul": MATMUL})

# as torch.onnx.export writes a Conv of torch.ao's prepare_qat: the batch norm is divided out of the
# folded weight's result and applied again
TORCH = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y)
<float sx = {0.03}, uint8 zx = {7}, float sy = {0.05}, uint8 zy = {0}> {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    wq = QuantizeLinear<axis = 0>(w, sw, zw)
    wd = DequantizeLinear<axis = 0>(wq, sw, zw)
    c = Conv<pads = [1, 1, 1, 1]>(xd, wd)
    d = Div(c, factor)
    a = Add(d, b)
    n = BatchNormalization<epsilon = 0.00001>(a, gamma, beta, mean, var)
    r = Relu(n)
    rq = QuantizeLinear(r, sy, zy)
    y = DequantizeLinear(rq, sy, zy)
}"""


def torch_model() -> CompileState:
    gamma = RNG.uniform(0.5, 2, 3).astype(np.float32)
    var = RNG.uniform(0.5, 2, 3).astype(np.float32)
    factor = (gamma / np.sqrt(var + np.float32(1e-5))).reshape(1, 3, 1, 1)
    w = RNG.normal(size=(3, 2, 3, 3)).astype(np.float32)
    sw = (np.abs(w).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    arrays = {"w": w, "sw": sw, "zw": np.zeros(3, np.int8), "gamma": gamma, "var": var}
    arrays |= {"factor": factor, "b": RNG.normal(size=(1, 3, 1, 1)).astype(np.float32)}
    arrays |= {k: RNG.normal(size=3).astype(np.float32) for k in ("beta", "mean")}
    return replace(state_of(parse(TORCH, **arrays)), target=LEGAL)


def lift(state: CompileState, *folds: object) -> PassManager:
    manager = PassManager(
        [FoldConstants(), LiftWeights(), *folds, LiftPairs(), KeepWeights()]  # type: ignore[list-item]
    )
    manager.run(state)
    return manager


def texts(manager: PassManager) -> str:
    return "; ".join(note.text for record in manager.records for note in record.notes)


def test_a_folded_batch_norm_leaves_the_scales_bit_for_bit() -> None:
    state = torch_model()
    sw = constant(state.model.graph.initializers["sw"])
    lift(state, FoldBatchNorm(), FoldAffine())
    assert ops(state.model) == ["Conv", "Relu"]
    weight = next(iter(state.weights.values()))
    assert sw is not None and weight.qparams.scale.tobytes() == sw.tobytes()
    assert state.qparams["x"].scale == np.float32(0.03) and state.qparams["x"].zero_point == 7
    assert state.qparams["y"].scale == np.float32(0.05)
    stored = constant(state.model.graph.initializers[next(iter(state.weights))])
    np.testing.assert_allclose(dequantize(weight.values, weight.qparams), stored, rtol=1e-5)


def test_lifting_weights_alone_changes_no_number() -> None:
    state = torch_model()
    before = state.model.clone()
    PassManager([LiftWeights()]).run(state)
    assert ops(state.model).count("DequantizeLinear") == 2
    feed = {"x": RNG.normal(size=(1, 2, 4, 4)).astype(np.float32)}
    np.testing.assert_array_equal(run(state.model, feed)[0], run(before, feed)[0])
    manager = PassManager([LiftWeights()])
    manager.run(state)
    assert manager.records[0].changed == 0


PLAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2, 4] x) => (float[2, 4] y) <float sx = {0.03}, %s zx = {%d}, float sw = {0.01}> {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    wd = DequantizeLinear(w, sw)
    %s
}"""
INTEGERS = RNG.integers(-128, 128, (4, 4)).astype(np.int8)


def plain(body: str, dtype: str = "uint8", zero: int = 5) -> CompileState:
    model = parse(PLAIN % (dtype, zero, body), w=INTEGERS)
    return replace(state_of(model), target=LEGAL)


def test_signed_activations_move_to_the_targets_type_on_the_same_grid() -> None:
    state = plain("y = MatMul(xd, wd)", "int8", -3)
    lift(state)
    found = state.qparams["x"]
    assert found.zero_point == 125 and found.zero_point.dtype == np.uint8
    assert found.scale == np.float32(0.03)
    np.testing.assert_array_equal(state.weights["wd"].values, INTEGERS)
    assert state.weights["wd"].qparams.scale == np.float32(0.01)


def test_a_transposed_weight_is_found_again() -> None:
    state = plain("t = Transpose<perm = [1, 0]>(wd) y = MatMul(xd, t)")
    lift(state, FoldConstants())
    np.testing.assert_array_equal(state.weights["t"].values, INTEGERS.T)


def test_a_factor_folded_into_a_weight_goes_into_its_scales() -> None:
    state = plain("m = MatMul(xd, wd) k = Constant<value = float {0.5}>() y = Mul(m, k)")
    manager = lift(state, FoldAffine())
    weight = next(iter(state.weights.values()))
    np.testing.assert_array_equal(weight.values, INTEGERS)
    np.testing.assert_allclose(weight.qparams.scale, 0.005, rtol=1e-6)
    assert "integers kept, scales multiplied" in texts(manager)


def test_a_weight_that_became_another_is_rounded_anew() -> None:
    state = plain(
        "k = Constant<value = float[4, 1] {1.0, 2.0, 3.0, 4.0}>() v = Mul(wd, k)\ny = MatMul(xd, v)"
    )
    manager = lift(state, FoldConstants())
    assert not state.weights
    assert "weight rounded anew" not in texts(manager)  # another constant reads it, no layer does
    assert ops(state.model) == ["MatMul"]


def test_an_asymmetric_weight_without_room_is_rounded_anew() -> None:
    text = PLAIN % ("uint8", 5, "y = MatMul(xd, wd)")
    model = parse(
        text.replace("DequantizeLinear(w, sw)", "DequantizeLinear(w, sw, zw)"),
        w=(INTEGERS.astype(np.int32) + 128).astype(np.uint8),
        zw=np.array(3, np.uint8),
    )
    state = replace(state_of(model), target=LEGAL)
    manager = lift(state)
    assert not state.weights
    assert "its integers leave -128 to 127 when its zero point is 0" in texts(manager)


def test_a_target_with_symmetric_ranges_measures_shifted_ones_anew() -> None:
    state = plain("y = MatMul(xd, wd)")
    state.target = replace(LEGAL, activation=QuantSpec("int8", symmetric=True))
    manager = lift(state)
    assert "x" not in state.qparams and ops(state.model) == ["MatMul"]
    assert "the target needs a symmetric range" in texts(manager)


@pytest.mark.parametrize(
    ("dtype", "more", "reason"),
    [
        ("uint16", "y = Identity(m)", "uint16 is not uint8"),
        ("uint8", "c = Cast<to = 1>(xq) y = Add(m, c)", "Cast 'Cast_4' reads its integers"),
    ],
)
def test_what_the_target_cannot_have_stays(dtype: str, more: str, reason: str) -> None:
    text = (PLAIN % (dtype, 5, f"m = MatMul(xd, wd) {more}")).replace("17]>", "21]>")
    state = replace(state_of(parse(text, w=INTEGERS)), target=LEGAL)
    manager = lift(state)
    assert "QuantizeLinear" in ops(state.model) and "x" not in state.qparams
    assert "stays as it is" in texts(manager) and reason in texts(manager)


def test_two_scales_for_one_tensor_are_said() -> None:
    second = "q2 = QuantizeLinear(x, k, zx) d2 = DequantizeLinear(q2, k, zx) b = MatMul(d2, wd)"
    body = f"k = Constant<value = float {{0.5}}>() {second} a = MatMul(xd, wd) y = Add(a, b)"
    state = plain(body)
    manager = lift(state)
    assert state.qparams["x"].scale == np.float32(0.03)
    assert "came with two scales; the first, 0.03, is kept" in texts(manager)


def test_a_pair_at_an_output_leaves_its_name() -> None:
    state = plain(
        "m = MatMul(xd, wd) mq = QuantizeLinear(m, sx, zx) y = DequantizeLinear(mq, sx, zx)"
    )
    lift(state)
    assert [v.name for v in state.model.graph.outputs] == ["y"]
    assert isinstance(state.qparams["y"], QParams)
    assert isinstance(state.model, oir.Model)
