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
from qcompile.planner.race import Race


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
