"""Rounding layer after layer with what each really reads; a killed compile goes on to the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest

from qcompile.calibrators.gptq import gptq
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.checkpoint import Checkpoint
from qcompile.ir.blocks import BlockSpec, PackedWeight
from qcompile.ir.codebook import to_codebook
from qcompile.ir.matrices import Matrix, find_matrices
from qcompile.stepper import Stepper
from qcompile.stream_weights import Group, Values, groups_of, second_moments, stream

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


def rounded(
    model: oir.Model, checkpoint: Checkpoint, stop: int = 9, spill: Path | None = None
) -> dict[str, np.ndarray]:
    """GPTQ of every matrix; raises KeyboardInterrupt at the matrix with number ``stop``."""
    found: dict[str, np.ndarray] = {}

    def act(group: Group, matrix: Matrix, inputs) -> Values:  # type: ignore[no-untyped-def] # noqa: ANN001
        if len(found) == stop:
            raise KeyboardInterrupt
        done = checkpoint.load(matrix.name)
        if done is None:
            made = gptq(matrix.array(), inputs().moments, BlockSpec(3, 16)).weight
            done = checkpoint.save(matrix.name, made, {"how": "gptq"})
        found[matrix.name] = done[0].values()
        return done[0].values

    stream(model, feeds(), groups_of(model, find_matrices(model)[0]), [], act, spill=spill)
    return found


def test_a_later_layer_reads_what_the_integers_make_of_the_samples(
    model: oir.Model, tmp_path: Path
) -> None:
    found = rounded(model, Checkpoint(tmp_path / "p", {}))
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
    whole = rounded(model, Checkpoint(tmp_path / "whole", {}))
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


def test_a_stored_matrix_is_mapped_and_equal_in_every_form(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((6, 40)).astype(np.float32)
    kept = Checkpoint(tmp_path / "p", {})
    for bits in (2, 3, 4, 8):
        for symmetric in (False, True):
            made = fit_blocks(matrix, BlockSpec(bits, 16, symmetric))
            found, about = kept.save(f"{bits} {symmetric}", made, {"how": "rtn"})
            assert about == {"how": "rtn"}
            assert isinstance(found, PackedWeight)
            np.testing.assert_array_equal(found.values(), made.values())
            np.testing.assert_array_equal(found.integers, made.integers)
            np.testing.assert_array_equal(found.packed(), made.packed())
            for one, other in ((found.zero, made.zero), (found.packed_zero(), made.packed_zero())):
                assert (one is None) == (other is None) == symmetric
                if one is not None and other is not None:
                    np.testing.assert_array_equal(one, other)
    codes = to_codebook(matrix[:, :32], 16)
    again = kept.save("nf4", codes, {})[0]
    np.testing.assert_array_equal(again.values(), codes.values())
    assert Checkpoint(tmp_path / "p", {}, "another attempt").load("nf4") is None
    assert Checkpoint(tmp_path / "p", {}).load("nf4") is not None


def test_large_weights_and_spilled_activations_give_the_same_numbers(tmp_path: Path) -> None:
    """Weights from 1 MiB are handed over as inputs, activations from 256 KiB lie in files."""
    proto = onnx.parser.parse_model(MODEL.replace("24]", "600]"))
    rng = np.random.default_rng(0)
    for name, shape in (("wq", (600, 512)), ("wk", (600, 512)), ("wo", (16, 512))):
        array = rng.standard_normal(shape).astype(np.float32) / 24
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = oir.from_proto(proto)
    x = [{"x": rng.standard_normal((160, 600)).astype(np.float32)} for _ in range(2)]
    spill = tmp_path / "live"
    spill.mkdir()
    stepper = Stepper(model, x, spill=spill)
    stepper.run_to(2)
    assert len(list(spill.iterdir())) == 4
    stepper.run_to(len(stepper.nodes))
    assert not list(spill.iterdir())
    wanted = ort.InferenceSession(proto.SerializeToString())
    for feed, live in zip(x, stepper.live, strict=True):
        np.testing.assert_allclose(live["y"], wanted.run(["y"], feed)[0], rtol=1e-4, atol=1e-5)


def test_second_moments_are_the_mean_over_all_rows() -> None:
    arrays = [np.random.default_rng(i).standard_normal((3, 4, 6)) for i in range(4)]
    rows = np.concatenate([a.reshape(-1, 6) for a in arrays])
    found = second_moments(iter(arrays))
    np.testing.assert_allclose(found, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)
