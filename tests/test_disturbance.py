"""What each matrix alone does to the output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.disturbance import disturbances, divergence, relative_error
from qcompile.ir.matrices import find_matrices

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[n, 4] x) => (float[n, 4] y) {
  h = MatMul (x, first)
  y = Gemm <transB = 1> (h, second)
}
"""


@pytest.fixture
def model() -> oir.Model:
    proto = onnx.parser.parse_model(MODEL)
    for name, array in {"first": np.eye(4), "second": np.diag([1.0, 1.0, 1.0, 3.0])}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    return oir.from_proto(proto)


def test_each_matrix_is_replaced_alone(model: oir.Model, tmp_path: Path) -> None:
    matrices = {m.name: m for m in find_matrices(model)[0]}
    wrong = np.eye(4, dtype="f")
    wrong[1, 0] = 0.5  # (out, in): output 1 takes half of input 0
    feeds = [{"x": np.array([[1.0, 1.0, 1.0, 1.0]], "f")}]
    found = disturbances(
        model,
        {
            "first": (matrices["first"], lambda: wrong),
            "second": (matrices["second"], matrices["second"].array),
        },
        feeds,
        tmp_path,
        relative_error,
    )
    assert found["first"] == pytest.approx(0.25 / 12)
    assert found["second"] == 0.0
    assert not model.graph.inputs[1:]
    assert not list(tmp_path.iterdir())


def test_divergence_is_that_of_the_distributions() -> None:
    first, second = np.log([[[0.5, 0.5]]]), np.log([[[0.9, 0.1]]])
    apart = divergence("z")({"z": first.astype("f") + 7})
    assert apart({"z": second.astype("f")}) == pytest.approx(
        0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1), rel=1e-5
    )
    assert apart({"z": first.astype("f")}) == pytest.approx(0.0, abs=1e-6)


def test_integers_and_zeros_are_no_reference() -> None:
    apart = relative_error({"k": np.array([1]), "z": np.zeros(3, "f"), "y": np.ones(2, "f")})
    assert apart({"k": np.array([5]), "z": np.ones(3, "f"), "y": np.array([1.0, 0.0], "f")}) == 0.5
