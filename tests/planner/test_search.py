"""Budgets choose among candidates before the gate does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qcompile.gate import Limits
from qcompile.options import Options, make_options
from qcompile.planner.race import Candidate
from qcompile.planner.search import _ordered


@dataclass
class FakeJob:
    options: Options
    data: Any = field(default_factory=lambda: SimpleNamespace(metric=None))

    def limits(self) -> Limits:
        return Limits(min_sqnr=self.options.min_sqnr)


def candidate(folder: Path, name: str, ms: float, db: float, size: int) -> Candidate:
    path = folder / f"{name}.onnx"
    path.write_bytes(b"\xff" * size)  # no ONNX: its size is that of the file
    build: Any = SimpleNamespace(path=path)
    return Candidate(name, build, ms=ms, speedup=10.0 / ms, sqnr_db=db)


@pytest.fixture
def front(tmp_path: Path) -> list[Candidate]:
    return [
        candidate(tmp_path, "fast", 3.0, 15.0, 100),
        candidate(tmp_path, "middle", 5.0, 25.0, 200),
        candidate(tmp_path, "fine", 8.0, 35.0, 300),
    ]


def names(front: list[Candidate], **options: Any) -> list[str]:
    job: Any = FakeJob(make_options(**options))
    return [c.name for c in _ordered(front, job)]


def test_without_a_budget_the_knee_comes_first(front: list[Candidate]) -> None:
    assert names(front)[0] == "fast"


def test_a_latency_buys_the_most_accurate_within_it(front: list[Candidate]) -> None:
    assert names(front, max_latency="6ms")[0] == "middle"
    assert names(front, max_latency="4ms")[0] == "fast"
    assert names(front, max_latency="9ms")[0] == "fine"


def test_an_accuracy_buys_the_best_that_has_it(front: list[Candidate]) -> None:
    assert names(front, min_sqnr=22.0)[0] == "middle"
    assert names(front, min_sqnr=22.0, max_latency="9ms")[0] == "middle"


def test_kinds_of_channels_keep_the_floor_and_no_more(front: list[Candidate]) -> None:
    fast, middle, fine = front
    lost = replace(fine, channels_db=5.0, blended_db=11.0)
    kept = replace(fine, channels_db=12.0, blended_db=18.0)
    # none keeps it: middle lacks 6 dB, and so do the channels of the third
    assert names([fast, middle, lost], min_sqnr=30.0) == ["middle", "fine", "fast"]
    assert names([fast, middle, lost])[-1] == "fine"  # 35 dB as a whole, and yet below the floor
    assert names([middle, kept], min_sqnr=30.0)[0] == "fine"


def test_a_latency_that_nothing_keeps_is_tried_with_the_nearest(front: list[Candidate]) -> None:
    assert names(front, max_latency="1ms") == ["fast", "middle", "fine"]


def test_a_size_rules_out_what_is_larger(front: list[Candidate]) -> None:
    assert names(front[1:], max_size="150B") == ["middle", "fine"]
    assert names(front, max_size="250B", max_latency="9ms")[0] == "middle"
