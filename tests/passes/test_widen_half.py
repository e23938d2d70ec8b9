"""Float16 arithmetic written as float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir

from qcompile.backends.tables import get_target
from qcompile.ir.manager import CompileState, PassManager
from qcompile.passes.quantizable import classify
from qcompile.passes.widen_half import WidenHalf
from tests.passes.qdq_models import run, text_model

INNER = """g (float[1,3,8,8] x, float16[1,8,6,6] h) => (float[1,8,6,6] y, float16[1,8,6,6] z) {
    half = Cast <to = 10> (x)
    a = Conv (half, w)
    k = Constant <value = float16[1] {2}> ()
    b = Mul (a, k)
    z = Add (b, h)
    y = Cast <to = 1> (b)
}"""
"""Float16 inside, at an input and at an output."""


def halved() -> tuple[onnx.ModelProto, CompileState]:
    w = np.random.default_rng(0).normal(0, 0.3, (8, 3, 3, 3)).astype(np.float16)
    proto = text_model(INNER, w=w)
    return proto, CompileState(oir.from_proto(proto), get_target("ort-int8", None))


def test_float16_layers_become_float32_and_so_can_be_integer() -> None:
    proto, state = halved()
    assert "float16" in next(s for s in classify(state) if s.op_type == "Conv").reason
    PassManager([WidenHalf()]).run(state)
    wide = oir.to_proto(state.model)
    onnx.checker.check_model(wide, full_check=True)
    assert [(o.name, o.type.tensor_type.elem_type) for o in wide.graph.output] == [
        ("y", onnx.TensorProto.FLOAT),
        ("z", onnx.TensorProto.FLOAT16),
    ]
    assert not next(s for s in classify(state) if s.op_type == "Conv").reason
    rng = np.random.default_rng(1)
    feed = {
        "x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32),
        "h": rng.normal(size=(1, 8, 6, 6)).astype(np.float16),
    }
    for before, after in zip(run(proto, feed), run(wide, feed), strict=True):
        np.testing.assert_allclose(after, before, rtol=2e-2, atol=2e-2)


def test_a_second_run_changes_nothing() -> None:
    _, state = halved()
    PassManager([WidenHalf()]).run(state)
    text = oir.to_proto(state.model).SerializeToString(deterministic=True)
    WidenHalf().run(state)
    assert oir.to_proto(state.model).SerializeToString(deterministic=True) == text


def test_float16_is_kept_beside_control_flow() -> None:
    proto = text_model(
        """g (bool go, float16[4] x) => (float16[4] y) {
            y = If (go) <then_branch = a () => (float16[4] p) { p = Neg (x) },
                         else_branch = b () => (float16[4] q) { q = Abs (x) }>
        }"""
    )
    state = CompileState(oir.from_proto(proto), get_target("ort-int8", None))
    assert WidenHalf().run(state).changed == 0
