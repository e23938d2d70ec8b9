"""Scales that 16 bits hold exactly, chosen before anything is rounded with them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.backends.tables_trt import tensorrt_int8
from qcompile.ir.affine import QParams
from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.spec import QuantSpec
from qcompile.ir.weights import IntegerWeight
from qcompile.passes.cast_half import CastHalf
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.round_scales import RoundScales
from qcompile.passes.widen_bf16 import WidenBf16
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import feed_for, run, sqnr_db, state_of, text_model

TYPES = {"fp16": oir.DataType.FLOAT16, "bf16": oir.DataType.BFLOAT16}


def _model(opset: int = 22) -> onnx.ModelProto:
    rng = np.random.default_rng(11)
    return text_model(
        """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, bias)
            r = Relu (a)
            y = Conv <pads = [1, 1, 1, 1]> (r, w2)
        }""",
        opset,
        w1=(rng.standard_normal((16, 16, 3, 3)) * 0.2).astype(np.float32),
        w2=(rng.standard_normal((16, 16, 3, 3)) * 0.2).astype(np.float32),
        bias=rng.standard_normal(16).astype(np.float32),
    )


def _state(proto: onnx.ModelProto) -> CompileState:
    state = state_of(proto, tensorrt_int8("sm80"))
    state.plan = default_plan(state)
    return state


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_scales_are_exact_in_16_bits_and_no_range_shrinks(kind: str) -> None:
    before, state = _state(_model()), _state(_model())
    PassManager([InsertQDQ()]).run(before)
    PassManager([RoundScales(kind)]).run(state)
    dtype = TYPES[kind].numpy()
    assert set(state.qparams) == set(before.qparams)
    for name, qparams in state.qparams.items():
        exact = qparams.scale.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(exact, qparams.scale)
        assert (qparams.scale >= before.qparams[name].scale).all()
        assert (qparams.scale <= before.qparams[name].scale * 1.008).all()
    again = RoundScales(kind).run(state)
    assert again.changed == 0


def test_learned_integers_stay_and_their_scale_moves_to_the_nearest() -> None:
    state = _state(_model())
    spec = QuantSpec("int8", symmetric=True)
    weight = IntegerWeight(
        np.full((16, 16, 3, 3), 5, np.int8),
        QParams(np.float32(0.1003) * np.ones((), np.float32), np.zeros((), np.int8), spec),
    )
    state.weights["w1"] = weight
    RoundScales("bf16").run(state)
    assert state.weights["w1"].values is weight.values
    assert float(state.weights["w1"].qparams.scale) == pytest.approx(0.1003, rel=2**-8)
    assert float(state.weights["w1"].qparams.scale) != pytest.approx(0.1003, rel=1e-6)


def test_a_scale_that_float16_would_round_to_a_subnormal_stays() -> None:
    state = _state(_model())
    tiny = QParams(np.float32(1e-6), np.int8(0), QuantSpec("int8", symmetric=True))
    state.qparams["x"] = tiny
    RoundScales("fp16").run(state)
    assert state.qparams["x"].scale == tiny.scale


def test_a_bfloat16_rest_computes_what_float32_does_to_its_eight_digits() -> None:
    proto = _model()
    feed = feed_for(proto)
    exact, cast = _state(proto), _state(proto)
    PassManager([InsertQDQ()]).run(exact)
    PassManager([RoundScales("bf16"), InsertQDQ(), CastHalf("bf16")]).run(cast)
    narrow = oir.to_proto(cast.model)
    onnx.checker.check_model(narrow, full_check=True)
    held = {t.data_type for t in narrow.graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in held
    PassManager([WidenBf16()]).run(cast)
    wide = oir.to_proto(cast.model)
    onnx.checker.check_model(wide, full_check=True)
    wanted = run(oir.to_proto(exact.model), feed)[0]
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC"):
        found = run(wide, feed, level)[0]
        assert 30 < sqnr_db(wanted, found) < 60, "rounded to eight digits, no more and no less"
