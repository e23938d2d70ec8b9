"""Numbers that no kernel computes with are repaired or refused, and unusual ones are said."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.ir.errors import PassError
from qcompile.ir.manager import CompileState, PassManager, PassRecord
from qcompile.passes.lint_numbers import LintNumbers
from tests.passes.qdq_models import VNNI, Array, feed_for, initializers, run, text_model

GRAPH = """g (float[1,3] x) => (float[1,4] y) {
  q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
  v = DequantizeLinear <axis = 0> (w, t)  c = DequantizeLinear <axis = 0> (b, u)
  y = Gemm <transB = 1> (d, v, c) }"""


def lint(**changed: object) -> tuple[onnx.ModelProto, onnx.ModelProto, PassRecord]:
    arrays: dict[str, Array] = {
        "s": np.array(0.1, np.float32),
        "z": np.array(128, np.uint8),
        "w": np.arange(1, 13, dtype=np.int8).reshape(4, 3),
        "t": np.full(4, 0.5, np.float32),
        "b": np.ones(4, np.int32),
        "u": np.full(4, 0.05, np.float32),
    }
    for name, value in changed.items():
        arrays[name] = np.asarray(value, arrays[name].dtype)
    proto = text_model(GRAPH, **arrays)
    state = CompileState(oir.from_proto(proto), VNNI)
    manager = PassManager([LintNumbers()])
    manager.run(state)
    made = oir.to_proto(state.model)
    again = PassManager([LintNumbers()])
    again.run(state)
    assert again.records[0].changed == 0
    return proto, made, manager.records[0]


def test_sound_numbers_stay() -> None:
    proto, made, record = lint()
    assert not record.notes
    feed = feed_for(proto)
    np.testing.assert_array_equal(run(proto, feed)[0], run(made, feed)[0])


def test_a_zero_scale_becomes_that_of_the_others() -> None:
    _, made, record = lint(t=[0.5, 0, 0.3, 0.4])
    np.testing.assert_allclose(initializers(made)["t"], [0.5, 0.4, 0.3, 0.4], rtol=1e-6)
    assert not initializers(made)["w"][1].any()
    texts = [note.text for note in record.notes]
    assert texts[0] == "1 zero of 4 scales repaired"
    assert "1 of 4 output channels have no weight but zero" in texts


def test_a_denormal_scale_becomes_the_least_safe_one() -> None:
    proto, made, record = lint(u=[1e-40, 0.05, 0.05, 0.05])
    assert initializers(made)["u"].min() > 1e-38
    assert "1 denormal of 4 scales repaired" in record.notes[0].text
    feed = feed_for(proto)
    np.testing.assert_allclose(run(proto, feed)[0], run(made, feed)[0], atol=1e-6)


def test_a_bias_has_the_product_of_two_scales() -> None:
    _, _, record = lint(u=[1e-30, 0.05, 0.05, 0.05])
    assert not record.notes


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_infinite_scale_is_refused(bad: float) -> None:
    with pytest.raises(PassError, match="tensor 'w' are NaN or infinite"):
        lint(t=[0.5, bad, 0.3, 0.4])


def test_a_bias_near_the_end_of_int32_is_said() -> None:
    _, _, record = lint(b=[2_100_000_000, 0, 0, 0])
    assert record.notes[0].text == "the bias uses 98% of int32"
    assert record.changed == 0
