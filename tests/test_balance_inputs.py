"""AWQ: scales are folded into what stands before, and the float function stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest

import qcompile
from qcompile.balance_inputs import balance_group, fold_columns
from qcompile.calibrators.awq import balance
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockSpec
from qcompile.ir.matrices import find_matrices
from qcompile.stream_weights import groups_of

WIDTH = 64
MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
block (float[batch, 64] x) => (float[batch, 64] y) {
  n = LayerNormalization <axis = -1> (x, gamma, beta)
  g = MatMul (n, gate)
  u = MatMul (n, up)
  s = Sigmoid (g)
  h = Mul (s, u)
  d = MatMul (h, down)
  y = Add (x, d)
}
"""


@pytest.fixture
def proto() -> onnx.ModelProto:
    made = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    shapes = {"gate": (64, 128), "up": (64, 128), "down": (128, 64), "gamma": (64,), "beta": (64,)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        if name == "gamma":
            array *= 1 + 20 * (np.arange(64) % 16 == 0)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((6, 64)).astype(np.float32)} for _ in range(12)]


def test_large_inputs_get_more_of_the_grid() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((32, 64)).astype(np.float32)
    size = np.where(np.arange(64) % 16 == 0, 30.0, 1.0)
    found = balance([matrix], [BlockSpec(3, 32)], np.diag(size**2))
    assert found.exponent > 0
    assert found.error < 0.9 * found.plain_error
    even = balance([matrix], [BlockSpec(3, 32)], np.eye(64))
    assert even.error == even.plain_error


def test_scales_fold_into_the_norm_and_into_the_rows_before(proto: onnx.ModelProto) -> None:
    model = oir.from_proto(proto)
    matrices, _ = find_matrices(model)
    rng = np.random.default_rng(2)
    columns, weights, specs = {}, {}, {}
    for group in groups_of(model, matrices):
        width = group.matrices[0].shape[1]
        scale = rng.uniform(0.5, 2, width).astype(np.float32)
        for matrix in group.matrices:
            specs[matrix.name] = BlockSpec(8, 32)
            columns[matrix.name] = scale
            weights[matrix.name] = fit_blocks(matrix.array() * scale, specs[matrix.name])
        assert balance_group(
            group,
            specs | dict.fromkeys((m.name for m in group.matrices), BlockSpec(8, 32)),
            matrices,
            np.eye(width),
        )
    fold_columns(model, matrices, columns, weights)
    arrays = {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    x = feeds()[0]["x"]

    def run(gamma: np.ndarray, beta: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
        n = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        n = n * gamma + beta
        return np.asarray(
            ((0.5 * (1 + np.tanh(n @ w["gate"].T / 2))) * (n @ w["up"].T)) @ w["down"].T
        )

    plain = {m.name: m.array() for m in matrices}
    wanted = run(arrays["gamma"], arrays["beta"], plain)
    made = [k for k in arrays if k.endswith("_balanced")]
    assert sorted(made) == ["beta_balanced", "gamma_balanced"]
    found = run(
        arrays["gamma_balanced"],
        arrays["beta_balanced"],
        {name: weight.values() for name, weight in weights.items()},
    )
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_tensor_that_others_read_is_left_alone(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(1, onnx.helper.make_node("Neg", ["n"], ["other"]))
    model = oir.from_proto(proto)
    matrices, _ = find_matrices(model)
    group = groups_of(model, matrices)[0]
    specs = {m.name: BlockSpec(4, 32) for m in matrices}
    assert balance_group(group, specs, matrices, np.eye(64)) is None


def test_the_whole_flow_with_awq(proto: onnx.ModelProto, tmp_path: Path) -> None:
    results = {}
    for algorithm in ("rtn", "awq"):
        results[algorithm] = qcompile.compile(
            proto, target="ort-int4", calibration=feeds(), algorithm=algorithm, bits=3,
            output=tmp_path / algorithm, min_speedup=0.01, gate_time="0.2s", threads=1,
            min_sqnr=-20.0,
        ).check()  # fmt: skip
    awq, rtn = (results[k].report.sqnr_db for k in ("awq", "rtn"))
    assert awq is not None
    assert rtn is not None
    assert awq > rtn
