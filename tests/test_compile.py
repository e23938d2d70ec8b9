"""The whole flow on a small real network; limits are met with certainty, never by luck of a clock."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompile
from qcompile.cli import main
from qcompile.data.inputs import Feed
from qcompile.ir.plan import FLOAT
from qcompile.options import make_options
from qcompile.result import NotDeliveredError

# Speed is not tested here: a limit that every machine keeps, and little time for timing.
QUICK: dict[str, Any] = {"min_speedup": 0.01, "gate_time": "1s", "effort": "fast", "threads": 1}


@pytest.fixture(scope="module")
def built(dwcnn: Path, single_feeds: list[Feed], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("built") / "build"
    return qcompile.compile(dwcnn, calibration=single_feeds, output=out, **QUICK)


def test_it_is_delivered_with_everything_beside_it(built: Any) -> None:
    assert built.check().verdict == "delivered"
    assert built.report.sqnr_db > 20
    assert built.report.integer_mac_share > 0.5
    names = {p.relative_to(built.path).as_posix() for p in built.path.rglob("*") if p.is_file()}
    assert names >= {"model.onnx", "model.qdq.onnx", "plan.json", "ranges.npz", "report.json"}
    assert names >= {"manifest.json", "qcompile.lock", "deploy/run.py", "deploy/sample_in.npz"}
    onnx.checker.check_model(built.path / "model.qdq.onnx", full_check=True)


def test_the_session_equals_float_nearly(built: Any, dwcnn: Path, single_feeds: list[Feed]) -> None:
    import onnxruntime as ort

    expected = ort.InferenceSession(dwcnn).run(None, single_feeds[0])[0]
    found = built.open().run(None, single_feeds[0])[0]
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


def test_deploy_runs_without_qcompile(built: Any, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(built.path, copied)
    run = [
        sys.executable,
        "-I",
        str(copied / "deploy" / "run.py"),
        "--time",
        "0.1",
        "--threads",
        "1",
    ]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "outputs agree" in done.stdout


def test_loading_it_again_and_noticing_damage(built: Any, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(built.path, copied)
    assert qcompile.load(copied).report.speedup == built.report.speedup
    (copied / "model.onnx").write_bytes(b"x")
    with pytest.raises(qcompile.QCompileError, match=r"model\.onnx was changed"):
        qcompile.load(copied)


def test_the_same_again_is_up_to_date_and_locked_gives_the_same_bytes(
    built: Any, dwcnn: Path, single_feeds: list[Feed], tmp_path: Path
) -> None:
    again = qcompile.compile(dwcnn, calibration=single_feeds, output=built.path, **QUICK)
    assert again.up_to_date
    replayed = qcompile.compile(
        dwcnn,
        calibration=single_feeds,
        output=tmp_path / "other",
        locked=True,
        lock=built.path / "qcompile.lock",
        **QUICK,
    )
    for name in ("model.onnx", "model.qdq.onnx"):
        assert (replayed.path / name).read_bytes() == (built.path / name).read_bytes()
    with pytest.raises(qcompile.QCompileError, match="data: locked"):
        qcompile.compile(
            dwcnn,
            calibration=single_feeds[:8],
            output=tmp_path / "third",
            locked=True,
            lock=built.path / "qcompile.lock",
            **QUICK,
        )


def test_a_pinned_layer_stays_float_and_says_why(
    dwcnn: Path, single_feeds: list[Feed], built: Any, tmp_path: Path
) -> None:
    first = next(layer["origin"] for layer in built.report.layers if layer["op_type"] == "Conv")
    result = qcompile.compile(
        dwcnn, calibration=single_feeds, keep_float=[first], output=tmp_path / "o", **QUICK
    )
    layer = next(x for x in result.report.layers if x["origin"] == first)
    assert layer["realised"] == FLOAT
    assert "user" in layer["reason"]


def test_a_given_plan_is_followed(
    dwcnn: Path, single_feeds: list[Feed], built: Any, tmp_path: Path
) -> None:
    result = qcompile.compile(
        dwcnn,
        calibration=single_feeds,
        plan=built.path / "plan.json",
        output=tmp_path / "o",
        **QUICK,
    )
    assert (result.path / "model.onnx").read_bytes() == (built.path / "model.onnx").read_bytes()


def test_ranges_are_reused_for_the_same_model_and_data_only(
    dwcnn: Path, model_path: Any, single_feeds: list[Feed], built: Any, tmp_path: Path
) -> None:
    ranges = built.path / "ranges.npz"
    result = qcompile.compile(
        dwcnn, calibration=single_feeds, ranges=ranges, output=tmp_path / "o", **QUICK
    )
    assert "reused" in result.report.data["calibration"]["description"]
    assert (result.path / "model.onnx").read_bytes() == (built.path / "model.onnx").read_bytes()
    with pytest.raises(qcompile.QCompileError, match="another model"):
        qcompile.compile(model_path("fmnist_cnn"), calibration=single_feeds, ranges=ranges, **QUICK)
    with pytest.raises(qcompile.QCompileError, match="data"):
        qcompile.compile(dwcnn, calibration=single_feeds[:8], ranges=ranges, **QUICK)


def test_a_limit_that_cannot_be_met_is_not_delivered(
    dwcnn: Path, single_feeds: list[Feed], tmp_path: Path
) -> None:
    options = QUICK | {"min_sqnr": 150.0}
    result = qcompile.compile(dwcnn, calibration=single_feeds, output=tmp_path / "o", **options)
    assert result.exit_code == 3
    assert not (result.path / "model.onnx").exists()
    assert (result.path / "rejected" / "model.onnx").exists()
    with pytest.raises(NotDeliveredError, match="150 dB needed"):
        result.check()
    with pytest.raises(qcompile.QCompileError, match="nothing was delivered"):
        result.open()


def test_without_data_nothing_is_delivered_unless_allowed(
    dwcnn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [str(dwcnn), "-o", str(tmp_path / "o"), "--effort", "fast", "--gate-time", "1s"]
    args += ["--min-speedup", "0.01", "--min-sqnr", "0"]
    assert main(args) == 3
    assert "calibrated on random data; pass --calibration" in capsys.readouterr().out
    assert main([*args, "--allow-random"]) == 0
    assert "warning: calibrated on random data" in capsys.readouterr().out


def test_a_model_in_memory(dwcnn: Path, single_feeds: list[Feed]) -> None:
    result = qcompile.compile(onnx.load(dwcnn), calibration=single_feeds[:8], **QUICK)
    assert result.open().run(None, single_feeds[0])[0].shape == (1, 10)


@pytest.mark.parametrize("form", ["json", "github", "junit"])
def test_output_formats(
    dwcnn: Path,
    single_feeds: list[Feed],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i, feed in enumerate(single_feeds[:8]):
        np.savez(data / f"{i}.npz", image=feed["image"])
    args = [str(dwcnn), "-c", str(data), "-o", str(tmp_path / "o"), "--output-format", form]
    args += ["--effort", "fast", "--gate-time", "1s", "--min-speedup", "0.01"]
    assert main(args) == 0
    said = capsys.readouterr().out
    if form == "json":
        assert json.loads(said)["verdict"] == "delivered"
    elif form == "github":
        assert "::notice title=qcompile::DELIVERED" in said
    else:
        assert "<testsuite name='qcompile'" in said
        assert "failures='0'" in said


def test_options_reach_the_fingerprint() -> None:
    assert make_options(max_latency="5ms").max_latency == 5.0
