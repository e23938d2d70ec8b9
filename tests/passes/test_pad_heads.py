"""pad-heads: attention of 8 bits whose heads no kernel has is padded, and computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.plan import FLOAT
from qcompile.passes.pad_heads import PadHeads
from qcompile.passes.quantizable import classify
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import feed_for, insert, node_named, run, state_of, text_model
from tests.passes.test_insert_qdq_trt import SM80


def _attention(channels: int, values: int | None = None, last: str = "Relu") -> onnx.ModelProto:
    wide = channels if values is None else values
    return text_model(
        f"""g (float[2, 20, {channels}] q, float[2, {channels}, 20] k, float[2, 20, {wide}] v)
            => (float[2, 20, {wide}] y) {{
            s = MatMul (q, k)
            p = Softmax (s)
            o = MatMul (p, v)
            y = {last} (o)
        }}"""
    )


def _state(proto: onnx.ModelProto) -> CompileState:
    state = state_of(proto, SM80)
    state.plan = default_plan(state)
    return state


@pytest.mark.parametrize(
    ("channels", "values", "padded"),
    [(15, 15, (16, 16)), (24, 32, (32, 32)), (32, 20, (32, 32)), (33, 64, (64, 64))],
)
def test_heads_are_padded_to_what_a_kernel_has(
    channels: int, values: int, padded: tuple[int, int]
) -> None:
    proto = _attention(channels, values)
    state = _state(proto)
    before = insert(state)
    manager = PassManager([PadHeads()])
    manager.run(state)
    assert manager.records[0].changed == 1
    after = oir.to_proto(state.model)
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_array_equal(run(after, feed_for(proto))[0], run(before, feed_for(proto))[0])
    found = {n.name: n for n in state.model.graph}
    for product, index, width in (("n_s", 0, padded[0]), ("n_o", 1, padded[1])):
        value = found[product].inputs[index]
        assert value is not None
        assert value.shape is not None
        assert value.shape[-1] == width
    assert PadHeads().run(state).changed == 0
    result = node_named(after, "n_y").input[0]
    assert ("Slice" in result) == (values != padded[1])


def test_heads_that_fit_are_left_alone() -> None:
    state = _state(_attention(32))
    insert(state)
    assert PadHeads().run(state).changed == 0


@pytest.mark.parametrize("channels", [8, 65, 80, 128])
def test_heads_that_are_far_from_any_stay_float(channels: int) -> None:
    reasons = {s.origin: s.reason for s in classify(_state(_attention(channels)))}
    for product in ("n_s", "n_o"):
        assert f"{channels} channels a head" in reasons[product] or "small" in reasons[product]


def test_they_are_8_bits_where_layers_are_preferred() -> None:
    state = state_of(_attention(80), SM80.preferring("layers"))
    assert [s.reason for s in classify(state) if s.op_type == "MatMul"] == ["", ""]


def test_attention_in_float_and_results_of_the_model_are_left_alone() -> None:
    state = _state(_attention(15))
    assert PadHeads().run(state).changed == 0  # no Q and DQ yet
    assert state.plan is not None
    state.plan = state.plan.with_choice(["n_s", "n_o"], FLOAT, "for the test")
    insert(state)
    assert PadHeads().run(state).changed == 0
    proto = text_model(
        """g (float[2, 20, 15] q, float[2, 15, 20] k, float[2, 20, 15] v) => (float[2, 20, 15] y) {
            s = MatMul (q, k)
            p = Softmax (s)
            y = MatMul (p, v)
        }"""
    )
    state = _state(proto)
    insert(state)
    assert PadHeads().run(state).changed == 0
