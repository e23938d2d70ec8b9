"""What stays float moves to float16 where its values fit, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx.reference import ReferenceEvaluator

from qcompile.backends.tables_trt import tensorrt_int8
from qcompile.ir.affine import TensorRange
from qcompile.ir.manager import CompileState, PassManager
from qcompile.passes.cast_half import CastHalf
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import (
    Array,
    feed_for,
    initializers,
    run,
    sqnr_db,
    state_of,
    text_model,
)

SM80 = tensorrt_int8("sm80")
RNG = np.random.default_rng(7)


def _weight(*shape: int) -> Array:
    return (RNG.standard_normal(shape) * 0.2).astype(np.float32)


def _cast(proto: onnx.ModelProto, **peaks: float) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model in float16, and what stays float32 and why."""
    state = CompileState(oir.from_proto(proto), SM80)
    state.ranges = {n: TensorRange(np.asarray(-p), np.asarray(p)) for n, p in peaks.items()}
    manager = PassManager([CastHalf()])
    manager.run(state)
    result = oir.to_proto(state.model)
    onnx.checker.check_model(result, full_check=True)
    again = PassManager([CastHalf()])
    again.run(state)
    assert oir.to_proto(state.model).SerializeToString(
        deterministic=True
    ) == result.SerializeToString(deterministic=True)
    return result, {n.where: n.text for n in manager.records[0].notes}


def _inputs(proto: onnx.ModelProto, node: str) -> list[str]:
    types = {
        v.name: onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type)
        for v in (
            *onnx.shape_inference.infer_shapes(proto).graph.value_info,
            *proto.graph.input,
            *proto.graph.output,
        )
    }
    types |= {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in proto.graph.initializer}
    return [types[i] for n in proto.graph.node if n.name == node for i in n.input]


def test_values_and_constants_become_half_and_the_interface_stays() -> None:
    proto = text_model(
        """g (float[2, 8] x) => (float[2, 4] y, float[2, 8] r) {
            r = Relu (x)
            y = MatMul (r, w)
        }""",
        w=_weight(8, 4),
    )
    result, notes = _cast(proto)
    assert notes == {}
    assert [n.op_type for n in result.graph.node] == ["Cast", "Relu", "Cast", "MatMul", "Cast"]
    assert _inputs(result, "n_y") == ["FLOAT16", "FLOAT16"]
    assert initializers(result)["w_half"].dtype == np.float16
    assert "w" not in initializers(result)
    ends = [(p.graph.input[0], *p.graph.output) for p in (proto, result)]
    for before, after in zip(*ends, strict=True):
        assert (before.name, before.type) == (after.name, after.type)
    feed = feed_for(proto)
    for want, have in zip(run(proto, feed), run(result, feed), strict=True):
        np.testing.assert_allclose(have, want, rtol=2e-2, atol=2e-3)


def test_what_would_overflow_stays_float() -> None:
    proto = text_model(
        """g (float[2, 8] x) => (float[2, 8] y) {
            a = Mul (x, big)
            b = Mul (a, a)
            y = Mul (b, small)
        }""",
        big=np.asarray([300], np.float32),
        small=np.asarray([1e-3], np.float32),
    )
    # As calibration saw it, b reaches 3e5.
    result, notes = _cast(proto, x=3.0, a=900.0, b=810000.0, y=810.0)
    assert set(notes) == {"n_b", "n_y"}
    assert "'b' is too large for float16" in notes["n_b"]
    feed = feed_for(proto)
    assert sqnr_db(run(proto, feed)[0], run(result, feed)[0]) > 50
    naive, _ = _cast(proto)
    # ONNX Runtime's CPU kernels compute in float32 between casts; the reference rounds every step.
    with np.errstate(over="ignore"):
        assert not np.isfinite(ReferenceEvaluator(naive).run(None, feed)[0]).all()
        assert np.isfinite(ReferenceEvaluator(result).run(None, feed)[0]).all()


def test_an_epsilon_is_not_lost() -> None:
    proto = text_model(
        """g (float[2, 8] x) => (float[2, 8] y) {
            zero = Sub (x, x)
            a = Add (zero, eps)
            y = Div (zero, a)
        }""",
        eps=np.asarray(1e-12, np.float32),
    )
    result, notes = _cast(proto)
    assert "constant 'eps' is too small" in notes["n_a"]
    feed = feed_for(proto)
    # The division reads a cast of it, and must not be by zero.
    assert "n_y" not in notes or np.isfinite(run(result, feed)[0]).all()


@pytest.mark.parametrize("op", ["Exp", "Log", "Reciprocal"])
def test_operators_that_lose_digits_stay_float(op: str) -> None:
    proto = text_model(f"g (float[2, 8] x) => (float[2, 8] y) {{ y = {op} (x) }}")
    result, notes = _cast(proto)
    assert [n.op_type for n in result.graph.node] == [op]
    assert "leaves the range of 16 bits or loses digits" in notes["n_y"]


def test_inputs_that_onnx_types_as_float_stay_so() -> None:
    proto = text_model(
        """g (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) {
            y = Resize <mode = "nearest"> (x, , scales)
        }""",
        scales=np.asarray([1, 1, 2, 2], np.float32),
    )
    result, _ = _cast(proto)
    assert initializers(result)["scales"].dtype == np.float32
    assert [n.op_type for n in result.graph.node] == ["Cast", "Resize", "Cast"]


def test_integers_and_other_domains_are_left_alone() -> None:
    proto = text_model("g (int64[2, 8] x) => (int64[2, 8] y) { y = Add (x, x) }")
    result, notes = _cast(proto)
    assert [n.op_type for n in result.graph.node] == ["Add"]
    assert notes == {}


def test_values_read_inside_a_branch_keep_their_type() -> None:
    proto = text_model(
        """g (float[2, 8] x, bool c) => (float[2, 8] y) {
            r = Relu (x)
            y = If (c) <
                then_branch = t () => (float[2, 8] p) { p = Neg (r) },
                else_branch = e () => (float[2, 8] q) { q = Abs (r) }
            >
        }"""
    )
    result, _ = _cast(proto)
    feed = feed_for(proto)
    np.testing.assert_allclose(run(result, feed)[0], run(proto, feed)[0], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("opset", "half"), [(17, False), (19, True)])
def test_scales_become_half_from_opset_19(opset: int, half: bool) -> None:
    proto = text_model(
        "g (float[2, 32] x) => (float[2, 16] y) { y = MatMul (x, w) }", opset, w=_weight(32, 16)
    )
    state = state_of(proto, SM80)
    state.plan = default_plan(state)
    PassManager([InsertQDQ(), CastHalf()]).run(state)
    result = oir.to_proto(state.model)
    onnx.checker.check_model(result, full_check=True)
    scales = {n: a.dtype for n, a in initializers(result).items() if "scale" in n}
    assert set(scales.values()) == {np.dtype(np.float16 if half else np.float32)}
    feed = feed_for(proto)
    assert sqnr_db(run(proto, feed)[0], run(result, feed)[0]) > 30


def test_a_scale_that_is_too_small_for_half_stays_float() -> None:
    proto = text_model(
        "g (float[2, 32] x) => (float[2, 16] y) { y = MatMul (x, w) }",
        19,
        w=_weight(32, 16) * np.float32(1e-4),
    )
    state = state_of(proto, SM80)
    state.plan = default_plan(state)
    manager = PassManager([InsertQDQ(), CastHalf()])
    manager.run(state)
    assert any("scale does not fit float16" in n.text for n in manager.records[1].notes)
    result = oir.to_proto(state.model)
    onnx.checker.check_model(result, full_check=True)
    # TensorRT's compiler stops on a product whose operands have scales of two types.
    scales = {n: a.dtype for n, a in initializers(result).items() if "scale" in n}
    assert set(scales.values()) == {np.dtype(np.float32)}


def test_what_the_target_fuses_in_float32_alone_stays_so() -> None:
    proto = text_model(
        "g (float[2, 8] x) => (float[2, 8] y) { r = Relu (x)\n h = HardSigmoid (r)\n y = Mul (r, h) }"
    )
    result, notes = _cast(proto)
    assert _inputs(result, "n_h") == ["FLOAT"]
    assert _inputs(result, "n_y") == ["FLOAT16", "FLOAT16"]
    assert notes["n_h"].startswith("stays float32: RTX ends a kernel")
