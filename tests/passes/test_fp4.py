"""NVFP4 in the graph: what TensorRT gets, and that what runs here computes the same numbers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
import pytest

from qcompile.backends.ort import open_session
from qcompile.backends.tables import get_target
from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import CalibrationError, TargetError
from qcompile.ir.float4 import global_scale, round_float4
from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.plan import FLOAT, NVFP4
from qcompile.passes.cast_half import CastHalf
from qcompile.passes.emulate_fp4 import EmulateFP4
from qcompile.passes.insert_fp4 import DYNAMIC, InsertFP4
from qcompile.planner.default import default_plan

RNG = np.random.default_rng(4)
TARGET = get_target("tensorrt-nvfp4", "sm120")
Floats = npt.NDArray[np.float32]
TWO = """<ir_version: 10, opset_import: ["" : 23]>
g (float[2, 8, 32] x) => (float[2, 8, 48] y, float[16, 64] z) {
  y = MatMul (x, w)
  r = Reshape (x, rows)
  z = Gemm <transB = 1> (r, v, b)
  s = Softmax (y)
}"""


def state(text: str = TWO, peak: float = 3.0, **constants: Any) -> CompileState:
    """A model with its plan; every activation is in [-peak, peak]."""
    proto = onnx.parser.parse_model(text)
    arrays = {
        "w": RNG.standard_normal((32, 48)).astype(np.float32),
        "v": RNG.standard_normal((64, 32)).astype(np.float32),
        "b": RNG.standard_normal(64).astype(np.float32),
        "rows": np.array([16, 32], np.int64),
    } | constants
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    model = oir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph:
        node.name = f"n_{node.outputs[0].name}"
        node.metadata_props["qcompile.origin"] = node.name
    found = CompileState(model, TARGET)
    names = [v.name or "" for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None]
    found.ranges = {n: TensorRange(np.float64(-peak), np.float64(peak), "test") for n in names}
    found.plan = default_plan(found)
    return found


def through_fp4(x: Floats, peak: float) -> Floats:
    """What the operator of TensorRT does, by its documentation."""
    blocks, whole = x.reshape(-1, 16), global_scale(peak)
    scale = np.minimum(np.abs(blocks).max(-1, keepdims=True) / (6 * whole), 448)
    scale = scale.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * whole
    ratio = np.clip(blocks / np.maximum(scale, 1e-30), -6, 6)
    near = ratio.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    return np.asarray((near * scale).reshape(x.shape), np.float32)


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_the_emulation_computes_what_the_numbers_stand_for(rest: str) -> None:
    one = state()
    w, v = (np.asarray(one.model.graph.initializers[n].const_value) for n in "wv")
    b = np.asarray(one.model.graph.initializers["b"].const_value)
    passes = [*([CastHalf(rest)] if rest != "fp32" else []), InsertFP4()]
    PassManager(passes).run(one)
    ops = [n.op_type for n in one.model.graph]
    assert ops.count(DYNAMIC) == 2
    PassManager([EmulateFP4()]).run(one)
    assert set(one.model.opset_imports) == {""}
    x = RNG.standard_normal((2, 8, 32)).astype(np.float32)
    x[0, 0, :16] = 0.0
    if rest == "fp16":
        x, w, v = (a.astype(np.float16).astype(np.float32) for a in (x, w, v))
    session = open_session(oir.to_proto(one.model).SerializeToString(), optimize=False)
    found = session.run({"x": x})
    near = through_fp4(x, 3.0)
    rtol = 1e-5 if rest == "fp32" else 4e-3
    wanted = near @ round_float4(np.ascontiguousarray(w.T)).floats().T
    np.testing.assert_allclose(found["y"], wanted, rtol=rtol, atol=rtol * 10)
    wanted = near.reshape(16, 32) @ round_float4(v).floats().T + b
    np.testing.assert_allclose(found["z"], wanted, rtol=rtol, atol=rtol * 10)


def test_what_two_layers_read_is_quantized_once_and_a_second_run_does_nothing() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[16, 32] x) => (float[16, 48] y, float[16, 48] z) { y = MatMul (x, w)  z = MatMul (x, w) }"""
    one = state(text)
    PassManager([InsertFP4()]).run(one)
    kinds = [n.op_type for n in one.model.graph]
    assert kinds.count(DYNAMIC) == 1
    assert kinds.count("DequantizeLinear") == 4
    stored = [v.dtype for v in one.model.graph.initializers.values()]
    assert stored.count(oir.DataType.FLOAT4E2M1) == 1
    manager = PassManager([InsertFP4()])
    manager.run(one)
    assert [r.changed for r in manager.records] == [0]


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        ((32, 48), ""),
        ((40, 48), "several blocks of 16"),
        ((16, 48), "several blocks of 16"),
        ((32, 17), "odd number"),
        ((32, 8), "dimension of 8"),
    ],
)
def test_what_does_not_lie_in_blocks_stays_float(weight: tuple[int, int], why: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    g (float[20, {weight[0]}] x) => (float[20, {weight[1]}] y) {{ y = MatMul (x, w) }}"""
    (layer,) = state(text, w=np.ones(weight, np.float32)).plan.layers  # type: ignore[union-attr]
    assert layer.precision == (FLOAT if why else NVFP4)
    assert why in layer.reason


def test_an_activation_without_a_range_is_named() -> None:
    one = state()
    one.ranges = {}
    with pytest.raises(CalibrationError, match="tensor 'x' needs a range"):
        InsertFP4().run(one)


def test_a_gpu_without_such_kernels_is_refused() -> None:
    with pytest.raises(TargetError, match="no FP4 kernels for sm89: they need SM100 or SM120"):
        get_target("tensorrt-nvfp4", "sm89")
