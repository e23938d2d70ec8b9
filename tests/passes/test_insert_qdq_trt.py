"""Placement where kernels read integers and write what is asked for: TensorRT's explicit form."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper as nh
import pytest

from qcompile.backends.tables_trt import tensorrt_fp16, tensorrt_int8
from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import TargetError
from qcompile.ir.plan import FLOAT, INT8
from qcompile.planner.default import default_plan, without_ends
from tests.passes.qdq_models import (
    Array,
    feed_for,
    insert,
    node_named,
    ops,
    run,
    sqnr_db,
    state_of,
    text_model,
)

SM80 = tensorrt_int8("sm80")
RNG = np.random.default_rng(3)


def _weight(*shape: int) -> Array:
    return (RNG.standard_normal(shape) * 0.2).astype(np.float32)


RESIDUAL = """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (r, w2, bias)
    s = Add (b, r)
    y = Relu (s)
}"""


def _residual() -> onnx.ModelProto:
    return text_model(
        RESIDUAL, 17, w1=_weight(16, 16, 3, 3), w2=_weight(16, 16, 3, 3), bias=_weight(16)
    )


def _reads(model: onnx.ModelProto, name: str) -> list[str]:
    """Operators that compute the inputs of a node."""
    made = {o: n.op_type for n in model.graph.node for o in n.output}
    return [made.get(i, "") for i in node_named(model, name).input]


def test_inputs_are_quantized_and_outputs_and_biases_are_not() -> None:
    proto = _residual()
    state = state_of(proto, SM80)
    state.plan = default_plan(state)
    result = insert(state)
    assert _reads(result, "n_a") == ["DequantizeLinear", "DequantizeLinear"]
    assert _reads(result, "n_b") == ["DequantizeLinear", "DequantizeLinear", ""]
    # The Conv's own result goes into the Add as it is, the residual through the pair of its tensor.
    assert _reads(result, "n_s") == ["Conv", "DequantizeLinear"]
    assert ops(result).count("Q") == 4  # x, r and two weights
    feed = feed_for(proto)
    assert sqnr_db(run(proto, feed)[0], run(result, feed)[0]) > 30


def test_scales_are_symmetric_and_weights_stand_on_their_grid() -> None:
    state = state_of(_residual(), SM80)
    state.plan = default_plan(state)
    result = insert(state)
    held = {i.name: i for i in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = nh.to_array(held[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()
    weight_q = next(n for n in result.graph.node if n.output[0].startswith("w1_quantized"))
    values = nh.to_array(held[weight_q.input[0]])
    scale = nh.to_array(held[weight_q.input[1]]).reshape(-1, 1, 1, 1)
    steps = values / scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert scale.shape == (16, 1, 1, 1)


def test_an_add_without_a_conv_beside_it_stays_float() -> None:
    proto = text_model(
        """g (float[1, 16, 32] x) => (float[1, 16, 32] y) {
            m = MatMul (x, w)
            y = Add (m, x)
        }""",
        w=_weight(32, 32),
    )
    state = state_of(proto, SM80)
    plan = default_plan(state).by_origin()
    assert plan["n_m"].precision == INT8
    assert plan["n_y"].precision == FLOAT
    assert plan["n_y"].reason == "no Conv whose kernel it could join"


def test_the_residual_follows_its_conv() -> None:
    state = state_of(_residual(), SM80)
    choices = default_plan(state).pin({"n_b": FLOAT})
    state.plan = choices
    result = insert(state)
    assert _reads(result, "n_b") == ["Relu", "", ""]
    narrow = text_model(
        RESIDUAL.replace("16, 8, 8", "4, 8, 8"),
        w1=_weight(4, 4, 3, 3),
        w2=_weight(4, 4, 3, 3),
        bias=_weight(4),
    )
    plan = default_plan(state_of(narrow, SM80)).by_origin()
    assert plan["n_s"].precision == FLOAT
    assert plan["n_s"].reason == "the layer that it would join is float"
    assert "too few" in plan["n_b"].reason


@pytest.mark.parametrize(
    ("weight", "group", "able"),
    [
        ((32, 16, 3, 3), 1, True),
        ((16, 3, 3, 3), 1, True),  # the first layer
        ((4, 3, 3, 3), 1, False),
        ((16, 1, 3, 3), 16, True),  # depthwise
        ((16, 1, 1, 1), 16, False),
    ],
)
def test_narrow_convs_stay_float(weight: tuple[int, ...], group: int, able: bool) -> None:
    channels = weight[1] * group
    proto = text_model(
        f"""g (float[1, {channels}, 8, 8] x) => (float[1, {weight[0]}, h, w] y) {{
            y = Conv <group = {group}> (x, k)
        }}""",
        k=_weight(*weight),
    )
    (layer,) = default_plan(state_of(proto, SM80)).layers
    assert (layer.precision == INT8) is able, layer.reason


@pytest.mark.parametrize(
    ("left", "right", "why"),
    [
        ((2, 8, 64), (64, 1), "vector"),
        ((2, 8, 64), (64, 10), "dimension of 10"),
        ((2, 1, 64), (64, 64), ""),  # how few rows that is shows in the samples
        ((2, 8, 64), (64, 64), ""),
    ],
)
def test_products_with_vectors_and_narrow_ones_stay_float(
    left: tuple[int, ...], right: tuple[int, ...], why: str
) -> None:
    shape = ", ".join(map(str, left))
    proto = text_model(
        f"g (float[{shape}] x) => (float[a, b, c] y) {{ y = MatMul (x, w) }}", w=_weight(*right)
    )
    (layer,) = default_plan(state_of(proto, SM80)).layers
    assert (layer.precision == INT8) is (why == ""), layer.reason
    assert why in layer.reason


def test_both_inputs_of_attention_are_quantized() -> None:
    proto = text_model(
        """g (float[1, 2, 32, 16] q, float[1, 2, 16, 32] k, float[1, 2, 32, 16] v)
            => (float[1, 2, 32, 16] y) {
            s = MatMul (q, k)
            p = Softmax <axis = -1> (s)
            y = MatMul (p, v)
        }"""
    )
    state = state_of(proto, SM80)
    state.plan = default_plan(state)
    result = insert(state)
    assert _reads(result, "n_s") == ["DequantizeLinear", "DequantizeLinear"]
    assert _reads(result, "n_y") == ["DequantizeLinear", "DequantizeLinear"]


def test_a_gpu_without_int8_kernels_is_refused_in_one_line() -> None:
    with pytest.raises(TargetError, match=r"no INT8 kernels for sm75.*tensorrt-fp16"):
        tensorrt_int8("sm75")
    assert tensorrt_fp16("sm75").features == ("sm75",)


def test_devices_have_aliases_and_unknown_ones_name_the_nearest() -> None:
    assert tensorrt_int8("jetson-orin").features == ("sm87",)
    assert "name yours with --device" in tensorrt_int8(None).notes[0] or tensorrt_int8(None).device
    with pytest.raises(TargetError, match="device 'sm88' is unknown to TensorRT"):
        tensorrt_int8("sm88")


def test_a_second_run_changes_nothing() -> None:
    state = state_of(_residual(), SM80)
    state.plan = default_plan(state)
    once = insert(state)
    again = state_of(once, SM80, calibrate=False)
    again.plan = default_plan(again)
    assert {layer.precision for layer in again.plan.layers} == {FLOAT}


JOINED = """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    s = Sigmoid (a)
    m = Mul (a, s)
    p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (m)
    c = Concat <axis = 1> (m, p)
    y = Conv <pads = [1, 1, 1, 1]> (c, w2)
}"""


def _joined() -> onnx.ModelProto:
    return text_model(JOINED, 17, w1=_weight(16, 16, 3, 3), w2=_weight(16, 32, 3, 3))


def _scale_of(model: onnx.ModelProto, tensor: str) -> float:
    """Scale of the Q that reads a tensor."""
    held = {t.name: nh.to_array(t) for t in model.graph.initializer}
    readers = [
        n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor
    ]
    assert len(readers) == 1, f"{tensor} has {len(readers)} quantizations"
    return float(held[readers[0].input[1]])


def test_what_a_concat_joins_has_one_scale_and_is_quantized_once() -> None:
    state = state_of(_joined(), SM80)
    state.plan = default_plan(state)
    result = insert(state)
    assert _reads(result, "n_c") == ["DequantizeLinear", "DequantizeLinear"]
    assert _reads(result, "n_p") == ["DequantizeLinear"]
    assert _scale_of(result, "m") == _scale_of(result, "p") == _scale_of(result, "c")


def test_ranges_far_apart_are_not_joined() -> None:
    state = state_of(_joined(), SM80)
    state.ranges["p"] = TensorRange(np.array(-300.0), np.array(300.0), "minmax")
    state.plan = default_plan(state)
    assert state.plan.precision("n_c") == FLOAT
    assert (
        "300" in state.plan.by_origin()["n_c"].reason
        or "'p'" in state.plan.by_origin()["n_c"].reason
    )


def test_without_its_reader_a_concat_has_no_purpose() -> None:
    state = state_of(_joined(), SM80)
    plan = default_plan(state)
    left = without_ends(plan.with_choice(["n_y"], FLOAT, "for the test"), state)
    assert {c.origin for c in left.layers if c.precision == INT8} == {"n_a"}
    assert without_ends(plan, state) == plan


@pytest.mark.parametrize(
    "pool", ["AveragePool <kernel_shape = [2, 2], strides = [2, 2]>", "GlobalAveragePool"]
)
def test_an_average_has_q_and_dq_on_both_sides(pool: str) -> None:
    proto = text_model(
        f"""g (float[1, 16, 8, 8] x) => (float[1, 16, h, w] y) {{
            a = Conv (x, w1)
            r = Relu (a)
            p = {pool} (r)
            y = Conv (p, w2)
        }}""",
        17,
        w1=_weight(16, 16, 1, 1),
        w2=_weight(16, 16, 1, 1),
    )
    state = state_of(proto, SM80)
    state.plan = default_plan(state)
    result = insert(state)
    assert _reads(result, "n_p") == ["DequantizeLinear"]
    assert _reads(result, "n_y")[0] == "DequantizeLinear"
    assert _scale_of(result, "p") < _scale_of(result, "r"), "an average has a scale of its own"


def test_an_average_stays_float_where_what_it_reads_is_read_in_float_as_well() -> None:
    proto = text_model(
        """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
            a = Conv (x, w1)
            r = Relu (a)
            p = GlobalAveragePool (r)
            e = Conv (p, w2)
            y = Mul (r, e)
        }""",
        17,
        w1=_weight(16, 16, 1, 1),
        w2=_weight(16, 16, 1, 1),
    )
    (pool,) = (c for c in default_plan(state_of(proto, SM80)).layers if c.origin == "n_p")
    assert pool.precision == FLOAT
    assert "'r' is read in float as well" in pool.reason
