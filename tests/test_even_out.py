"""Scaling of channels in a whole compile: kept where the output gains, undone elsewhere, replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompile
from tests.passes.qdq_models import run, text_model

QUICK: dict[str, Any] = {
    "min_speedup": 0.01, "gate_time": "0.5s", "threads": 1, "search_time": "1s", "min_sqnr": 1,
    "techniques": "fold-scales",
}  # fmt: skip
GRAPH = """g (float[1,6,8,8] x) => (float[1,16,8,8] y) {
  c = Conv (x, w1, b1)  t = Relu (c)  y = Conv (t, w2) }"""


def model(spread: float) -> onnx.ModelProto:
    """Two layers; the channels between them differ in size by up to 2^spread, undone by the second."""
    rng = np.random.default_rng(0)
    size = np.exp2(np.linspace(0, spread, 16)).astype(np.float32)
    arrays = {
        "w1": rng.standard_normal((16, 6, 1, 1)) * size[:, None, None, None],
        "b1": rng.standard_normal(16) * size,
        "w2": rng.standard_normal((16, 16, 1, 1)) / size[:, None, None],
    }
    return text_model(GRAPH, **{k: v.astype(np.float32) for k, v in arrays.items()})


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 6, 8, 8)).astype(np.float32)} for _ in range(16)]


def record(result: Any, name: str = "fold-scales") -> dict[str, Any]:
    return next(p for p in result.report.data["passes"] if p["name"] == name)


def test_uneven_channels_are_evened_and_the_lock_replays_it(
    feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    one = model(6)
    plain = qcompile.compile(
        one, calibration=feeds, output=tmp_path / "p", **{**QUICK, "techniques": "none"}
    )
    found = qcompile.compile(one, calibration=feeds, output=tmp_path / "f", **QUICK)
    assert found.report.sqnr_db > plain.report.sqnr_db + 6
    assert record(found)["changed"] == 1
    assert "1 tensors scaled" in record(found)["notes"][0]["text"]
    locked = json.loads((found.path / "qcompile.lock").read_text())
    assert len(locked["factors"]["c"]) == 16
    again = qcompile.compile(
        one, calibration=feeds, output=tmp_path / "a", locked=True,
        lock=found.path / "qcompile.lock", **QUICK,
    )  # fmt: skip
    assert (again.path / "model.onnx").read_bytes() == (found.path / "model.onnx").read_bytes()
    reused = qcompile.compile(
        one, calibration=feeds, output=tmp_path / "r", ranges=found.path / "ranges.npz", **QUICK
    )
    renewed = json.loads((reused.path / "qcompile.lock").read_text())
    assert renewed["factors"] == locked["factors"]
    feed = feeds[0]
    have = run(onnx.load(found.path / "model.onnx"), feed)[0]
    np.testing.assert_allclose(have, run(one, feed)[0], atol=1.0)


def test_even_channels_stay(feeds: list[dict[str, Any]], tmp_path: Path) -> None:
    found = qcompile.compile(model(0), calibration=feeds, output=tmp_path / "o", **QUICK)
    assert record(found)["changed"] == 0
    assert "factors" not in json.loads((found.path / "qcompile.lock").read_text())


def test_what_the_output_does_not_gain_by_is_undone(
    feeds: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompile.even_out.GAIN_DB", 99.0)
    found = qcompile.compile(model(6), calibration=feeds, output=tmp_path / "o", **QUICK)
    assert record(found)["changed"] == 0
    assert "undone" in record(found)["notes"][0]["text"]


def test_portable_targets_profit_too(feeds: list[dict[str, Any]], tmp_path: Path) -> None:
    options = {**QUICK, "target": "tensorrt-int8"}
    found = qcompile.compile(model(6), calibration=feeds, output=tmp_path / "o", **options)
    assert record(found)["changed"] == 1
