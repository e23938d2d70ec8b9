"""Every mistake: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompile.cli import main

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {
  y = MatMul(x, w)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(MODEL), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        np.savez(folder / f"{i}.npz", x=rng.normal(size=(2, 4)).astype(np.float32))
    return folder


def refused(capsys: pytest.CaptureFixture[str], out: Path, *args: object, code: int = 2) -> str:
    before = sorted(p.name for p in out.parent.iterdir())
    assert main([*map(str, args), "-o", str(out)]) == code
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    assert sorted(p.name for p in out.parent.iterdir()) == before
    return errors[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"hello, this is text and no model at all", "m.onnx"),
        (b"PK\x03\x04 a zip", "m.onnx"),
    ],
)
def test_a_file_that_is_no_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert says in refused(capsys, tmp_path / "out", path)


def test_a_truncated_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-30])
    assert "m.onnx" in refused(capsys, tmp_path / "out", model)


def test_a_model_that_was_saved_in_a_layout_for_one_cpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "com.microsoft.nchwc": 1]>
        g (float[1,3,4,4] x) => (float[1,8,4,4] y) <float[8,3,1,1] w> {
          [c] y = com.microsoft.nchwc.Conv(x, w)
        }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((8, 3, 1, 1), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    said = refused(capsys, tmp_path / "out", tmp_path / "m.onnx")
    assert "'c' is one of 1 operators of com.microsoft.nchwc" in said and "'basic'" in said


def test_a_missing_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nowhere.onnx" in refused(capsys, tmp_path / "out", tmp_path / "nowhere.onnx")


def test_an_unknown_target_and_device(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    assert "ort-int8" in refused(capsys, tmp_path / "out", model, "--target", "ort-int9")
    assert "x86-vnni" in refused(capsys, tmp_path / "out", model, "--device", "x86-vni")


def test_nan_in_a_weight_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path
) -> None:
    proto = onnx.parser.parse_model(MODEL)
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[0, 0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    said = refused(capsys, tmp_path / "out", path, "-c", data)
    assert "'w'" in said
    assert "NaN" in said


@pytest.mark.parametrize(
    ("feed", "says"),
    [
        ({"z": np.zeros((2, 4), np.float32)}, "no data for input 'x'"),
        ({"x": np.zeros((2, 4), np.int64)}, "the model needs float32"),
        ({"x": np.zeros((2, 4, 4), np.float32)}, "has shape 2x4x4"),
        ({"x": np.full((2, 4), np.nan, np.float32)}, "NaN"),
        ({"x": np.full((2, 4), np.inf, np.float32)}, "Inf"),
    ],
)
def test_data_that_do_not_fit(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: Path,
    feed: dict[str, np.ndarray],
    says: str,
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    np.savez(folder / "a.npz", **feed)  # type: ignore[arg-type]
    assert says in refused(capsys, tmp_path / "out", model, "-c", folder)


def test_an_empty_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path) -> None:
    (tmp_path / "none").mkdir()
    assert "no files" in refused(capsys, tmp_path / "out", model, "-c", tmp_path / "none")


def test_an_output_that_is_somebody_elses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, data: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert "not written by qcompile" in refused(capsys, out, model, "-c", data)
    assert (out / "thesis.txt").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, data: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert "cannot be written" in refused(capsys, closed / "out", model, "-c", data)


def test_an_output_below_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, data: Path
) -> None:
    assert main([str(model), "-c", str(data), "-o", str(model / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_full_disk(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import qcompile.compiler

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(qcompile.compiler, "write_artifact", full)
    args = (model, "-c", data, "--effort", "fast", "--gate-time", "1s")
    assert "the disk is full" in refused(capsys, tmp_path / "out", *args)


def test_too_little_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, data: Path
) -> None:
    said = refused(capsys, tmp_path / "out", model, "-c", data, "--memory-limit", "1KB")
    assert "--memory-limit" in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--max-drop", "1"), "no unit"),
        (("--max-drop", "1%"), "needs a --metric"),
        (("--metric", "top2"), "did you mean top1"),
        (("--keep-float", "/head/*"), "matches no"),
        (("--plan", "none.json"), "cannot be read"),
        (("--opset", "9"), "--opset 9"),
        (("--locked",), "qcompile.lock"),
        (("--custom-ops", "none.so"), "does not exist"),
    ],
)
def test_options_that_cannot_be(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: Path,
    data: Path,
    args: tuple[str, ...],
    says: str,
) -> None:
    assert says in refused(capsys, tmp_path / "out", model, "-c", data, *args)


def test_unknown_commands_and_options_suggest_the_right_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["chekc", "a", "b"]) == 2
    assert "did you mean 'check'" in capsys.readouterr().err
    assert main(["m.onnx", "--calibratoin", "x"]) == 2
    assert "--calibration" in capsys.readouterr().err
