"""Targets whose runtime is not here: the first stage succeeds, and the device can finish it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

import qcompile
from qcompile.backends.legality import check_legality
from qcompile.backends.tables import get_target
from qcompile.engine_check import EngineCheck
from qcompile.ir.errors import TargetError
from qcompile.ir.load import load_model
from qcompile.ir.plan import FLOAT, INT8, LayerChoice, PrecisionPlan
from qcompile.planner.by_groups import Tried, accurate_plan
from qcompile.portable_flow import more_needed
from qcompile.recheck import recheck
from qcompile.subject import open_subject
from qcompile.verdict import Check, GateResult

MODEL = Path(__file__).parent.parent / "models" / "fmnist_cnn.onnx"


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, Any]]:
    graph = onnx.load(MODEL).graph
    name = graph.input[0].name
    shape = [d.dim_value or 1 for d in graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    return [{name: rng.random(shape, np.float32)} for _ in range(12)]


@pytest.fixture(scope="module")
def result(feeds: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("trt")
    return qcompile.compile(
        MODEL, target="tensorrt-int8", calibration=feeds, output=folder / "a", threads=1
    )


def test_without_a_device_the_verdict_is_not_measured_and_no_failure(result: Any) -> None:
    assert result.verdict == "not measured"
    assert result.exit_code == 0
    assert result.headlines()[0].startswith("NOT MEASURED: no GPU with TensorRT here; SQNR")
    assert result.report.sqnr_db > 10
    assert result.report.speedup is None


def test_the_artifact_holds_what_the_device_needs(result: Any) -> None:
    names = {p.relative_to(result.path).as_posix() for p in result.path.rglob("*") if p.is_file()}
    assert names >= {"model.qdq.onnx", "plan.json", "qcompile.lock", "manifest.json", "report.json"}
    deploy = {p.name for p in (result.path / "deploy").iterdir()}
    assert deploy >= {"device.py", "device_spec.json", "trtexec.txt", "float.onnx"}
    options = json.loads((result.path / "deploy" / "provider_options.json").read_text())
    assert options["session_options"] == {"session.disable_quant_qdq": "1"}
    assert options["providers"][0][0] == "TensorrtExecutionProvider"
    assert deploy >= {"sample_in.npz", "sample_out.npz", "float_out.npz"}
    line = (result.path / "deploy" / "trtexec.txt").read_text()
    assert line.startswith("trtexec --onnx=model.qdq.onnx --stronglyTyped")
    model = onnx.load(result.path / "model.qdq.onnx")
    onnx.checker.check_model(model, full_check=True)
    spec = json.loads((result.path / "deploy" / "device_spec.json").read_text())
    assert set(spec["shapes"]) == {i.name for i in model.graph.input}


def test_its_report_keeps_to_the_schema(result: Any) -> None:
    schema = Path(qcompile.__file__).parent / "report.schema.json"
    report = json.loads((result.path / "report.json").read_text())
    jsonschema.validate(report, json.loads(schema.read_text()))


def test_the_script_says_in_one_line_that_the_library_or_gpu_is_missing(result: Any) -> None:
    script = result.path / "deploy" / "device.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 4
    assert run.stderr.startswith(("no TensorRT here", "no usable GPU here"))
    assert "Traceback" not in run.stderr


def test_a_required_measurement_that_is_missing_is_exit_4(
    feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    result = qcompile.compile(
        MODEL,
        target="tensorrt-int8",
        calibration=feeds,
        output=tmp_path / "a",
        require=("measured",),
        threads=1,
    )
    assert result.exit_code == 4
    assert (result.path / "rejected" / "model.qdq.onnx").is_file()


def test_the_rest_is_half_unless_asked_otherwise(
    result: Any, feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert (result.path / "deploy" / "fp16.onnx").is_file()
    held = {t.data_type for t in onnx.load(result.path / "model.qdq.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in held
    options = {"calibration": feeds, "threads": 1}
    wide = qcompile.compile(
        MODEL, target="tensorrt-int8", rest="fp32", output=tmp_path / "w", **options
    )
    held = {t.data_type for t in onnx.load(wide.path / "model.qdq.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in held
    half = qcompile.compile(MODEL, target="tensorrt-fp16", output=tmp_path / "h", **options)
    assert half.exit_code == 0
    assert half.report.sqnr_db > 40
    with pytest.raises(TargetError, match="--rest fp16: what stays float with ort-int8 is fp32"):
        qcompile.compile(MODEL, target="ort-int8", rest="fp16", output=tmp_path / "o", **options)


def test_the_same_lock_gives_the_same_bytes(
    result: Any, feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    again = qcompile.compile(
        MODEL,
        target="tensorrt-int8",
        calibration=feeds,
        output=tmp_path / "again",
        locked=True,
        lock=result.path / "qcompile.lock",
        threads=1,
    )
    assert again.report.data["hashes"] == result.report.data["hashes"]


def test_4_bit_floats_are_judged_and_verified_by_an_emulation(tmp_path: Path) -> None:
    model = MODEL.with_name("fmnist_vit.onnx")
    name = onnx.load(model).graph.input[0].name
    rng = np.random.default_rng(0)
    feeds = [{name: rng.random((1, 1, 28, 28), np.float32)} for _ in range(8)]
    result = qcompile.compile(
        model, target="tensorrt-nvfp4", calibration=feeds, output=tmp_path / "a", threads=1,
        effort="fast",
    )  # fmt: skip
    assert result.verdict == "not measured"
    assert 10 < result.report.sqnr_db < 40
    made = onnx.load(result.path / "model.qdq.onnx")
    types = {t.data_type for t in made.graph.initializer}
    assert {onnx.TensorProto.FLOAT4E2M1, onnx.TensorProto.FLOAT8E4M3FN} <= types
    assert not (result.path / "deploy" / "provider_options.json").exists()
    checks = recheck(open_subject(result.path), None).checks
    assert {c.name for c in checks if c.state == "pass"} == {"hashes", "opens", "outputs"}
    target = get_target("tensorrt-nvfp4", "sm120")
    assert not check_legality(load_model(result.path / "model.qdq.onnx").model, target)


@pytest.mark.parametrize(
    ("failed", "precision", "replay", "wanted"),
    [
        ("metric", INT8, False, 16.0),
        ("accuracy", INT8, False, 16.0),
        ("builds", INT8, False, None),
        ("metric", FLOAT, False, None),
        ("metric", INT8, True, None),
    ],
)
def test_a_plan_that_fails_on_accuracy_is_made_again_for_more(
    failed: str, precision: str, replay: bool, wanted: float | None
) -> None:
    gate = GateResult("not delivered", "", (Check(failed, "fail", "too little"),))
    plan = PrecisionPlan((LayerChoice("l", "Conv", precision, ""),))
    plans: Any = argparse.Namespace(tried=[Tried("all", plan, 12.0)], replay=replay)
    assert more_needed(gate, plans) == wanted


def test_the_groups_that_hurt_most_leave_first() -> None:
    names = [f"l{i}" for i in range(16)]
    start = PrecisionPlan(tuple(LayerChoice(n, "Conv", INT8, "") for n in names))

    def measure(plan: PrecisionPlan) -> float:
        return 3.0 if plan.precision("l5") == INT8 else 25.0

    tried = accurate_plan(start, frozenset(names), 11.0, measure)
    assert [t.sqnr_db for t in tried] == [3.0, 25.0, 25.0]
    left = [c.origin for c in tried[-1].plan.layers if c.precision == FLOAT]
    assert left == ["l5"], "what does not hurt comes back"
    assert len(accurate_plan(start, frozenset(names), 2.0, measure)) == 1


def test_scales_are_parted_before_a_layer_leaves() -> None:
    names = [f"l{i}" for i in range(4)]
    layers = [LayerChoice(n, "Conv", INT8, "") for n in names]
    start = PrecisionPlan((*layers, LayerChoice("c", "Concat", INT8, "")))

    def measure(plan: PrecisionPlan) -> float:
        return 3.0 if plan.precision("c") == INT8 else 25.0

    tried = accurate_plan(start, frozenset(names), 11.0, measure)
    assert [t.sqnr_db for t in tried] == [3.0, 25.0]
    assert all(tried[-1].plan.precision(n) == INT8 for n in names)


def test_a_plan_that_never_suffices_is_the_best_that_was_found() -> None:
    start = PrecisionPlan((LayerChoice("a", "Conv", INT8, ""), LayerChoice("b", "Conv", INT8, "")))
    found = {2: 1.0, 1: 5.0, 0: 4.0}

    def measure(plan: PrecisionPlan) -> float:
        return found[sum(c.precision == INT8 for c in plan.layers)]

    tried = accurate_plan(start, frozenset({"a", "b"}), 50.0, measure)
    assert tried[-1].sqnr_db == 5.0


def test_an_engine_check_without_a_library_knows_nothing() -> None:
    assert EngineCheck(None, "", {}, {}, {}, "note").realised == {}


@pytest.mark.parametrize(("target", "floor_db"), [("tensorrt-fp8", 20.0), ("tensorrt-bf16", 35.0)])
def test_other_forms_end_not_measured_too(
    feeds: list[dict[str, Any]], tmp_path: Path, target: str, floor_db: float
) -> None:
    result = qcompile.compile(
        MODEL, target=target, calibration=feeds, output=tmp_path / "a", effort="fast", threads=1
    )
    assert result.exit_code == 0
    assert result.verdict == "not measured"
    assert result.report.sqnr_db > floor_db
    onnx.checker.check_model(onnx.load(result.path / "model.qdq.onnx"), full_check=True)
    spec = json.loads((result.path / "deploy" / "device_spec.json").read_text())
    assert spec["precision"] == target.removeprefix("tensorrt-")


def test_half_precision_for_onnx_runtime_is_judged_for_accuracy_without_a_gpu(
    feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    result = qcompile.compile(
        MODEL, target="ort-fp16", calibration=feeds, output=tmp_path / "a", threads=1
    )
    assert result.exit_code == 0
    assert result.headlines()[0].startswith(
        "NOT MEASURED: no GPU provider of ONNX Runtime here; SQNR"
    )
    held = {t.data_type for t in onnx.load(result.path / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in held
    script = result.path / "deploy" / "run.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
