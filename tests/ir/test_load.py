"""What loading makes of the models that people export."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from qcompile.ir.errors import ModelError
from qcompile.ir.graph import constant, origin
from qcompile.ir.load import load_model
from qcompile.ir.save import model_bytes
from tests.ir.loading import X, ops, parse, run, same, texts

CHAIN = """g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> {
    a = Mul(x, w)
    [named] b = Relu(a)
    y = Neg(b)
}"""


def test_every_source_gives_the_same_model(tmp_path: Path) -> None:
    proto = parse(CHAIN)
    data = proto.SerializeToString(deterministic=True)
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    sources = [str(path), path, data, proto, load_model(data).model]
    loaded = [load_model(s) for s in sources]
    assert len({model_bytes(one.model) for one in loaded}) == 1
    assert {one.sha256 for one in loaded[:4]} == {hashlib.sha256(data).hexdigest()}
    assert [one.source for one in loaded] == [path, path, None, None, None]


def test_the_callers_objects_stay_as_they_are() -> None:
    proto = parse(CHAIN)
    before = proto.SerializeToString(deterministic=True)
    load_model(proto)
    assert proto.SerializeToString(deterministic=True) == before
    model = oir.from_proto(proto)
    load_model(model)
    assert [n.name for n in model.graph] == ["", "named", ""]


def test_origins_are_names_or_what_a_node_writes() -> None:
    model = load_model(parse(CHAIN)).model
    assert [origin(n) for n in model.graph] == ["Mul:a", "named", "Neg:y"]
    assert [n.name for n in model.graph] == ["Mul:a", "named", "Neg:y"]


def test_duplicate_node_names_are_told_apart() -> None:
    proto = parse("g (float[3] x) => (float[3] y) { [n] a = Relu(x) [n] b = Neg(a) y = Abs(b) }")
    proto.graph.node[2].name = "Neg:b"
    loaded = load_model(proto)
    assert [n.name for n in loaded.model.graph] == ["Relu:a", "Neg:b", "Neg:b#2"]
    assert "2 nodes shared a name" in texts(loaded)


def test_loading_again_changes_no_origin() -> None:
    once = load_model(parse(CHAIN)).model
    again = load_model(model_bytes(once)).model
    assert model_bytes(again) == model_bytes(once)


BRANCHES = """g (float[1,3] x, bool c) => (float[1,3] y) <float[3] w = {1, 2, 3}> {
    [if] y = If (c) <
        then_branch = t () => (float[1,3] a) { [n] a = Mul(x, w) },
        else_branch = e () => (float[1,3] a) { [n] r = Relu(x) a = Neg(r) }
    >
}"""


def test_subgraphs_have_origins_under_their_parent() -> None:
    loaded = load_model(parse(BRANCHES))
    assert [origin(n) for n in loaded.model.graph.all_nodes()] == [
        "if",
        "if/then_branch/n",
        "if/else_branch/n",
        "if/else_branch/Neg:a",
    ]
    assert "subgraphs stay in float: 1 If" in texts(loaded)


def test_an_outer_weight_used_only_in_a_branch_stays_outside() -> None:
    proto = parse(BRANCHES)
    model = load_model(proto).model
    assert list(model.graph.initializers) == ["w"]
    for c in (True, False):
        same(proto, model, {"x": X, "c": np.array(c)})


def test_unsorted_nodes_are_sorted() -> None:
    proto = parse(CHAIN)
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    loaded = load_model(proto)
    assert ops(loaded.model) == ["Mul", "Relu", "Neg"]
    assert "topological order" in texts(loaded)
    same(parse(CHAIN), loaded.model, {"x": X})


def test_a_branch_that_reads_a_later_node_is_sorted_too() -> None:
    proto = parse("""g (float[1,3] x, bool c) => (float[1,3] y) {
        y = If (c) <then_branch = t () => (float[1,3] a) { a = Neg(late) },
                    else_branch = e () => (float[1,3] b) { b = Abs(x) }>
        late = Relu(x)
    }""")
    model = load_model(proto).model
    assert ops(model) == ["Relu", "If"]
    np.testing.assert_array_equal(run(model, {"x": X, "c": np.array(True)})[0], -np.maximum(X, 0))


def test_names_of_subgraphs_that_hide_outer_ones_are_changed() -> None:
    proto = parse(BRANCHES.replace("[if] y", "r = Exp(x) [if] y"))
    loaded = load_model(proto)
    assert "had the name of an outer one" in texts(loaded)
    same(parse(BRANCHES), loaded.model, {"x": X, "c": np.array(False)})


FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[1,3] x) => (float[1,3] y) {
    [first] a = own.outer(x)
    b = own.outer(a)
    y = own.inner<alpha = 0.5>(b)
}
<domain: "own", opset_import: ["" : 17, "own" : 1]>
outer (u) => (v) {
    [call] t = own.inner<alpha = 0.25>(u)
    v = Neg(t)
}
<domain: "own", opset_import: ["" : 17]>
inner <alpha> (p) => (q) {
    [act] r = LeakyRelu<alpha: float = @alpha>(p)
    q = Abs(r)
}
<domain: "own", opset_import: ["" : 17]>
unused (p) => (q) { q = Cos(p) }
"""


def test_functions_are_inlined_and_their_nodes_named_by_the_call() -> None:
    proto = parser.parse_model(FUNCTIONS)
    loaded = load_model(proto)
    model = loaded.model
    assert not model.functions
    assert [origin(n) for n in model.graph] == [
        "first/call/act",
        "first/call/Abs:q",
        "first/Neg:v",
        "outer:b/call/act",
        "outer:b/call/Abs:q",
        "outer:b/Neg:v",
        "inner:y/act",
        "inner:y/Abs:q",
    ]
    assert "2 model-local functions inlined" in texts(loaded)
    same(proto, model, {"x": X})


def test_functions_of_an_older_opset_are_raised_to_the_models() -> None:
    text = FUNCTIONS.replace("inner <alpha> (p)", "inner <alpha> (z)").replace(
        "[act] r = LeakyRelu<alpha: float = @alpha>(p)",
        "p = Squeeze<axes = [0]>(z) [act] r = LeakyRelu<alpha: float = @alpha>(p)",
    )
    text = text.replace('opset_import: ["" : 17]>\ninner', 'opset_import: ["" : 11]>\ninner')
    text = text.replace("q = Abs(r)", "w = Abs(r) q = Unsqueeze<axes = [0]>(w)")
    model = load_model(parser.parse_model(text)).model
    assert model.opset_imports[""] == 17
    same(parser.parse_model(FUNCTIONS), model, {"x": X})


def test_functions_that_call_one_another_in_a_circle_are_refused() -> None:
    text = FUNCTIONS.replace("q = Abs(r)", "q = own.outer(r)").replace(
        'opset_import: ["" : 17]>\ninner', 'opset_import: ["" : 17, "own" : 1]>\ninner'
    )
    with pytest.raises(ModelError, match="in a circle"):
        load_model(parser.parse_model(text))


def sparse_model(linear: bool) -> onnx.ModelProto:
    proto = parse("g (float[1,3] x) => (float[1,2] y) { y = MatMul(x, w) }")
    values = numpy_helper.from_array(np.array([5.0, 7.0], np.float32), "w")
    where = [1, 4] if linear else [[0, 1], [2, 0]]
    indices = numpy_helper.from_array(np.array(where, np.int64), "w_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 2]))
    return proto


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers_become_dense(linear: bool) -> None:
    loaded = load_model(sparse_model(linear))
    weight = constant(loaded.model.graph.initializers["w"])
    assert weight is not None
    np.testing.assert_array_equal(weight, [[0, 5], [0, 0], [7, 0]])
    assert "sparse initializer written out" in texts(loaded)
    np.testing.assert_array_equal(run(loaded.model, {"x": X})[0], [[21, 5]])


def test_sparse_constants_become_dense() -> None:
    sparse = sparse_model(True)
    node = helper.make_node("Constant", [], ["w"], sparse_value=sparse.graph.sparse_initializer[0])
    del sparse.graph.sparse_initializer[:]
    sparse.graph.node.insert(0, node)
    model = load_model(sparse).model
    np.testing.assert_array_equal(run(model, {"x": X})[0], [[21, 5]])


def test_sparse_indices_outside_are_refused() -> None:
    proto = sparse_model(True)
    bad = numpy_helper.from_array(np.array([1, 6], np.int64), "w_indices")
    proto.graph.sparse_initializer[0].indices.CopyFrom(bad)
    with pytest.raises(ModelError, match="sparse tensor 'w': its indices do not fit"):
        load_model(proto)


def test_scales_of_quantized_models_are_said() -> None:
    text = """g (float[4] x) => (float[4] y) <float s = {0.5}, uint8 z = {3}> {
        q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    loaded = load_model(parse(text))
    assert ops(loaded.model) == ["QuantizeLinear", "DequantizeLinear"]
    assert "brings its own scales" in texts(loaded)


def test_custom_operators_are_left_alone_and_said() -> None:
    text = "g (float[4] x) => (float[4] y) { a = own.Magic(x) y = Relu(a) }"
    loaded = load_model(parse(text, imports=', "own" : 3'))
    assert ops(loaded.model) == ["Magic", "Relu"]
    assert loaded.model.opset_imports["own"] == 3
    assert "custom operators are left alone: 1 own.Magic" in texts(loaded)


def test_the_long_name_of_the_onnx_domain_is_the_short_one() -> None:
    proto = parse(CHAIN)
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    model = load_model(proto).model
    assert model.opset_imports == {"": 17}
    assert {n.domain for n in model.graph} == {""}


def test_sequences_and_optionals_are_tolerated() -> None:
    text = """g (float[2,3] x) => (float[2,3] y) {
        s = SequenceConstruct(x, x)
        o = Optional(s)
        t = OptionalGetElement(o)
        i = Constant<value_int = 1>()
        y = SequenceAt(t, i)
    }"""
    proto = parse(text)
    model = load_model(proto).model
    assert isinstance(model.graph[0].outputs[0].type, oir.SequenceType)
    same(proto, model, {"x": np.ones((2, 3), np.float32)})


def test_inputs_left_out_stay_left_out() -> None:
    text = """g (float[1,1,2,2] x) => (float[a,b,c,d] y) <float[4] s = {1, 1, 2, 2}> {
        y = Resize<mode = "nearest">(x, , s) }"""
    model = load_model(parse(text)).model
    assert model.graph[0].inputs[1] is None
    same(parse(text), model, {"x": np.ones((1, 1, 2, 2), np.float32)})


def test_half_precision_is_kept() -> None:
    text = "g (float16[N,3] x) => (float16[N,3] y) <float16[3] w = {1, 2, 3}> { y = Mul(x, w) }"
    model = load_model(parse(text)).model
    assert model.graph.initializers["w"].dtype == oir.DataType.FLOAT16


def test_a_shared_weight_stays_one() -> None:
    text = """g (float[1,3] x) => (float[1,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}> {
        a = MatMul(x, w) y = MatMul(a, w) }"""
    model = load_model(parse(text)).model
    assert len(model.graph.initializers["w"].uses()) == 2


def test_big_weights_are_views_of_the_file(tmp_path: Path) -> None:
    weight = np.arange(100 * 400, dtype=np.float32).reshape(100, 400)
    proto = parse("g (float[1,100] x) => (float[1,400] y) { c = Identity(w) y = MatMul(x, c) }")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    path = tmp_path / "big.onnx"
    onnx.save(proto, path)
    array = constant(load_model(path).model.graph.initializers["w"])
    assert array is not None and not array.flags.owndata and not array.flags.writeable
    np.testing.assert_array_equal(array, weight)


@pytest.mark.parametrize("count", [2, 20_000])
def test_weights_in_typed_fields(count: int) -> None:
    values = np.arange(count, dtype=np.float32)
    proto = parse(
        f"g (float[{count}] x) => (float[{count}] y, int64[3] z) {{ y = Mul(x, w) z = Neg(i) }}"
    )
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [count], values))
    proto.graph.initializer.append(helper.make_tensor("i", TensorProto.INT64, [3], [1, 2, -3]))
    model = load_model(proto).model
    np.testing.assert_array_equal(constant(model.graph.initializers["w"]), values)
    np.testing.assert_array_equal(constant(model.graph.initializers["i"]), [1, 2, -3])


def test_opset_and_ir_come_down_to_the_runtime() -> None:
    loaded = load_model(parse(CHAIN, 21, 10), runtime_opset_limit=17, runtime_ir_limit=8)
    assert (loaded.model.opset_imports[""], loaded.model.ir_version) == (17, 8)
    assert "opset lowered from 21" in texts(loaded) and "IR version lowered" in texts(loaded)


def test_an_operator_newer_than_the_runtime_is_refused() -> None:
    text = "g (float[1,3] x) => (float[1,3] y) { y = Gelu(x) }"
    with pytest.raises(ModelError, match=r"opset 21, the runtime opens 17, and Gelu changed"):
        load_model(parse(text, 21), runtime_opset_limit=17)


def test_a_type_newer_than_the_runtime_is_refused() -> None:
    proto = parse("g () => (int4[2] y) { y = Identity(w) }", 21, 10)
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, [2], [1, -2]))
    with pytest.raises(ModelError, match="IR version 10, the runtime opens 8"):
        load_model(proto, runtime_ir_limit=8)


def test_infinite_masks_and_limits_are_legitimate() -> None:
    proto = parse("g (float[N,3] x) => (float[N,3] y) { a = Add(x, mask) y = Softmax(a) }")
    mask = np.array([0, -np.inf, 0], np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    same(proto, load_model(proto).model, {"x": X})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    weight = np.ones((3, 3), np.float32)
    weight[1, 1] = bad
    proto = parse("g (float[1,3] x) => (float[1,3] y) { [fc] y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    with pytest.raises(ModelError, match=r"tensor 'w' of node 'fc' \(MatMul\) holds 1 (NaN|Inf)"):
        load_model(proto)
