"""Weights whose fake quant was folded into numbers, as tf2onnx writes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompile.ir.affine import dequantize
from qcompile.ir.graph import constant
from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.spec import QuantSpec, per_axis
from qcompile.passes.fold_batchnorm import FoldBatchNorm
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.keep_weights import KeepWeights
from qcompile.passes.lift_pairs import LiftPairs
from qcompile.passes.lift_weights import LiftWeights
from qcompile.passes.recover_grid import RecoverGrid
from tests.passes.checks import parse, state_of
from tests.passes.test_lift_pairs import LEGAL

RNG = np.random.default_rng(2)

# NHWC input, Q/DQ on activations alone, the weight a float constant
TF = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 4, 4, 2] x) => (float[1, 3, 4, 4] y) <float s = {0.03}, uint8 z = {7}> {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    t = Transpose<perm = [0, 3, 1, 2]>(xd)
    c = Conv<pads = [1, 1, 1, 1]>(t, w)
    y = BatchNormalization(c, gamma, beta, mean, var)
}"""


def grid(shape: tuple[int, ...], axis: int) -> np.ndarray:
    scale = RNG.uniform(0.01, 0.02, shape[axis]).astype(np.float32)
    along = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return (RNG.integers(-127, 128, shape).astype(np.float32) * along).astype(np.float32)


def prepared(weight: np.ndarray) -> tuple[CompileState, PassManager]:
    arrays = {"w": weight, "gamma": RNG.uniform(0.5, 2, 3).astype(np.float32)}
    arrays |= {"var": RNG.uniform(0.5, 2, 3).astype(np.float32)}
    arrays |= {k: RNG.normal(size=3).astype(np.float32) for k in ("beta", "mean")}
    state = replace(state_of(parse(TF, **arrays)), target=LEGAL)
    manager = PassManager(
        [FoldConstants(), LiftWeights(), FoldBatchNorm(), LiftPairs(), KeepWeights(), RecoverGrid()]
    )
    manager.run(state)
    return state, manager


def test_the_grid_is_kept_through_a_batch_norm() -> None:
    state, manager = prepared(grid((3, 2, 3, 3), 0))
    ((name, weight),) = state.weights.items()
    stored = constant(state.model.graph.initializers[name])
    assert stored is not None
    np.testing.assert_allclose(
        dequantize(weight.values, weight.qparams), stored, atol=2e-6 * np.abs(stored).max()
    )
    assert state.qparams[name] is weight.qparams
    (note,) = manager.records[-1].notes
    assert note.changed and "keeps its own grid" in note.text
    assert RecoverGrid().run(state).changed == 0


def test_what_only_moves_keeps_the_given_scale() -> None:
    state, _ = prepared(grid((3, 2, 3, 3), 0))
    assert state.qparams["t"] == state.qparams["x"]


@pytest.mark.parametrize("weight", [grid((3, 2, 3, 3), 1), RNG.normal(size=(3, 2, 3, 3))])
def test_no_grid_or_one_of_input_channels(weight: np.ndarray) -> None:
    state, _ = prepared(weight.astype(np.float32))
    assert not state.weights


def test_a_model_without_scales_of_its_own_is_left_alone() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 2, 4, 4] x) => (float[1, 3, 2, 2] y) { y = Conv(x, w) }"""
    state = replace(state_of(parse(text, w=grid((3, 2, 3, 3), 0))), target=LEGAL)
    assert RecoverGrid().run(state).changed == 0 and not state.weights


def test_a_target_of_another_type_is_left_alone() -> None:
    state, _ = prepared(grid((3, 2, 3, 3), 0))
    state.weights.clear()
    spec = QuantSpec("int4", symmetric=True, granularity=per_axis(0))
    narrow = replace(state, target=replace(LEGAL, weight=spec))
    assert RecoverGrid().run(narrow).changed == 0
