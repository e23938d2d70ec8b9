"""Matrices that get 8 bits before anything is rounded: which, and that a killed compile knows them again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest

import qcompile
from qcompile import dear_matrices, weights_flow
from qcompile.backends.tables import get_target
from qcompile.ir.matrices import find_matrices
from qcompile.options import make_options
from qcompile.weights_plan import MatrixChoice, choose_matrices, raise_dear

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
branch (float[n, 64] x) => (float[n, 64] y) {
  a = MatMul (x, narrow)
  b = Relu (a)
  h = MatMul (x, up)
  r = Relu (h)
  d = MatMul (r, down)
  s = Add (b, d)
  y = Tanh (s)
}
"""


@pytest.fixture
def model() -> onnx.ModelProto:
    """Nearly all of the output comes through the smallest matrix."""
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    arrays = {
        "narrow": rng.standard_normal((64, 64)) / 8,
        "up": rng.standard_normal((64, 256)) / 80,
        "down": rng.standard_normal((256, 64)) / 80,
    }
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    return proto


@pytest.fixture
def choices(model: onnx.ModelProto) -> list[MatrixChoice]:
    form = get_target("ort-int4").weights
    assert form is not None
    return choose_matrices(find_matrices(oir.from_proto(model))[0], form, make_options())


def compiled(model: onnx.ModelProto, path: Path, **options: object) -> qcompile.CompileResult:
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((24, 64)).astype(np.float32)} for _ in range(12)]
    defaults = {"target": "ort-int4", "min_speedup": 1e-6, "gate_time": "0.2s", "threads": 1}
    given = {**defaults, "min_sqnr": 5, **options}
    return qcompile.compile(model, calibration=feeds, output=path / "out", **given)


def precisions(result: qcompile.CompileResult) -> dict[str, str]:
    return {row["name"]: row["precision"] for row in result.report.data["matrices"]}


def test_8_bits_go_where_a_byte_buys_most(choices: list[MatrixChoice]) -> None:
    assert [c.matrix.name for c in choices] == ["narrow", "up", "down"]
    sizes = [c.matrix.size for c in choices]
    mean = {c.matrix.name: float(c.matrix.size) for c in choices}
    assert raise_dear(choices, mean) == choices
    assert raise_dear(choices, {}) == choices
    raised = raise_dear(choices, {**mean, "narrow": 3.0 * sizes[0]})
    assert [c.precision for c in raised] == ["int8-weights", "int4-weights", "int4-weights"]
    assert raised[0].reason.endswith("of what few bits do to the output")


def test_the_default_raises_them_before_it_rounds(model: onnx.ModelProto, tmp_path: Path) -> None:
    result = compiled(model, tmp_path)
    found = precisions(result.check())
    assert found == {"narrow": "int8-weights", "up": "int4-weights", "down": "int4-weights"}
    names = [row["name"] for row in result.report.data["plan"]["candidates"]]
    assert names == ["descent, 11% of the weights in 8 bits"]
    plain = precisions(compiled(model, tmp_path / "2", algorithm="gptq").check())
    assert set(plain.values()) == {"int4-weights"}
    lock = tmp_path / "kept.lock"
    lock.write_bytes((tmp_path / "out" / "qcompile.lock").read_bytes())
    again = compiled(model, tmp_path / "3", locked=True, lock=lock)
    assert again.report.data["hashes"] == result.report.data["hashes"]


def test_a_killed_compile_does_not_measure_again(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(weights_flow, "round_matrices", killed)
        with pytest.raises(KeyboardInterrupt):
            compiled(model, tmp_path)
    monkeypatch.setattr(dear_matrices, "disturbances", killed)
    found = precisions(compiled(model, tmp_path).check())
    assert found["narrow"] == "int8-weights"
