"""What a target refuses in any Q/DQ model is listed, with what to do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.backends.legality import FLOATS, REFUSED, Illegal, check_legality
from qcompile.backends.tables import get_target
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import Array, insert, state_of, text_model

SM89 = get_target("tensorrt-int8", "sm89")
RNG = np.random.default_rng(8)

CONV = """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
    xq = QuantizeLinear (x, sx, zx)
    xd = DequantizeLinear (xq, sx, zx)
    wd = DequantizeLinear <axis = 0> (w, sw, zw)
    y = Conv <pads = [1, 1, 1, 1]> (xd, wd)
}"""


FLOAT8 = pytest.mark.skipif(
    onnx.__version__.startswith("1.18."), reason="onnx 1.18 writes no ml_dtypes arrays"
)


def _arrays() -> dict[str, Array]:
    return {
        "sx": np.asarray(0.02, np.float32),
        "zx": np.asarray(0, np.int8),
        "w": RNG.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8),
        "sw": RNG.uniform(0.001, 0.003, 16).astype(np.float32),
        "zw": np.zeros(16, np.int8),
    }


def _check(
    text: str, arrays: Mapping[str, Array], device: str = "sm89", opset: int = 17
) -> tuple[Illegal, ...]:
    model = oir.from_proto(text_model(text, opset, **arrays))
    return check_legality(model, get_target("tensorrt-int8", device))


def test_nothing_speaks_against_a_symmetric_model() -> None:
    assert _check(CONV, _arrays()) == ()


def test_what_qcompile_writes_is_legal() -> None:
    proto = text_model(
        """g (float[1, 16, 8, 8] x) => (float[1, 8, 16] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            r = Reshape (a, shape)
            y = MatMul (r, m)
        }""",
        w=RNG.standard_normal((16, 16, 3, 3)).astype(np.float32),
        m=RNG.standard_normal((128, 16)).astype(np.float32),
        shape=np.asarray([1, 8, 128], np.int64),
    )
    state = state_of(proto, SM89)
    state.plan = default_plan(state)
    assert check_legality(oir.from_proto(insert(state)), SM89) == ()


@pytest.mark.parametrize(
    ("changed", "effect", "found"),
    [
        ({"zx": np.asarray(3, np.int8)}, REFUSED, "its zero point is 3; needed: 0"),
        ({"zx": np.asarray(128, np.uint8)}, REFUSED, "activations of uint8; needed: int8"),
        ({"sx": np.asarray(0, np.float32)}, REFUSED, "a scale of 0; needed: finite and above 0"),
    ],
)
def test_activations(changed: dict[str, Array], effect: str, found: str) -> None:
    illegal = _check(CONV, {**_arrays(), **changed})
    assert {i.node for i in illegal} == {"n_xq", "n_xd"}
    assert illegal[0].effect == effect
    assert found in illegal[0].text
    assert "compile it for this target" in illegal[0].remedy


def test_a_quantized_bias_is_refused() -> None:
    text = CONV.replace("(xd, wd)", "(xd, wd, bd)").replace(
        "    y = Conv", "    bd = DequantizeLinear <axis = 0> (b, sw)\n    y = Conv"
    )
    (illegal,) = _check(text, {**_arrays(), "b": np.zeros(16, np.int32)})
    assert (illegal.node, illegal.tensor, illegal.effect) == ("n_bd", "b", REFUSED)
    assert "int32 bias" in illegal.found


def test_what_falls_back_without_a_word() -> None:
    (one_sided,) = _check(CONV.replace("(xd, wd)", "(x, wd)"), _arrays())
    assert one_sided.effect == FLOATS
    assert "only one operand is quantized, the activation is not" in one_sided.found
    axis = CONV.replace("<axis = 0> (w,", "<axis = 1> (w,")
    (wrong,) = _check(axis, _arrays())
    assert "scales lie along axis 1; needed: axis 0" in wrong.found
    up = CONV.replace("Conv <pads", "ConvTranspose <pads")
    (transposed,) = _check(up, _arrays())
    assert (transposed.op_type, transposed.effect) == ("ConvTranspose", FLOATS)
    (old,) = [i for i in check_old() if i.op_type == "Conv"]
    assert "no INT8 kernel on SM75" in old.found


def check_old() -> tuple[Illegal, ...]:
    model = oir.from_proto(text_model(CONV, 17, **_arrays()))
    return check_legality(model, get_target("tensorrt-fp16", "sm75"))


@FLOAT8
def test_types_that_the_gpu_lacks() -> None:
    arrays = _arrays()
    arrays["zx"] = np.zeros((), oir.DataType.FLOAT8E4M3FN.numpy())
    illegal = _check(CONV, arrays, "sm86", opset=19)
    assert {i.found for i in illegal} == {"FP8 needs SM89 or later, this is SM86"}
    assert _check(CONV, arrays, "sm89", opset=19) == ()


def test_operators_of_another_runtime() -> None:
    text = """g (float[4, 8] x) => (int32[4, 8] y) {
        q, s, z = DynamicQuantizeLinear (x)
        y = MatMulInteger (q, w, z)
    }"""
    illegal = _check(text, {"w": np.eye(8, dtype=np.int8)})
    assert [i.op_type for i in illegal] == ["DynamicQuantizeLinear", "MatMulInteger"]


def test_a_target_on_the_cpu_takes_what_its_opset_has() -> None:
    model = oir.from_proto(text_model(CONV, 17, **{**_arrays(), "zx": np.asarray(3, np.int8)}))
    assert check_legality(model, get_target("ort-int8", "x86-vnni")) == ()
    model.graph.opset_imports[""] = 12
    (illegal,) = check_legality(model, get_target("ort-int8", "x86-vnni"))
    assert "needs opset 13, found 12" in illegal.found
