"""The float model runs once for all the builders of a race."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from qcompile.ir.plan import PrecisionPlan
from qcompile.planner import race as module
from qcompile.planner.race import Candidate, Race


def test_another_builder_does_not_run_float_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = %s(x) }'
    paths = {name: tmp_path / f"{name}.onnx" for name in ("Relu", "Softplus")}
    for name, path in paths.items():
        onnx.save(onnx.parser.parse_model(text % name), path)
    opened: list[Path] = []
    original = module.open_session

    def counted(path: Path, **options: Any) -> Any:
        opened.append(path)
        return original(path, **options)

    def builder(name: str) -> Any:
        return SimpleNamespace(build=lambda plan: SimpleNamespace(path=paths[name]), config=None)

    monkeypatch.setattr(module, "open_session", counted)
    feeds = [{"x": np.array([1.0, -2.0], np.float32)}]
    race = Race(builder("Relu"), paths["Relu"], feeds, 1, None)
    assert race.accuracy("same", PrecisionPlan(())).sqnr_db == 200.0
    other = replace(race, builder=builder("Softplus"))
    assert 0.0 < (other.accuracy("other", PrecisionPlan(())).sqnr_db or 0.0) < 20.0
    assert opened == [paths["Relu"], paths["Relu"], paths["Softplus"]]


def test_kinds_of_channels_count_in_what_a_candidate_is_worth() -> None:
    build: Any = None
    plain = Candidate("one kind", build, speedup=2.0, sqnr_db=40.0)
    lost = replace(plain, channels_db=0.0, channels="channels 4..6", blended_db=6.0)
    assert plain.judged_db == 40.0 and lost.judged_db == 6.0
    assert lost.worth() < 0.6 * plain.worth()
    assert lost.text().endswith("40.0 dB (0.0 dB in channels 4..6)")


def test_channels_of_a_candidate_are_looked_at(tmp_path: Path) -> None:
    """Boxes stay, scores become zero."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,2,3] x) => (float[1,2,3] y)
    <float[2,1] k = {%s}> { y = Mul(x, k) }"""
    paths = {name: tmp_path / f"{name}.onnx" for name in ("float", "lost")}
    for path, keep in zip(paths.values(), ("1.0, 1.0", "1.0, 0.0"), strict=True):
        onnx.save(onnx.parser.parse_model(text % keep), path)
    builder: Any = SimpleNamespace(
        build=lambda plan: SimpleNamespace(path=paths["lost"]), config=None
    )
    feeds = [{"x": np.array([[[300, 200, 400], [0.9, 0.1, 0.5]]], np.float32)}]
    found = Race(builder, paths["float"], feeds, 1, None).accuracy("lost", PrecisionPlan(()))
    assert (found.sqnr_db or 0.0) > 50.0
    assert (found.channels_db, found.channels) == (pytest.approx(0.0), "channel 1")
    assert found.judged_db == pytest.approx(10.0)
