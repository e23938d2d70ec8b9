"""Shapes are filled in where they can be, and nothing is frozen or lost where they cannot."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from qcompile.ir.load import load_model


def parse(text: str, imports: str = "") -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17{imports}]>\n{text}')


def shape(model: oir.Model, name: str) -> list[int | str | None] | None:
    value = next(v for n in model.graph.all_nodes() for v in n.outputs if v.name == name)
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def stated(proto: onnx.ModelProto, name: str, dims: list[int | str | None]) -> onnx.ModelProto:
    proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    return proto


def test_symbols_reach_the_inside() -> None:
    text = """g (float[batch,3,8,8] x) => (float[batch,2,6,6] y) <float[2,3,3,3] w = {%s}> {
        a = Conv(x, w) y = Relu(a) }"""
    model = load_model(parse(text % ",".join(["1"] * 54))).model
    assert shape(model, "a") == ["batch", 2, 6, 6]


def test_a_stale_batch_does_not_freeze_a_free_one() -> None:
    text = "g (float[batch,3] x) => (float[batch,3] y) { a = Relu(x) y = Neg(a) }"
    loaded = load_model(stated(parse(text), "a", [1, 3]))
    assert shape(loaded.model, "a") == ["batch", 3]
    assert "1 stated shapes fixed a dimension" in loaded.notes[0].text


def test_declared_outputs_stay_as_declared() -> None:
    text = "g (float[batch,3] x) => (float[1,3] y) { y = Relu(x) }"
    assert shape(load_model(parse(text)).model, "y") == [1, 3]


def test_stated_shapes_behind_an_unknown_operator_are_kept_and_used() -> None:
    text = "g (float[N,3] x) => (float[?,?] y) { a = own.Magic(x) b = Relu(a) y = Neg(b) }"
    loaded = load_model(stated(parse(text, ', "own" : 1'), "a", ["N", 7]))
    assert shape(loaded.model, "a") == ["N", 7]
    assert shape(loaded.model, "b") in (["N", 7], None)


def test_unknown_shapes_are_said() -> None:
    text = "g (float[N,3] x) => (float[?,?] y) { a = own.Magic(x) b = Relu(a) y = Neg(b) }"
    loaded = load_model(parse(text, ', "own" : 1'))
    assert shape(loaded.model, "b") is None
    assert any("2 of 3 shapes are unknown: a, b" in n.text for n in loaded.notes)


def test_contradictory_shapes_do_not_stop_the_load() -> None:
    text = "g (float[2,3] x) => (float[9,9,9] y) { a = Relu(x) y = Neg(a) }"
    model = load_model(stated(parse(text), "a", [5, 5, 5])).model
    assert shape(model, "a") == [2, 3]
    assert shape(model, "y") == [9, 9, 9]


TARGETS = {
    "flatten": (
        "d = Slice(s, zero, one) t = Concat<axis = 0>(d, rest)",
        ["N", 96],
    ),
    "cast": (
        "c = Cast<to = 6>(s) d = Slice(c, zero, one) e = Cast<to = 7>(d) t = "
        "Concat<axis = 0>(e, rest)",
        ["N", 96],
    ),
    "gather": (
        "d = Gather(s, zero) t = Concat<axis = 0>(d, rest)",
        ["N", 96],
    ),
    "scalars": (
        "g0 = Squeeze(zero) e = Gather(s, g0) d = Unsqueeze(e, zero) t = Concat<axis = 0>(d, rest)",
        ["N", 96],
    ),
    "product": (
        "a = Gather(s, one) b = Gather(s, two) p = Mul(a, b) t = Concat<axis = 0>(rest, p)",
        ["N", 12],
    ),
    "zero_copies": (
        "t = Concat<axis = 0>(zero, rest)",
        ["N", 96],
    ),
    "unknown_elements": (
        "t = own.Magic(s)",
        None,
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_that_the_graph_computes(name: str) -> None:
    lines, wanted = TARGETS[name]
    text = f"""g (float[N,3,4,8] x) => (float[?,?] y)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] rest = {{-1}}> {{
        h = Identity(x) s = Shape(h) {lines} r = Reshape(h, t) y = Relu(r) }}"""
    loaded = load_model(parse(text, ', "own" : 1'))
    found = shape(loaded.model, "r")
    if name == "product":
        assert found is not None and found[1] == 12
    else:
        assert found == wanted


def test_a_target_of_known_length_gives_the_rank() -> None:
    text = """g (float[N,3] x, int64[3] t) => (float[?,?,?] y) {
        u = own.Magic(t) r = Reshape(x, u) y = Relu(r) }"""
    proto = parse(text, ', "own" : 1')
    proto.graph.value_info.append(helper.make_tensor_value_info("u", TensorProto.INT64, [3]))
    found = shape(load_model(proto).model, "r")
    assert found is not None and len(found) == 3
    assert not any(isinstance(d, int) for d in found)


def test_shapes_of_subgraphs() -> None:
    text = """g (float[N,3] x, bool c) => (float[N,3] y) { y = If (c) <
        then_branch = t () => (float[N,3] a) { p = Relu(x) a = Neg(p) },
        else_branch = e () => (float[N,3] b) { b = Abs(x) }> }"""
    assert shape(load_model(parse(text)).model, "p") == ["N", 3]


def test_big_constants_do_not_take_part_in_the_copy() -> None:
    proto = parse("g (float[1,100] x) => (float[?,?] y) { a = MatMul(x, w) y = Relu(a) }")
    weight = np.zeros((100, 50), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = load_model(proto).model
    assert shape(model, "a") == [1, 50]
    assert model.graph.initializers["w"].const_value is not None
    assert model.graph.initializers["w"].const_value.nbytes == weight.nbytes
