"""Each rule: the upgraded model gives what the original gives, and has the new operator's form."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest
from onnx import parser

from qcompile.ir.errors import ModelError
from qcompile.ir.load import load_model
from qcompile.ir.save import model_bytes
from qcompile.ir.upgrade import upgrade_opset
from qcompile.ir.verify import verify
from tests.ir.upgrade_models import BLOCKED, INPUTS, RULES, Array, floats, parse


def run(model: bytes, feed: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def check(text: str, opset: int, to: int, x: Array | None = None) -> oir.Model:
    """Upgrade, compare with the original in ONNX Runtime, check that again changes nothing."""
    original = parse(text, opset)
    model, notes = upgrade_opset(load_model(original).model, to)
    assert model.opset_imports[""] == to, [n.text for n in notes]
    verify(model)
    onnx.checker.check_model(onnx.load_from_string(model_bytes(model)))
    feed = {"x": floats(2, 3, 4, 4) if x is None else x}
    for a, b in zip(run(original, feed), run(model_bytes(model), feed), strict=True):
        np.testing.assert_array_equal(a, b)
    before = model_bytes(model)
    assert upgrade_opset(model, to)[1] == []
    assert model_bytes(model) == before
    return model


def ops(model: oir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


@pytest.mark.parametrize("name", RULES)
def test_rule_keeps_the_result(name: str) -> None:
    opset, to, text = RULES[name]
    check(text, opset, to, INPUTS[name]() if name in INPUTS else None)


def test_softmax_over_several_axes_flattens() -> None:
    model = check(RULES["softmax_axis2"][2], 11, 13)
    assert ops(model) == ["Shape", "Flatten", "Softmax", "Reshape"]
    assert model.graph[2].attributes["axis"].as_int() == -1


def test_softmax_with_one_wide_axis_only_changes_the_attribute() -> None:
    text = "g (float[N,10,1,1] x) => (float[N,10,1,1] y) { y = Softmax(x) }"
    model = check(text, 11, 13, floats(3, 10, 1, 1))
    assert ops(model) == ["Softmax"]
    assert model.graph[0].attributes["axis"].as_int() == 1


def test_softmax_of_unknown_rank_is_rewritten_without_it() -> None:
    text = "g (float x_0, float[2,3,4] x) => (float y) { a = Foo(x) y = Softmax<axis=1>(a) }"
    proto = parser.parse_model(f'<ir_version: 7, opset_import: ["" : 12, "own" : 1]>\n{text}')
    proto.graph.node[0].domain = "own"
    model, _ = upgrade_opset(load_model(proto).model, 13)
    assert ops(model) == ["Foo", "Shape", "Flatten", "Softmax", "Reshape"]


def test_half_precision_limits_keep_their_type() -> None:
    text = "g (float16[4] x) => (float16[4] y) { y = Clip<min=-0.5,max=0.5>(x) }"
    model = check(text, 10, 13, floats(4).astype(np.float16))
    assert {v.dtype for v in model.graph.initializers.values()} == {oir.DataType.FLOAT16}


def test_subgraphs_take_part() -> None:
    text = """g (float[1,3] x, bool c) => (float[A] y) {
        y = If (c) <
            then_branch = t () => (float[A] a) { a = Squeeze<axes=[0]>(x) },
            else_branch = e () => (float[A] b) { n = Neg(x) b = Squeeze<axes=[0]>(n) }
        >
    }"""
    original = parse(text, 11)
    model, _ = upgrade_opset(load_model(original).model, 13)
    assert not model.graph.initializers
    for condition in (True, False):
        feed = {"x": floats(1, 3), "c": np.array(condition)}
        np.testing.assert_array_equal(run(original, feed)[0], run(model_bytes(model), feed)[0])


def test_origins_survive_a_rewrite() -> None:
    text = "g (float[2,3,4] x) => (float[2,3,4] y) { [head] y = Softmax<axis=1>(x) }"
    model, _ = upgrade_opset(load_model(parse(text, 11)).model, 13)
    assert {n.metadata_props["qcompile.origin"] for n in model.graph} == {"head"}
    assert [n.name for n in model.graph if n.op_type == "Softmax"] == ["head"]


@pytest.mark.parametrize("name", BLOCKED)
def test_what_cannot_be_written_anew_stops_the_upgrade(name: str) -> None:
    opset, reached, text, to = BLOCKED[name]
    model, notes = upgrade_opset(load_model(parse(text, opset)).model, to)
    assert model.opset_imports[""] == reached
    node = model.graph[0]
    assert f"opset stays at {reached}" in notes[-1].text
    assert notes[-1].where == node.name
    assert node.op_type in notes[-1].text
    assert not notes[-1].changed


def test_group_norm_gets_one_scale_for_each_channel() -> None:
    text = """g (float[2,4,3] x) => (float[2,4,3] y) <float[2] s={1,2}, float[2] b={3,4}> {
        y = GroupNormalization<num_groups=2>(x, s, b) }"""
    model, _ = upgrade_opset(load_model(parse(text, 18)).model, 21)
    arrays = [v.const_value.numpy().tolist() for v in model.graph[0].inputs[1:] if v.const_value]
    assert arrays == [[1, 1, 2, 2], [3, 3, 4, 4]]


def test_custom_operators_do_not_block() -> None:
    text = "g (float[2] x) => (float[2] y) { a = own.Softmax(x) y = Relu(a) }"
    proto = parser.parse_model(f'<ir_version: 7, opset_import: ["" : 9, "own" : 1]>\n{text}')
    model, _ = upgrade_opset(load_model(proto).model, 21)
    assert model.opset_imports == {"": 21, "own": 1}
    assert model.graph[0].attributes == {}


def test_a_name_that_becomes_an_operator_blocks() -> None:
    # ONNX Runtime has had "Gelu" of its own; ONNX's Gelu of opset 20 need not mean the same
    text = "g (float[2] x) => (float[2] y) { y = Gelu(x) }"
    model, notes = upgrade_opset(load_model(parse(text, 17)).model, 21)
    assert model.opset_imports[""] == 19
    assert "Gelu" in notes[-1].text


def test_an_older_target_changes_nothing() -> None:
    model, notes = upgrade_opset(load_model(parse(RULES["reducemean"][2], 13)).model, 11)
    assert (model.opset_imports[""], notes) == (13, [])


def test_opset_zero_does_not_exist() -> None:
    model = load_model(parse(RULES["reducemean"][2], 13)).model
    with pytest.raises(ModelError, match="opset 0"):
        upgrade_opset(model, 0)


def test_beyond_the_known_opsets_stops_at_the_last_known() -> None:
    model, notes = upgrade_opset(load_model(parse(RULES["reducemean"][2], 13)).model, 40)
    assert model.opset_imports[""] == 26
    assert "not known yet" in notes[-1].text
