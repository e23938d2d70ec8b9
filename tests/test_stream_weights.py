"""Rounding layer after layer with what each really reads; a killed compile goes on to the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.calibrators.gptq import gptq
from qcompile.checkpoint import Checkpoint
from qcompile.ir.blocks import BlockSpec
from qcompile.ir.matrices import Matrix, find_matrices
from qcompile.stream_weights import Group, groups_of, second_moments, stream

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
mlp (float[batch, 24] x) => (float[batch, 16] y) {
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  h = Mul (q, k)
  r = Relu (h)
  y = Gemm <transB = 1> (r, wo)
}
"""


@pytest.fixture
def model() -> oir.Model:
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in (("wq", (24, 32)), ("wk", (24, 32)), ("wo", (16, 32))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return oir.from_proto(proto)


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((5, 24)).astype(np.float32)} for _ in range(8)]


def test_matrices_that_read_one_tensor_are_a_group(model: oir.Model) -> None:
    groups = groups_of(model, find_matrices(model)[0])
    assert [(g.tensor, [m.name for m in g.matrices]) for g in groups] == [
        ("x", ["wq", "wk"]),
        ("r", ["wo"]),
    ]


def rounded(model: oir.Model, checkpoint: Checkpoint, stop: int = 9) -> dict[str, np.ndarray]:
    """GPTQ of every matrix; raises KeyboardInterrupt at the matrix with number ``stop``."""
    found: dict[str, np.ndarray] = {}

    def act(group: Group, matrix: Matrix, moments) -> np.ndarray:  # type: ignore[no-untyped-def] # noqa: ANN001
        if len(found) == stop:
            raise KeyboardInterrupt
        done = checkpoint.load(matrix.name)
        weight = done[0] if done else gptq(matrix.array(), moments(), BlockSpec(3, 16)).weight
        if done is None:
            checkpoint.save(matrix.name, weight, {"how": "gptq"})
        found[matrix.name] = weight.values()
        return found[matrix.name]

    stream(model, feeds(), groups_of(model, find_matrices(model)[0]), {}, act, checkpoint)
    return found


def test_a_later_layer_reads_what_the_integers_make_of_the_samples(model: oir.Model) -> None:
    found = rounded(model, Checkpoint(None, {}))
    x = np.concatenate([f["x"] for f in feeds()])
    r = np.maximum((x @ found["wq"].T) * (x @ found["wk"].T), 0)
    last = next(m for m in find_matrices(model)[0] if m.name == "wo")
    wanted = gptq(last.array(), (r.T @ r / len(r)).astype(np.float64), BlockSpec(3, 16))
    error = found["wo"] - last.array()
    moments = (r.T @ r / len(r)).astype(np.float64)
    signal = np.einsum("oi,oi->", last.array() @ moments, last.array())
    assert np.einsum("oi,oi->", error @ moments, error) / signal == pytest.approx(
        wanted.error, rel=1e-3
    )


def test_a_killed_compile_goes_on_to_the_same_bytes(model: oir.Model, tmp_path: Path) -> None:
    whole = rounded(model, Checkpoint(None, {}))
    with pytest.raises(KeyboardInterrupt):
        rounded(model, Checkpoint(tmp_path / "p", {"a": 1}), stop=2)
    again = Checkpoint(tmp_path / "p", {"a": 1})
    assert again.load("wq") is not None
    later = rounded(model, again)
    for name, array in whole.items():
        np.testing.assert_array_equal(array, later[name])
    assert Checkpoint(tmp_path / "p", {"a": 2}).load("wq") is None  # another compile's
    again.remove()
    assert not (tmp_path / "p").exists()


def test_second_moments_are_the_mean_over_all_rows() -> None:
    arrays = [np.random.default_rng(i).standard_normal((3, 4, 6)) for i in range(4)]
    rows = np.concatenate([a.reshape(-1, 6) for a in arrays])
    found = second_moments(iter(arrays))
    np.testing.assert_allclose(found, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)
