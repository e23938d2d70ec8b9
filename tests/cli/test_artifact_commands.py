"""explain, diff and verify: what they say of an artifact, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qcompile.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """An artifact that a test may spoil."""
    shutil.copytree(built / "net.ort-int8", tmp_path / "net.ort-int8")
    return tmp_path / "net.ort-int8"


def test_explain_tells_precision_reason_cost_ranges_and_passes(
    built: Path, capsys: Capture
) -> None:
    assert main(["explain", str(built / "net.ort-int8"), "/c/Conv"]) == 0
    said = capsys.readouterr().out
    for part in (
        "/c/Conv (Conv)",
        "precision:",
        "because:",
        "multiply-adds: 13,824",
        "constant w1",
    ):
        assert part in said
    assert "input image: float[Nx3x8x8], range" in said


def test_explain_finds_tensors_fused_nodes_and_unambiguous_parts(
    built: Path, capsys: Capture
) -> None:
    build = str(built / "net.ort-int8")
    for name, origin in (("scores", "/scores/MatMul"), ("c/con", "/c/Conv"), ("f", "/f/Flatten")):
        assert main(["explain", build, name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["origin"] == origin


def test_explain_suggests_the_nearest_name(built: Path, capsys: Capture) -> None:
    assert main(["explain", str(built / "net.ort-int8"), "/c/Convv"]) == 2
    assert "nearest: /c/Conv" in capsys.readouterr().err
    assert main(["explain", str(built / "net.ort-int8"), "/"]) == 2
    assert "give one of them in full" in capsys.readouterr().err


def test_explain_wants_an_artifact(built: Path, capsys: Capture) -> None:
    assert main(["explain", str(built / "net.onnx"), "/c/Conv"]) == 2
    assert "is a model; give the folder" in capsys.readouterr().err
    assert main(["explain", str(built / "data"), "/c/Conv"]) == 2
    assert "holds no manifest.json" in capsys.readouterr().err


def test_diff_names_the_layers_and_reasons(built: Path, copy: Path, capsys: Capture) -> None:
    plan = json.loads((copy / "plan.json").read_text(encoding="utf-8"))
    plan["layers"][0] |= {"precision": "float", "reason": "because I say so"}
    edited = copy / "edited.json"
    edited.write_text(json.dumps(plan), encoding="utf-8")
    first = built / "net.ort-int8"
    before = json.loads((first / "plan.json").read_text(encoding="utf-8"))["layers"][0]
    expected = 3 if before["precision"] != "float" else 0
    assert main(["diff", str(first), str(edited), "--exit-code"]) == expected
    said = capsys.readouterr().out
    if expected:
        assert f"{before['origin']} ({before['op_type']}): {before['precision']} -> float" in said
        assert "because I say so" in said


def test_diff_of_equal_artifacts_has_figures_and_no_layer(
    built: Path, copy: Path, capsys: Capture
) -> None:
    assert main(["diff", str(built / "net.ort-int8"), str(copy), "--json", "--exit-code"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed"] == [] and found["inputs"] == {}
    assert found["figures"]["verdict"] == ["delivered", "delivered"]


def test_diff_refuses_what_is_no_plan(built: Path, capsys: Capture) -> None:
    plan = str(built / "net.ort-int8" / "plan.json")
    assert main(["diff", plan, str(built / "net.onnx")]) == 2
    assert "net.onnx" in capsys.readouterr().err
    assert main(["diff", plan, str(built / "none.json")]) == 2
    assert "cannot be read as a plan" in capsys.readouterr().err


def test_verify_runs_the_gate_again(built: Path, capsys: Capture) -> None:
    args = ["verify", str(built / "net.ort-int8"), "--gate-time", "1s"]
    assert main(args) == 0
    said = capsys.readouterr().out
    for part in ("hashes: every file", "bit for bit", "accuracy:", "speed:", "VERIFIED"):
        assert part in said


def test_verify_without_the_float_model_says_so(copy: Path, capsys: Capture) -> None:
    assert main(["verify", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "name it with --float" in said and "(without the gate)" in said


def test_verify_finds_a_changed_file(copy: Path, capsys: Capture) -> None:
    (copy / "plan.json").write_text("{}", encoding="utf-8")
    (copy / "deploy" / "run.py").unlink()
    assert main(["verify", str(copy)]) == 3
    said = capsys.readouterr().out
    assert "plan.json was changed" in said and "deploy/run.py is missing" in said
    assert "NOT AS IT WAS" in said


def test_verify_finds_another_model_in_its_place(
    built: Path, copy: Path, capsys: Capture, tmp_path: Path
) -> None:
    from tests.cli.conftest import write_model

    shutil.copy(write_model(tmp_path / "other.onnx", seed=5), copy / "model.onnx")
    assert main(["verify", str(copy), "--json"]) == 3
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {c["name"] for c in checks if c["state"] == "fail"} == {"hashes", "outputs"}


def test_verify_of_a_model_points_to_check(built: Path, capsys: Capture) -> None:
    assert main(["verify", str(built / "net.onnx")]) == 2
    assert "qcompile check FLOAT" in capsys.readouterr().err
