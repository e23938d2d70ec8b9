"""The user's own score in the gate: within and beyond, by slice, and when it fails."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.ir.errors import OptionError
from qcompile.limits import Limits
from qcompile.units import parse_drop
from tests.gate_models import FEEDS, NOISY, failed, gate, load_here, small


@pytest.fixture(autouse=True)
def opened_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("gate", "opening"):
        monkeypatch.setattr(f"qcompile.{place}.measure_load", load_here)


@pytest.fixture
def ref(tmp_path: Path) -> Path:
    return small(tmp_path / "float.onnx")


def mean(run: Any) -> float:
    return float(np.mean([run(f)["y"].mean() for f in FEEDS]))


def error(run: Any) -> float:
    return 1.0 / mean(run)


error.lower_is_better = True  # type: ignore[attr-defined]


def test_metric_within_and_beyond(ref: Path, tmp_path: Path) -> None:
    # 20 % more: better where higher is better, 1/1.2 = 16.7 % less where lower is
    other = small(tmp_path / "a.onnx", NOISY)
    assert gate(ref, other, metric=mean).verdict == "delivered"
    assert gate(ref, other, metric=error).verdict == "delivered"
    swapped = gate(other, ref, metric=mean, limits=Limits(max_drop=parse_drop("10%")))
    assert "of 10% allowed" in failed(swapped, "metric")
    assert gate(other, ref, metric=error).verdict == "not delivered"
    assert gate(other, ref, metric=mean, limits=Limits(max_drop=parse_drop("17%"))).delivered


def test_metric_takes_the_place_of_sqnr(ref: Path, tmp_path: Path) -> None:
    other = small(tmp_path / "a.onnx", "n = Neg(x) r = Relu(n) y = Neg(r)")
    assert gate(ref, other, metric=lambda run: 0.87).verdict == "delivered"
    asked = gate(ref, other, metric=lambda run: 0.87, limits=Limits(min_sqnr=10))
    failed(asked, "accuracy")


def test_metric_text_in_points(ref: Path) -> None:
    scores = iter((0.870, 0.866))
    result = gate(
        ref, ref, metric=lambda run: next(scores), limits=Limits(max_drop=parse_drop("0.5pt"))
    )
    assert result.headline.endswith("0.870 -> 0.866 (-0.4pt of 0.5pt allowed)")


def test_worst_slice_of_a_metric_decides(ref: Path) -> None:
    scores = iter(({"day": 0.9, "night": 0.8}, {"day": 0.9, "night": 0.7}))
    result = gate(ref, ref, metric=lambda run: next(scores))
    assert "[night] 0.800 -> 0.700" in failed(result, "metric")
    assert result.score.slices == {"day": (0.9, 0.9), "night": (0.8, 0.7)}


def test_metric_that_fails(ref: Path, tmp_path: Path) -> None:
    def broken(run: Any) -> float:
        raise KeyError("labels")

    with pytest.raises(OptionError, match="metric 'broken' fails on the float model: KeyError"):
        gate(ref, ref, metric=broken)
    with pytest.raises(OptionError, match="nan"):
        gate(ref, ref, metric=lambda run: math.nan)
    scores = iter((1.0, math.nan))
    failed(gate(ref, ref, metric=lambda run: next(scores)), "metric")
