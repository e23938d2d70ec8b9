"""The float model inside a portable one: no Q or DQ left, the same layers, nearly the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.backends.ort import open_session
from qcompile.float_form import float_form
from qcompile.ir.errors import ModelError
from qcompile.ir.graph import origins

MODEL = """
<ir_version: 10, opset_import: ["": 21]>
g (float[2,4] x) => (float[2,3] y)
<int8[4,3] w = {10,20,30,40,50,60,-70,-80,90,1,2,3}, float[3] ws = {0.1,0.2,0.3}, int8[3] wz = {0,0,0},
 float s = {0.05}, uint8 z = {128}> {
  xq = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(xq, s, z)
  wd = DequantizeLinear<axis=1>(w, ws, wz)
  [head] y_float = MatMul(xd, wd)
  yq = QuantizeLinear(y_float, s, z)
  y = DequantizeLinear(yq, s, z)
}
"""


def model(text: str = MODEL) -> oir.Model:
    return oir.serde.deserialize_model(onnx.parser.parse_model(text))


def test_what_is_left_is_the_layer_on_its_grid() -> None:
    before = model()
    next(n for n in before.graph if n.op_type == "MatMul").metadata_props["qcompile.origin"] = (
        "/head"
    )
    found = float_form(before)
    assert [n.op_type for n in found.graph] == ["MatMul"]
    assert origins(found.graph[0]) == ("/head",)
    assert [v.name for v in found.graph.outputs] == ["y"]
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    w = np.array([[10, 20, 30], [40, 50, 60], [-70, -80, 90], [1, 2, 3]]) * [0.1, 0.2, 0.3]
    got = open_session(oir.to_proto(found).SerializeToString()).run({"x": x})["y"]
    np.testing.assert_allclose(got, x @ w.astype(np.float32), rtol=1e-5, atol=1e-5)
    assert sum(n.op_type == "QuantizeLinear" for n in before.graph) == 2  # the original stays


def test_a_float_model_stays_as_it_is() -> None:
    once = float_form(model())
    again = float_form(once)
    assert [n.op_type for n in again.graph] == [n.op_type for n in once.graph]


def test_weights_in_blocks() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[1,4] x) => (float[1,2] y)
    <int8[4,2] w = {1,2,3,4,5,6,7,8}, float[2,2] ws = {1.0,2.0,3.0,4.0}> {
      wd = DequantizeLinear<axis=0, block_size=2>(w, ws)
      y = MatMul(x, wd)
    }
    """
    found = float_form(model(text))
    x = np.ones((1, 4), np.float32)
    got = open_session(oir.to_proto(found).SerializeToString()).run({"x": x})["y"]
    np.testing.assert_allclose(got, [[1 + 3 + 15 + 21, 4 + 8 + 24 + 32]])


def test_integers_from_elsewhere_are_refused() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (uint8[1,4] x) => (float[1,4] y) <float s = {0.05}, uint8 z = {128}> {
      [read] y = DequantizeLinear(x, s, z)
    }
    """
    with pytest.raises(ModelError, match="'read' dequantizes 'x'"):
        float_form(model(text))
