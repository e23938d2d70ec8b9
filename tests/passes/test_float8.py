"""E4M3: the same placement as INT8, another storage type and rounding."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.backends.tables_trt import tensorrt_fp8
from qcompile.calibrators.choose import choose_ranges, estimators
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import TensorRange, dequantize, quantize, solve, storage_dtype
from qcompile.ir.errors import OptionError, TargetError
from qcompile.ir.manager import PassManager
from qcompile.ir.plan import FP8, INT8
from qcompile.ir.spec import FLOAT8, QuantSpec
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import feed_for, insert, run, sqnr_db, state_of, text_model

SPEC = QuantSpec(FLOAT8, symmetric=True)


FLOAT8 = pytest.mark.skipif(
    onnx.__version__.startswith("1.18."), reason="onnx 1.18 writes no ml_dtypes arrays"
)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=64))
def test_rounding_keeps_four_binary_digits_and_saturates(values: list[float]) -> None:
    x = np.asarray(values, np.float32)
    peak = float(np.abs(x).max())
    p = solve(TensorRange(np.asarray(-peak), np.asarray(peak)), SPEC)
    back = dequantize(quantize(x, p), p)
    # three bits of mantissa behind the leading one; below 2^-6 scales the grid is even
    step = np.maximum(np.abs(x) * 2.0**-4, float(p.scale) * 2.0**-10)
    assert (np.abs(back - x) <= step * 1.0001).all()
    assert storage_dtype(SPEC).itemsize == 1
    high = quantize(np.asarray([peak * 2, -peak * 2], np.float32), p).astype(np.float32)
    assert (np.abs(high) == 448).all() or peak < 1e-15, "below, the scale is bounded"


@FLOAT8
def test_the_integers_are_those_that_onnx_runtime_makes() -> None:
    proto = text_model(
        """g (float[64] x) => (float[64] y) {
            q = QuantizeLinear (x, s, z)
            y = DequantizeLinear (q, s, z)
        }""",
        19,
        s=np.asarray(0.013, np.float32),
        z=np.zeros((), storage_dtype(SPEC)),
    )
    x = (np.random.default_rng(0).standard_normal(64) * 3).astype(np.float32)
    p = solve(TensorRange(np.asarray(-0.013 * 448), np.asarray(0.013 * 448)), SPEC)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], dequantize(quantize(x, p), p), rtol=1e-6
    )


def test_layers_read_e4m3_on_both_sides() -> None:
    rng = np.random.default_rng(5)
    proto = text_model(
        """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            r = Relu (a)
            y = Conv <pads = [1, 1, 1, 1]> (r, w2)
        }""",
        19,
        w1=(rng.standard_normal((16, 16, 3, 3)) * 0.2).astype(np.float32),
        w2=(rng.standard_normal((16, 16, 3, 3)) * 0.2).astype(np.float32),
    )
    state = state_of(proto, tensorrt_fp8("sm89"))
    state.plan = default_plan(state)
    assert {c.precision for c in state.plan.layers} == {FP8}
    result = insert(state)
    zeros = [t for t in result.graph.initializer if t.name.endswith("zero_point")]
    assert {t.data_type for t in zeros} == {onnx.TensorProto.FLOAT8E4M3FN}
    feed = feed_for(proto)
    assert 24 < sqnr_db(run(proto, feed)[0], run(result, feed)[0]) < 40


def test_a_plan_of_another_form_is_said_and_a_pin_is_refused() -> None:
    proto = text_model(
        "g (float[4, 32] x) => (float[4, 32] y) { y = MatMul (x, w) }",
        19,
        w=np.eye(32, dtype=np.float32),
    )
    state = state_of(proto, tensorrt_fp8("sm89"))
    plan = default_plan(state)
    state.plan = plan.with_choice(["n_y"], INT8, "from elsewhere")
    manager = PassManager([InsertQDQ()])
    manager.run(state)
    notes = manager.records[0].notes
    assert [n.text for n in notes] == ["stays float: the target's form is fp8, not int8"]
    state.plan = plan.pin({"n_y": INT8})
    with pytest.raises(
        TargetError, match=r"'n_y' .* is pinned to int8 but cannot be: the target's"
    ):
        InsertQDQ().run(state)


def test_gpus_without_the_type_are_refused_before_any_work() -> None:
    with pytest.raises(TargetError, match="no FP8 kernels for sm86: they need SM89"):
        tensorrt_fp8("sm86")
    assert "SM89 and later" in tensorrt_fp8(None).notes[0] or tensorrt_fp8(None).device != "sm89"


def test_estimators_that_count_even_levels_are_refused() -> None:
    store = TensorStore()
    with pytest.raises(OptionError, match="--method mse counts evenly spaced levels"):
        choose_ranges({"x": store}, "mse", SPEC)
    assert "entropy" not in estimators(SPEC)
    assert choose_ranges({"x": store}, "auto", SPEC)["x"].method == "minmax"
    assert oir.DataType.FLOAT8E4M3FN.itemsize == 1
