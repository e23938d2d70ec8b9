"""The comparison with other quantizers: what is read, what is held out, what a table shows."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {
  y = MatMul(x, w)
}
"""


def load(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def versus(root: Path) -> ModuleType:
    return load(root, "versus")


@pytest.fixture
def case(tmp_path: Path, versus: ModuleType) -> object:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "m.onnx")
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        np.savez(data / f"{i:02}.npz", x=rng.normal(size=(2, 4)).astype(np.float32))
    return versus.Case("m", tmp_path / "m.onnx", str(data))


def test_what_a_model_is_given_as(versus: ModuleType) -> None:
    found = versus.parse_case(r"rec=C:\models\rec.onnx:D:\data")
    assert (found.name, str(found.model), found.data) == ("rec", r"C:\models\rec.onnx", r"D:\data")
    assert versus.parse_case("a=b/c.onnx:calib.py:samples").data == "calib.py:samples"
    with pytest.raises(SystemExit, match="is no NAME="):
        versus.parse_case("model.onnx")


def test_no_tool_sees_the_held_out_samples(
    versus: ModuleType, case: object, tmp_path: Path
) -> None:
    folder, held = versus.split(case, tmp_path / "calibration")
    files = sorted(folder.glob("*.npz"))
    assert (len(files), len(held)) == (16, 4)
    seen = [np.load(file)["x"] for file in files]
    assert not any(np.array_equal(feed["x"], x) for feed in held for x in seen)


def test_an_artifact_that_does_not_open_is_a_row(
    versus: ModuleType, case: object, tmp_path: Path
) -> None:
    _, held = versus.split(case, tmp_path / "calibration")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    model = tmp_path / "m.onnx"
    rows = {tool: versus.Row("m", tool) for tool in ("float", "same", "bad")}
    able = versus.judge_all(case, held, {"float": model, "same": model, "bad": bad}, rows)
    assert list(able) == ["float", "same"]
    assert rows["bad"].fault.startswith("invalid: ")
    assert rows["same"].sqnr_db == 200


def test_a_tool_that_hangs_is_ended(versus: ModuleType) -> None:
    ran = versus.run_watched([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    assert ran.code != 0
    assert ran.seconds < 30
    assert ran.peak_mb > 0


def test_the_table(versus: ModuleType) -> None:
    good = versus.Row("m", "a", ms={1: 1.0}, speedup={1: 2.0}, sqnr_db=30.0, megabytes=1.5)
    text = versus.table([good, versus.Row("m", "b", fault="a | b")], [1])
    lines = text.splitlines()
    assert "| m | a | 1 ms, 2.00x | 30.0 |  | 1.50 |  |  |" in lines
    assert "a / b" in lines[-1]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_peers_tell_what_is_installed(root: Path) -> None:
    command = [sys.executable, str(root / "benchmarks" / "peer.py"), "--installed"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(load(root, "peer").PEERS)


def test_calibration_is_measured_in_processes_of_their_own(root: Path, case: object) -> None:
    calibration = load(root, "calibration")
    model = case.model  # type: ignore[attr-defined]
    for kind in calibration.KINDS:
        found = calibration.child(kind, model, model.parent / "data", 8, 1)
        assert found["seconds"] > 0
        assert found["peak_mb"] > 10
