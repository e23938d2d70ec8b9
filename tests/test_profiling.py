"""Costs measured on one machine and used on another: model, artifact, file, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qcompile
from qcompile.backends.devices import detect
from qcompile.cli.main import main
from qcompile.data.inputs import InputSpec
from qcompile.ir.errors import CalibrationError, OptionError, TargetError
from qcompile.options import make_options
from qcompile.planner.costs import Costs, LayerCost
from qcompile.profiling import batched, profile


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(8):
        np.savez(folder / f"{i}.npz", image=rng.random((1, 1, 28, 28), np.float32))
    return folder


@pytest.fixture(scope="module")
def measured(models_dir: Path, data: Path) -> Costs:
    options = make_options(calibration=data, threads=1)
    return profile(models_dir / "fmnist_cnn.onnx", options, seconds=0.3)


def test_costs_travel_as_a_file(
    models_dir: Path, data: Path, tmp_path: Path, measured: Costs
) -> None:
    assert measured.original_ns > 0
    assert all(c.float_ns is not None for c in measured.layers.values())
    file = tmp_path / "costs.json"
    machine = {**measured.machine, "cpu": "neoverse_n1"}
    file.write_text(replace(measured, machine=machine).to_json(), encoding="utf-8")
    result = qcompile.compile(
        models_dir / "fmnist_cnn.onnx",
        calibration=data,
        threads=1,
        effort="fast",
        gate_time="500ms",
        search_time="1s",
        samples=4,
        costs=file,
        output=tmp_path / "out",
        min_speedup=0.1,
    )
    told = result.report.data["plan"]["costs"]
    assert told["source"] == "measured, from a file"
    assert any("another machine: CPU neoverse_n1" in text for text in told["differences"])
    assert "neoverse_n1" in result.report.summary()
    # the artifact alone is enough to measure again, on the device
    again = profile(tmp_path / "out", make_options(threads=1), seconds=0.3)
    assert set(again.layers) == set(measured.layers)
    assert set(again.quantize_ns) == set(measured.quantize_ns)
    assert "original" not in again.totals_ns


def test_costs_of_another_model_are_refused(models_dir: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    other = Costs({"/other": LayerCost(5, 3)}, {}, {}, {"float": 10}, 1, "measured")
    file.write_text(other.to_json(), encoding="utf-8")
    with pytest.raises(OptionError, match="are another model's"):
        qcompile.compile(
            models_dir / "fmnist_cnn.onnx",
            calibration=data,
            effort="fast",
            costs=file,
            output=tmp_path / "o",
        )


def test_a_device_that_is_not_here_is_estimated(
    models_dir: Path, data: Path, tmp_path: Path
) -> None:
    device = "arm64-dotprod" if detect().name != "arm64-dotprod" else "x86-vnni"
    result = qcompile.compile(
        models_dir / "fmnist_vit.onnx",
        calibration=data,
        effort="fast",
        gate_time="500ms",
        search_time="1s",
        samples=4,
        device=device,
        output=tmp_path / "out",
    )
    told = result.report.data["plan"]["costs"]
    assert told["source"] == "table" and "not measured" in told["text"]


def test_batches() -> None:
    specs = (InputSpec("x", "float32", ("n", 2)), InputSpec("k", "int64", (1,)))
    feed = {"x": np.array([[1.0, 2.0]], np.float32), "k": np.array([7])}
    found = batched(feed, specs, 3)
    np.testing.assert_array_equal(found["x"], [[1, 2]] * 3)
    assert found["k"].shape == (1,)
    with pytest.raises(CalibrationError, match="at least 1"):
        batched(feed, specs, 0)
    with pytest.raises(CalibrationError, match="no input has a free first axis"):
        batched(feed, specs[1:], 2)


def test_targets_that_do_not_run_here_are_refused(models_dir: Path) -> None:
    with pytest.raises(TargetError, match=r"device\.py"):
        profile(models_dir / "fmnist_cnn.onnx", make_options(target="tensorrt-int8"))


def test_command(
    models_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = str(models_dir / "fmnist_cnn.onnx"), tmp_path / "c.json"
    args = ["profile", model, "-c", str(data), "--threads", "1", "--time", "300ms", "-o", str(file)]
    assert main(args) == 0
    said = capsys.readouterr().out
    assert "costs: measured on" in said and "original:" in said and f"wrote {file}" in said
    assert Costs.from_json(file.read_text(encoding="utf-8")).threads == 1
    assert main(["profile", str(tmp_path / "none.onnx")]) == 2
