"""Ranges that another tool measured: read, and standing in the result as they were."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompile
from qcompile.backends.trt_calibration import read_calibration_cache
from qcompile.given_ranges import read_given_ranges
from qcompile.ir.errors import CalibrationError
from tests.passes.qdq_models import text_model

RNG = np.random.default_rng(4)
OPTIONS: dict[str, Any] = {
    "target": "tensorrt-int8",
    "rest": "fp32",
    "threads": 1,
    "effort": "fast",
}


@pytest.mark.parametrize(
    "content",
    [
        {"x": 2.5, "r": [-2.5, 4.0]},
        {"ranges": {"x": {"amax": 2.5}, "r": {"min": -2.5, "max": 4}}},
        {"dynamic_ranges": {"x": [-2.5, 2.5], "r": [-2.5, 4]}},
    ],
)
def test_json_in_the_forms_that_tools_write(tmp_path: Path, content: object) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps(content))
    found = read_given_ranges(path)
    assert found is not None
    assert {n: (float(r.low), float(r.high)) for n, r in found.items()} == {
        "x": (-2.5, 2.5),
        "r": (-2.5, 4.0),
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("neither", "is neither a ranges.npz, nor a TensorRT calibration cache"),
        ("[1, 2]", "holds list; needed: tensor -> range"),
        ("{}", "holds no range"),
        ('{"x": "wide"}', "range of 'x' is \"wide\"; needed: a number"),
        ('{"x": [3, 1]}', r"range of 'x' is \[3.0, 1.0\]; needed: finite, low first"),
    ],
)
def test_other_content_is_said(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=found):
        read_given_ranges(path)


def _model(path: Path) -> Path:
    proto = text_model(
        """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            r = Relu (a)
            y = Conv <pads = [1, 1, 1, 1]> (r, w2)
        }""",
        w1=(RNG.standard_normal((16, 16, 3, 3)) * 0.1).astype(np.float32),
        w2=(RNG.standard_normal((16, 16, 3, 3)) * 0.1).astype(np.float32),
    )
    onnx.save(proto, path)
    return path


def _scales(path: Path) -> dict[str, np.float32]:
    """Activation -> scale of its Q."""
    graph = onnx.load(path).graph
    held = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    return {
        n.input[0]: held[n.input[1]]
        for n in graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] not in held
    }


def test_scales_of_a_calibration_cache_stand_in_the_model_bit_for_bit(tmp_path: Path) -> None:
    model = _model(tmp_path / "m.onnx")
    wanted = {"x": np.float32(0.02371), "r": np.float32(0.0291), "a": np.float32(0.03)}
    lines = [f"{n}: {struct.pack('>f', s).hex()}" for n, s in wanted.items()]
    cache = tmp_path / "calibration.cache"
    cache.write_text("\n".join(["TRT-8601-EntropyCalibration2", *lines]) + "\n")
    result = qcompile.compile(model, ranges=cache, output=tmp_path / "b", **OPTIONS)
    assert result.exit_code == 0, result.headlines()
    assert _scales(result.path / "model.qdq.onnx") == {"x": wanted["x"], "r": wanted["r"]}
    assert any("random data" in w for w in result.report.data["warnings"])
    written = (result.path / "deploy" / "calibration.cache").read_text()
    again = read_calibration_cache(written)
    assert {n: np.float32(again[n]) for n in ("x", "r")} == {"x": wanted["x"], "r": wanted["r"]}


def test_what_the_file_lacks_is_measured_and_said(tmp_path: Path) -> None:
    model = _model(tmp_path / "m.onnx")
    path = tmp_path / "ranges.json"
    path.write_text('{"x": 3.0}')
    feeds = [{"x": RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)} for _ in range(8)]
    result = qcompile.compile(
        model, ranges=path, calibration=feeds, output=tmp_path / "b", **OPTIONS
    )
    findings = result.report.data["calibration"]["findings"]
    assert any("1 tensors stand not in the file and were measured: r" in f for f in findings)
    assert _scales(result.path / "model.qdq.onnx")["x"] == np.float32(3.0 / 127)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text('{"other": 3.0}')
    with pytest.raises(CalibrationError, match=r"names none of the 4 tensors .* another model"):
        qcompile.compile(_model(tmp_path / "m.onnx"), ranges=path, output=tmp_path / "b", **OPTIONS)
