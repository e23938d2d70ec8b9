"""The table of weight-only quantization: what a row's name says, and lines that all have eight cells."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def weights() -> ModuleType:
    """benchmarks/weights.py."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("bench_weights", FOLDER / "weights.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bench_weights"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_rows_are_named_after_algorithm_and_grid(weights: ModuleType) -> None:
    assert weights._parts("gptq@3x128") == ("gptq", 3, 128)
    for name in (*weights.ROWS, *weights.PEER_ROWS):
        if "@" in name:
            assert weights._parts(name)[1:] in {(4, 32), (4, 128), (3, 128), (2, 32)}


def test_every_line_has_the_head_s_cells(weights: ModuleType) -> None:
    base = weights.Row("float", "", 30.0, 100, (700.0, 700.0), (50.0, 50.0))
    made = weights.Row("rtn@4x32", "", 33.0, 20, (700.0, 800.0), (50.0, 150.0), 12.0, 900.0)
    failed = weights.Row("gptq@4x32", "TypeError: no")
    cells = weights.HEAD.count("|")
    lines = [row.text(base) for row in (base, made, failed)]
    assert {line.count("|") for line in lines} == {cells}
    assert "+10.0 %" in lines[1] and "0.200" in lines[1] and "150, 3.00x" in lines[1]
    lost = weights.Row("rtn@2x32", "", 10600.0, 20, (700.0, 800.0), (50.0, 150.0), 12.0, 900.0)
    assert "lost" in lost.text(base)
