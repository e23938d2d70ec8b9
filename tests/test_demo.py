"""The demo's own part: its files, its metric, what it prints. `make wheel-test` runs it for real."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import qcompile
from qcompile import demo
from qcompile.ir.errors import OutputError

GATE = {
    "score": {"float_score": 0.924, "artifact_score": 0.9215},
    "speed": {"models": {"float": {"p50_ms": 0.5}, "artifact": {"p50_ms": 0.25}}},
    "speedup": 2.0,
    "float_bytes": 140_000,
    "artifact_bytes": 50_000,
}


def compiled(asked: dict[str, Any]) -> Callable[..., SimpleNamespace]:
    """A stand-in for qcompile.compile that writes down what it was asked."""

    def compile(model: Path, **options: Any) -> SimpleNamespace:
        asked.update(options, model=model)
        report = SimpleNamespace(data={"gate": GATE})
        return SimpleNamespace(report=report, exit_code=3, headlines=lambda: ["NOT DELIVERED: x"])

    return compile


def test_it_compiles_the_small_network_and_prints_before_and_after(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setitem(vars(qcompile), "compile", compiled(asked))
    told = list[str]()
    done = demo.run_demo(tmp_path / "kept", say=told.append)
    assert done.result.exit_code == 3 and "256 images to calibrate" in told[0]
    assert asked["model"].name == "fmnist_dwcnn.onnx"
    assert asked["target"] == "ort-int8" and asked["output"] == tmp_path / "kept"
    feeds = asked["calibration"]
    assert sum(len(feed["image"]) for feed in feeds) == 256
    assert {feed["image"].dtype for feed in feeds} == {np.dtype(np.float32)}
    text = "\n".join(done.lines())
    assert "0.9240 -> 0.9215" in text and "2.00x" in text and "2.8x smaller" in text
    assert "NOT DELIVERED" in text and " s for all of it" in text


def test_without_a_folder_it_writes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setitem(vars(qcompile), "compile", compiled(asked))
    demo.run_demo(say=lambda text: None)
    assert asked["output"] == Path("fmnist_dwcnn.ort-int8")


def test_what_was_not_measured_is_not_printed() -> None:
    gate = {"score": None, "speed": None, "speedup": None, "float_bytes": None}
    assert demo.figures(gate, 1.0) == [("time", "1.0 s for all of it")]


def test_the_metric_counts_right_answers() -> None:
    images = np.zeros((50, 1, 28, 28), np.float32)
    labels = np.arange(50) % 10

    def always_three(feed: demo.Feed) -> Mapping[str, npt.NDArray[np.generic]]:
        return {"logits": np.eye(10)[[3] * len(feed["image"])]}

    assert demo.top1_metric(images, labels)(always_three) == pytest.approx(0.1)


def test_files_are_found_installed_and_in_a_clone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dwcnn: Path
) -> None:
    package = tmp_path / "qcompile"
    package.mkdir()
    monkeypatch.setattr(demo, "__file__", str(package / "demo.py"))
    with pytest.raises(OutputError, match="install qcompile again"):
        demo.models_folder()
    for folder in (tmp_path / "models", package / "models"):  # a clone, then installed
        folder.mkdir()
        shutil.copy(dwcnn, folder)
        assert demo.models_folder() == folder.resolve()
