"""What benchmarks/techniques.py judges."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from qcompile.backends.ort import open_session

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "techniques.py"
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3] x) => (float[1,3] y) { scaled = Add(x, x) y = %s(scaled) }"""


@pytest.fixture(scope="module")
def techniques() -> ModuleType:
    """benchmarks/techniques.py."""
    spec = importlib.util.spec_from_file_location("bench_techniques", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_techniques"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("squashing", ["Softmax", "Sigmoid"])
def test_a_last_softmax_is_left_out(techniques: ModuleType, tmp_path: Path, squashing: str) -> None:
    onnx.save(onnx.parser.parse_model(TEXT % squashing), tmp_path / "m.onnx")
    session = open_session(techniques.without_last(tmp_path / "m.onnx", tmp_path / "out.onnx"))
    (found,) = session.run({"x": np.array([[1.0, -2.0, 30.0]], np.float32)}).values()
    np.testing.assert_array_equal(found, [[2.0, -4.0, 60.0]])


def test_where_there_is_none_it_says_so(techniques: ModuleType, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(TEXT % "Relu"), tmp_path / "m.onnx")
    with pytest.raises(SystemExit, match="no output of"):
        techniques.without_last(tmp_path / "m.onnx", tmp_path / "out.onnx")
