"""What is done of the float model before there is an artifact, and in which process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompile
from qcompile.backends.tables import get_target
from qcompile.float_ahead import HURRIED, opened_early
from qcompile.options import make_options

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
m (float[batch, 64] x) => (float[batch, 64] y) { y = MatMul (x, w) }"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(MODEL)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype("f")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def feeds() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 64)).astype("f")} for _ in range(40)]


def compiled(path: Path, feeds: Any, **options: Any) -> dict[str, Any]:
    given = {"target": "ort-int4", "min_speedup": 1e-6, "gate_time": "0.2s", "threads": 1}
    out = path.parent / "out"
    result = qcompile.compile(path, calibration=feeds, output=out, **{**given, **options})
    assert result.exit_code == 0
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def closed(*_: Any) -> None:
    raise AssertionError("opened in this process")


def test_rounding_alone_leaves_float_to_another_process(
    path: Path, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = compiled(path, feeds, algorithm="rtn", effort="fast")
    monkeypatch.setattr("qcompile.job.Job.open_reference", closed)
    again = compiled(path, feeds, algorithm="rtn", effort="fast", force=True)
    assert apart["gate"]["outputs"] == again["gate"]["outputs"]
    with pytest.raises(AssertionError, match="opened in this process"):
        compiled(path, feeds, algorithm="rtn", effort="fast", force=True, memory_limit="2GB")


def test_both_ways_judge_alike(path: Path, feeds: Any) -> None:
    apart = compiled(path, feeds, algorithm="rtn")
    here = compiled(path, feeds, algorithm="rtn", memory_limit="2GB", force=True)
    assert apart["gate"]["outputs"] == here["gate"]["outputs"]
    assert apart["hashes"] == here["hashes"]


def test_in_a_hurry_fewer_samples_judge(path: Path, feeds: Any) -> None:
    assert compiled(path, feeds, algorithm="rtn")["gate"]["samples"] == 10
    report = compiled(path, feeds, algorithm="rtn", effort="fast", force=True)
    assert report["gate"]["samples"] == HURRIED
    assert any("8 of 10 held-back samples" in note["text"] for note in report["notes"])


@pytest.mark.parametrize(
    ("target", "options", "early"),
    [
        ("ort-int4", {"algorithm": "rtn"}, True),
        ("ort-int4", {"algorithm": "hqq"}, True),
        ("ort-int8-weights", {}, True),
        ("ort-nf4", {}, True),
        ("ort-int4", {}, False),
        ("ort-int4", {"algorithm": "gptq"}, False),
        ("ort-int4", {"algorithm": "rtn", "memory_limit": "1GB"}, False),
        ("ort-int8", {}, False),
    ],
)
def test_opened_before_it_is_read(
    path: Path, target: str, options: dict[str, Any], early: bool
) -> None:
    form = get_target(target).weights
    with opened_early(path, make_options(target=target, **options), form) as opened:
        assert (opened is not None) == early
    assert opened is None or not opened.child.alive


def test_bytes_and_missing_files_are_not_opened_early(path: Path) -> None:
    options = make_options(target="ort-int4", algorithm="rtn")
    form = get_target("ort-int4").weights
    for source in (path.read_bytes(), path.with_name("none.onnx")):
        with opened_early(source, options, form) as opened:
            assert opened is None
