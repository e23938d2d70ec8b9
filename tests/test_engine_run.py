"""The second stage: device.py of the artifact runs, and report and manifest say what it found."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

import qcompile
from qcompile.artifact import MANIFEST, file_sha256, open_artifact
from qcompile.cli.main import main
from qcompile.engine_run import run_engine
from qcompile.engine_runners import reached
from qcompile.ir.errors import BackendMissingError, OptionError
from qcompile.needed import Needed
from tests.passes.qdq_models import text_model

RNG = np.random.default_rng(6)

DEVICE = """
import json, sys
assert "--workspace=64" in sys.argv
result = {{"verdict": "{verdict}", "p50_ms": {{"int8": 0.5, "fp16": 1.0}}, "speedup": 2.0}}
path = sys.argv[sys.argv.index("--json") + 1]
open(path, "w").write(json.dumps(result))
print("{headline}")
sys.exit({code})
"""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    proto = text_model(
        "g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
        w=(RNG.standard_normal((16, 16, 3, 3)) * 0.1).astype(np.float32),
    )
    onnx.save(proto, tmp_path / "m.onnx")
    feeds = [{"x": RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)} for _ in range(8)]
    result = qcompile.compile(
        tmp_path / "m.onnx", target="tensorrt-int8", calibration=feeds, output=tmp_path / "b",
        effort="fast", threads=1,
    )  # fmt: skip
    assert result.exit_code == 0
    return result.path


def _with_device(artifact: Path, script: str) -> None:
    """Another device.py, as if the artifact had been written with it."""
    path = artifact / "deploy" / "device.py"
    path.write_text(script)
    manifest = json.loads((artifact / MANIFEST).read_text())
    manifest["files"]["deploy/device.py"] = file_sha256(path)
    (artifact / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("verdict", "headline", "code"),
    [
        ("delivered", "DELIVERED: 2.00x the speed of fp16 on this GPU", 0),
        ("not delivered", "NOT DELIVERED: 0.50x the speed of fp16 on this GPU", 3),
    ],
)
def test_report_and_manifest_say_what_the_device_found(
    artifact: Path, verdict: str, headline: str, code: int
) -> None:
    _with_device(artifact, DEVICE.format(verdict=verdict, headline=headline, code=code))
    done = run_engine(artifact, ["--workspace=64"])
    assert (done.verdict, done.headline, done.exit_code) == (verdict, headline, code)
    report = json.loads((artifact / "report.json").read_text())
    assert report["device_run"]["speedup"] == 2.0
    assert report["headline"] == headline
    schema = Path(qcompile.__file__).parent / "report.schema.json"
    jsonschema.validate(report, json.loads(schema.read_text()))
    again = open_artifact(artifact)
    assert again.manifest["verdict"] == verdict
    assert again.damaged() == []


def test_no_library_or_gpu_is_exit_4_and_changes_nothing(artifact: Path) -> None:
    before = (artifact / "report.json").read_bytes()
    _with_device(
        artifact, "import sys\nprint('no usable GPU here: x', file=sys.stderr)\nsys.exit(4)\n"
    )
    with pytest.raises(
        BackendMissingError, match="no usable GPU here: x; the artifact stays as it is"
    ):
        run_engine(artifact)
    assert main(["engine", str(artifact)]) == 4
    assert (artifact / "report.json").read_bytes() == before


def test_an_artifact_without_a_second_stage_or_with_changes_is_refused(artifact: Path) -> None:
    (artifact / "plan.json").write_text("{}")
    with pytest.raises(OptionError, match=r"was changed since it was written: .*plan\.json"):
        run_engine(artifact)
    (artifact / "deploy" / "device.py").unlink()
    with pytest.raises(OptionError, match=r"has no deploy/device\.py: it is for tensorrt-int8"):
        run_engine(artifact)


def _script() -> Any:
    path = Path(qcompile.__file__).parent / "deploy" / "device.py"
    spec = importlib.util.spec_from_file_location("device_script", path)
    assert spec is not None and spec.loader is not None
    device = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(device)
    return device


def test_kernels_count_by_what_they_read_constants_included() -> None:
    half, int8 = {"Format/Datatype": "Half"}, {"Format/Datatype": "Int8 NC/32HW32"}
    layers = [
        {"Name": "int8_to_float", "Inputs": [half]},
        {"Name": "a", "Inputs": [int8, half]},
        {"Name": "b", "Inputs": [half], "Constants": [{"Name": "w", "Format/Datatype": "Int4"}]},
        {"Name": "c", "Inputs": [half], "Weights": {"Type": "FP8", "Count": 64}},
    ]
    text = json.dumps({"Layers": layers})
    inspector = argparse.Namespace(get_engine_information=lambda _: text)
    engine = argparse.Namespace(create_engine_inspector=lambda: inspector)
    trt = argparse.Namespace(LayerInformationFormat=argparse.Namespace(JSON=0))
    assert _script().realised(trt, engine) == {"other": 1, "int8": 1, "int4": 1, "fp8": 1}


def test_kinds_of_channels_of_an_engines_outputs_need_their_own_accuracy() -> None:
    """Boxes in pixels hide scores that are gone; both ways to run an engine see it alike."""
    rng = np.random.default_rng(0)
    boxes, scores = rng.uniform(10, 600, (1, 4, 30)), rng.uniform(0, 1, (1, 3, 30))
    good = [{"y": np.concatenate([boxes, scores], 1).astype(np.float32)}]
    lost = [{"y": np.concatenate([boxes, 0.7 * scores], 1).astype(np.float32)}]
    kinds = [["y", 1, [0, 1, 2, 3]], ["y", 1, [4, 5, 6]]]
    sqnr = _script().sqnr
    assert sqnr(good, lost) > 60
    assert sqnr(good, lost, kinds) == pytest.approx(-20 * np.log10(0.3), abs=0.01)
    assert sqnr(good, lost, kinds, 20.0) == pytest.approx(20 - 20 * np.log10(0.3), abs=0.01)
    assert reached(good, lost, Needed.of(30.0)) == pytest.approx(sqnr(good, lost, kinds, 20.0))
    assert reached(good, good, Needed.of(30.0)) is None


def test_the_key_of_an_engine_changes_with_all_that_it_depends_on(tmp_path: Path) -> None:
    device = _script()
    model = tmp_path / "m.onnx"
    model.write_bytes(b"1")

    def key(gpu: str = "a", shapes: Any = None, **flags: Any) -> str:
        given = {"workspace": 0, **dict.fromkeys(device.FLAGS, False), **flags}
        library = argparse.Namespace(__name__="tensorrt", __version__="10.3")
        return str(
            device.cache_key(library, str(model), shapes or {}, argparse.Namespace(**given), gpu)
        )

    keys = [key(), key("b"), key(shapes={"x": [[1]]}), key(refit=True), key(workspace=1)]
    (tmp_path / "m.onnx.data").write_bytes(b"2")
    keys.append(key())
    model.write_bytes(b"3")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == keys[-1]
