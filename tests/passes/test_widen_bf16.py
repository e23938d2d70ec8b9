"""bfloat16 arithmetic written as float32 that is rounded."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as oir

from qcompile.backends.tables_trt import tensorrt_bf16
from qcompile.ir.manager import CompileState, PassManager
from qcompile.passes.cast_half import CastHalf
from qcompile.passes.widen_bf16 import WidenBf16
from tests.passes.qdq_models import Array, feed_for, run, text_model


def _states() -> tuple[onnx.ModelProto, CompileState]:
    rng = np.random.default_rng(2)
    proto = text_model(
        """g (float[4, 16] x) => (float[4, 8] y, float[4, 16] s) {
            r = Relu (x)
            s = Add (r, c)
            y = MatMul (s, w)
        }""",
        22,
        c=rng.standard_normal(16).astype(np.float32),
        w=rng.standard_normal((16, 8)).astype(np.float32),
    )
    state = CompileState(oir.from_proto(proto), tensorrt_bf16("sm80"))
    PassManager([CastHalf("bf16")]).run(state)
    return proto, state


def _rounded(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_every_result_is_rounded_as_bfloat16_stores_it() -> None:
    proto, state = _states()
    PassManager([WidenBf16()]).run(state)
    wide = oir.to_proto(state.model)
    onnx.checker.check_model(wide, full_check=True)
    feed = feed_for(proto)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    s = _rounded(_rounded(np.maximum(_rounded(feed["x"]), 0)) + _rounded(arrays["c"]))
    y = _rounded(s @ _rounded(arrays["w"]))
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        found = run(wide, feed, level)
        np.testing.assert_array_equal(found[1], s)
        # the order of the sum may differ, which can move a result to the next bfloat16
        np.testing.assert_allclose(found[0], y, rtol=2**-7, atol=1e-2)


def test_a_second_run_and_a_float32_model_change_nothing() -> None:
    _, state = _states()
    PassManager([WidenBf16()]).run(state)
    text = oir.to_proto(state.model).SerializeToString(deterministic=True)
    assert WidenBf16().run(state).changed == 0
    assert oir.to_proto(state.model).SerializeToString(deterministic=True) == text
