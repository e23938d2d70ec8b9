"""--from: an earlier compile's plan and estimators on a retrained checkpoint of the same network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import qcompile
from qcompile.cli import main
from qcompile.ir.errors import OptionError
from qcompile.planner import search

QUICK: dict[str, Any] = {"min_speedup": 0.01, "gate_time": "1s", "effort": "fast", "threads": 1}

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 4, 12, 12] x) => (float[1, 8] y) {
    [first] a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    b = %s(a)
    [second] c = Conv<pads = [1, 1, 1, 1]>(b, w2)
    d = Relu(c)
    p = GlobalAveragePool(d)
    q = Flatten(p)
    [head] y = Gemm(q, w3)
}"""


def net(path: Path, *, tuned: float = 0.0, middle: int = 16, between: str = "Relu") -> Path:
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    shapes = {"w1": (middle, 4, 3, 3), "w2": (16, middle, 3, 3), "w3": (16, 8)}
    model = onnx.parser.parse_model(NET % between)
    for name, shape in shapes.items():
        array = rng.normal(0, 0.15, shape) + tuned * other.normal(0, 0.15, shape)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, path)
    return path


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [{"x": rng.random((1, 4, 12, 12), np.float32)} for _ in range(16)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = net(folder / "net.onnx")
    # a plan that no search would choose shows that it is the plan that is carried over
    given = {"keep_float": ("second",), "output": folder / "out"}
    assert qcompile.compile(model, calibration=feeds(), **given, **QUICK).exit_code == 0
    return folder / "out"


def test_plan_and_estimators_are_carried_over(base: Path, tmp_path: Path) -> None:
    model = net(tmp_path / "tuned.onnx", tuned=0.2)
    result = qcompile.compile(
        model, calibration=feeds(), output=tmp_path / "out", base=base, **QUICK
    )
    data = result.report.data
    assert result.exit_code == 0 and data["plan"]["how"] == "carried over with --from"
    assert len(data["plan"]["candidates"]) == 1
    requested = {row["origin"]: row["requested"] for row in data["layers"]}
    assert requested["second"] == "float" and requested["first"] == "int8"
    old = json.loads((base / "qcompile.lock").read_text())["ranges"]
    new = json.loads((tmp_path / "out" / "qcompile.lock").read_text())["ranges"]
    assert {n: r[2] for n, r in old.items()} == {n: r[2] for n, r in new.items()}
    assert old != new


def test_the_carried_plan_is_refitted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    original = search.refine

    def seen(job: Any, builder: Any, race: Any, order: Any, reporter: Any) -> Any:
        asked.append([c.name for c in order])
        return original(job, builder, race, order, reporter)

    monkeypatch.setattr(search, "refine", seen)
    model = net(tmp_path / "tuned.onnx", tuned=0.2)
    slow = {**QUICK, "effort": "default"}
    given: dict[str, Any] = {"calibration": feeds(), "base": base}
    result = qcompile.compile(model, output=tmp_path / "out", **given, **slow)
    assert asked == [["all that can be integer"]]
    plans = {c["name"] for c in result.report.data["plan"]["candidates"]}
    assert plans <= {"all that can be integer", "all that can be integer, refitted"}
    requested = {row["origin"]: row["requested"] for row in result.report.data["layers"]}
    assert requested["second"] == "float"


def test_what_moved_is_told(base: Path, tmp_path: Path) -> None:
    model = net(tmp_path / "tuned.onnx", tuned=0.2)
    result = qcompile.compile(
        model, calibration=feeds(), output=tmp_path / "out", base=base, **QUICK
    )
    moved = result.report.data["moved"]
    assert [row["origin"] for row in moved["weights"]] and moved["layers"] == []
    assert all(0.1 < row["by"] < 0.3 for row in moved["weights"])
    assert (
        moved["ranges"][0]["by"] >= moved["ranges"][-1]["by"] > 0 or moved["ranges"][-1]["by"] == 0
    )
    assert None not in moved["sqnr_db"]
    told = " ".join(result.report.data["calibration"]["findings"])
    assert "carried over from out" in told and "precision of no layer changed" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"middle": 24}, r"'first' \(Conv\) has a weight of shape \(24, 4, 3, 3\)"),
        ({"between": "Sigmoid"}, r"'Sigmoid:b' \(Sigmoid\) stands where it has 'Relu:b' \(Relu\)"),
    ],
)
def test_another_architecture_is_refused(
    base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model = net(tmp_path / "other.onnx", **change)
    with pytest.raises(OptionError, match=message):
        qcompile.compile(model, calibration=feeds(), output=tmp_path / "out", base=base, **QUICK)


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = net(tmp_path / "net.onnx")
    assert main([str(model), "--from", str(tmp_path / "nowhere"), "--allow-random"]) == 2
    assert "nowhere" in capsys.readouterr().err
