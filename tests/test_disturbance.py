"""What each matrix alone does to the output."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.backends.ort import open_session
from qcompile.disturbance import _single_carriers, disturbances, divergence, relative_error
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


def test_each_matrix_is_replaced_alone(model: oir.Model) -> None:
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
        relative_error,
    )
    assert found["first"] == pytest.approx(0.25 / 12)
    assert found["second"] == 0.0
    assert not model.graph.inputs[1:]


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


STREAM = """
<ir_version: 8, opset_import: ["" : 17]>
stream (float[n, 8] x, float[n, 8] mask) => (float[n, 8] y, float[n, 8] inner) {
  h1 = MatMul (x, a)
  h2 = Relu (h1)
  inner = MatMul (h2, b)
  r = Add (x, inner)
  masked = Mul (r, mask)
  g = MatMul (masked, c)
  s = Add (r, g)
  t = Tanh (s)
  y = MatMul (t, d)
}
"""


@pytest.fixture
def stream() -> oir.Model:
    proto = onnx.parser.parse_model(STREAM)
    rng = np.random.default_rng(0)
    for name in "abcd":
        array = (rng.normal(size=(8, 8)) / 3).astype("f")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return oir.from_proto(proto)


def test_a_model_is_cut_where_one_tensor_carries_all(stream: oir.Model) -> None:
    nodes = list(stream.graph)
    reads = [[v.name or "" for v in n.inputs if v is not None] for n in nodes]
    writes = [[v.name or "" for v in n.outputs] for n in nodes]
    # the mask depends on no matrix, so it crosses too and does not count
    assert _single_carriers(reads, writes, set("abcd")) == ([1, 3, 7, 9], ["h1", "inner", "s", ""])


def test_parts_tell_what_whole_runs_tell(stream: oir.Model) -> None:
    matrices = {m.name: m for m in find_matrices(stream)[0]}
    rng = np.random.default_rng(1)
    values = {
        n: np.asarray(m.array() + 0.01 * rng.normal(size=(8, 8)), np.float32)
        for n, m in matrices.items()
    }
    feeds = [
        {"x": rng.normal(size=(64, 8)).astype("f"), "mask": np.ones((64, 8), "f")} for _ in "12"
    ]
    found = disturbances(
        stream, {n: (m, lambda n=n: values[n]) for n, m in matrices.items()}, feeds, relative_error
    )
    for name, matrix in matrices.items():
        copy = stream.clone()
        changed = values[name].T if matrix.turned else values[name]
        copy.graph.initializers[name].const_value = oir.tensor(np.ascontiguousarray(changed))
        first, second = (open_session(oir.to_proto(m).SerializeToString()) for m in (stream, copy))
        far = [relative_error(first.run(feed))(second.run(feed)) for feed in feeds]
        assert found[name] == pytest.approx(np.mean(far), rel=1e-4)
