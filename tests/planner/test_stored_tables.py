"""Embeddings in 8 bits, through whole compiles: where they pay, and where they must not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import qcompile
from qcompile.interval import Interval
from qcompile.ir.plan import FLOAT, TABLE
from qcompile.planner import stored_tables
from qcompile.result import CompileResult
from tests.passes.qdq_models import text_model

RNG = np.random.default_rng(1)
MODEL = """g (int64[1, 16] ids) => (float[1, 16, 32] y) {
    r = Gather (t, ids)
    a = MatMul (r, w)
    b = Relu (a)
    y = MatMul (b, v)
}"""
FEEDS = [{"ids": RNG.integers(0, 6000, (1, 16))} for _ in range(12)]
QUICK: dict[str, Any] = {"min_speedup": 0.01, "gate_time": "0.5s", "effort": "fast", "threads": 1}


def timed(speed: float) -> Any:
    """In place of the clock: tables in 8 bits leave this share of the speed."""
    interval = Interval(speed, speed * 0.99, speed * 1.01, 9)
    return lambda *_, **__: SimpleNamespace(speedup=lambda _: interval)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_tables, "measure_pair", timed(0.99))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = {"t": (6000, 64), "w": (64, 64), "v": (64, 32)}
    arrays = {n: RNG.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    path = tmp_path_factory.mktemp("words") / "words.onnx"
    onnx.save(text_model(MODEL, **arrays), path)
    return path


@pytest.fixture(scope="module")
def built(words: Path, tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    output = tmp_path_factory.mktemp("built") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_tables, "measure_pair", timed(0.99))
        return qcompile.compile(words, calibration=FEEDS, output=output, **QUICK).check()


def layer(result: CompileResult) -> dict[str, Any]:
    """The lookup as the report has it."""
    return next(row for row in result.report.data["layers"] if row["op_type"] == "Gather")


def test_a_large_table_is_kept_in_8_bits(built: CompileResult, words: Path) -> None:
    row = layer(built)
    assert (row["requested"], row["realised"]) == (TABLE, TABLE), row["reason"]
    assert "kept in 8 bits" in row["reason"]
    assert words.stat().st_size > 3.5 * built.model.stat().st_size
    kinds = {i.data_type for i in onnx.load(built.model).graph.initializer if len(i.dims) == 2}
    sizes = [i.dims for i in onnx.load(built.model).graph.initializer if i.dims[:1] == [6000]]
    assert onnx.TensorProto.INT8 in kinds
    assert sorted(map(list, sizes)) == [[6000, 1], [6000, 64]]


def test_a_locked_compile_makes_the_same_bytes(
    built: CompileResult, words: Path, tmp_path: Path
) -> None:
    lock = built.path / "qcompile.lock"
    again = qcompile.compile(
        words, calibration=FEEDS, output=tmp_path / "o", lock=lock, locked=True, **QUICK
    ).check()
    assert again.model.read_bytes() == built.model.read_bytes()


def test_a_given_plan_says_what_tables_are(
    built: CompileResult, words: Path, tmp_path: Path
) -> None:
    plan = qcompile.PrecisionPlan.from_json((built.path / "plan.json").read_text(encoding="utf-8"))
    same = qcompile.compile(
        words, calibration=FEEDS, output=tmp_path / "same", plan=plan, **QUICK
    ).check()
    assert layer(same)["realised"] == TABLE


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep_float": ["n_r"]}, "kept float by the user"),
        ({"disable": ["store-tables"]}, "would save memory"),
        ({"min_sqnr": 34.0}, "dB by it alone (45 needed)"),
    ],
)
def test_tables_that_stay_float_say_why(
    words: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    result = qcompile.compile(
        words, calibration=FEEDS, output=tmp_path / "o", **{**QUICK, **options}
    )
    row = layer(result)
    assert row["requested"] == FLOAT
    assert reason in row["reason"]
    held = onnx.load(result.check().model).graph.initializer
    assert [i.data_type for i in held if list(i.dims) == [6000, 64]] == [onnx.TensorProto.FLOAT]


def test_tables_that_cost_time_stay_float(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tables, "measure_pair", timed(0.9))
    result = qcompile.compile(words, calibration=FEEDS, output=tmp_path / "o", **QUICK)
    assert "0.90 times the speed" in layer(result)["reason"]
