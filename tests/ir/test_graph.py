"""Acts on a graph: what readers, outputs and names are afterwards."""

from __future__ import annotations

import numpy as np
import onnx_ir as oir
import pytest
from onnx import parser

from qcompile.ir.graph import (
    add_initializer,
    constant,
    drop_unused,
    forget_names,
    fresh_name,
    insert_after_value,
    origin,
    origins,
    replace_value,
    set_origin,
    single_consumer,
)
from qcompile.ir.verify import verify


def model(body: str, inputs: str = "float[3] x", outputs: str = "float[3] y") -> oir.Model:
    text = '<ir_version: 10, opset_import: ["" : 17]>\n'
    return oir.from_proto(parser.parse_model(f"{text}g ({inputs}) => ({outputs}) {body}"))


def value(found: oir.Model, name: str) -> oir.Value:
    values = [*found.graph.inputs, *found.graph.initializers.values()]
    values += [v for n in found.graph.all_nodes() for v in n.outputs]
    return next(v for v in values if v.name == name)


def listing(found: oir.Model) -> list[str]:
    return [
        f"{','.join(str(v.name) for v in n.outputs)} = {n.op_type}"
        f"({','.join(str(v.name) for v in n.inputs if v is not None)})"
        for n in found.graph
    ]


def test_a_fused_node_stands_for_all_its_origins() -> None:
    nodes = list(model("{ a = Relu(x) b = Neg(a) y = Abs(b) }").graph)
    for node, name in zip(nodes, "pqr", strict=True):
        set_origin(node, [name])
    set_origin(nodes[0], [nodes[1], nodes[2], nodes[1]])
    assert origins(nodes[0]) == ("q", "r")
    assert origin(nodes[0]) == "q"
    set_origin(nodes[0], [])
    assert origins(nodes[0]) == ("q", "r")


def test_constants_are_initializers_and_constant_nodes() -> None:
    found = model(
        "<float[3] w = {1,2,3}> { c = Constant<value_float = 2.0>() a = Mul(w, c) y = Add(a, x) }"
    )
    np.testing.assert_array_equal(constant(value(found, "w")), [1, 2, 3])  # type: ignore[arg-type]
    assert constant(value(found, "c")) == 2.0
    assert constant(value(found, "a")) is None
    assert constant(value(found, "x")) is None
    assert constant(None) is None


def test_a_weight_that_callers_may_override_is_no_constant() -> None:
    found = model("<float[3] w = {1,2,3}> { y = Mul(x, w) }")
    found.graph.inputs.append(found.graph.initializers["w"])
    assert constant(value(found, "w")) is None


def test_single_consumer() -> None:
    found = model(
        """{ a = Relu(x) b = Neg(a) c = Add(b, b) d = Abs(c) y = If (k) <
            then_branch = t () => (float[3] u) { u = Neg(d) },
            else_branch = e () => (float[3] v) { v = Abs(c) }> }""",
        "float[3] x, bool k",
    )
    assert single_consumer(value(found, "a")) is found.graph[1]
    assert single_consumer(value(found, "b")) is None  # twice by one node
    assert single_consumer(value(found, "d")) is None  # within a branch
    assert single_consumer(value(found, "y")) is None  # a graph output
    assert single_consumer(value(found, "u")) is None


def test_fresh_names_are_free_in_subgraphs_too_and_taken_at_once() -> None:
    found = model(
        """{ y = If (k) <then_branch = t () => (float[3] u) <float[3] w = {1,2,3}> { u = Mul(x, w) },
                        else_branch = e () => (float[3] v) { v = Abs(x) }> }""",
        "float[3] x, bool k",
    )
    assert [fresh_name(found.graph, n) for n in ("w", "w", "u", "new", "new")] == [
        "w_1",
        "w_2",
        "u_1",
        "new",
        "new_1",
    ]
    forget_names(found.graph)
    assert fresh_name(found.graph, "new") == "new"
    verify(found)
    assert fresh_name(found.graph, "new") == "new"


@pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
def test_initializers_keep_their_rank(shape: tuple[int, ...]) -> None:
    found = model("{ y = Relu(x) }")
    made = add_initializer(found.graph, "x", np.ones(shape, np.float32))
    assert made.name == "x_1"
    assert made.const_value is not None and made.shape is not None
    assert tuple(made.const_value.shape.numpy()) == tuple(made.shape.numpy()) == shape


def test_replacing_a_value_inside() -> None:
    found = model("{ a = Relu(x) b = Neg(a) y = Abs(b) }")
    replace_value(value(found, "b"), value(found, "a"))
    drop_unused(found)
    assert listing(found) == ["a = Relu(x)", "y = Abs(a)"]


def test_an_output_keeps_its_name_type_and_shape() -> None:
    found = model("{ a = Relu(x) y = Identity(a) }")
    declared = found.graph.outputs[0].shape
    value(found, "a").shape = oir.Shape(["other"])
    replace_value(value(found, "y"), value(found, "a"))
    drop_unused(found)
    assert listing(found) == ["y = Relu(x)"]
    assert found.graph.outputs[0].shape == declared
    verify(found)


@pytest.mark.parametrize("source", ["x", "w", "z"])
def test_an_output_does_not_take_the_name_of_what_is_bound(source: str) -> None:
    found = model(
        "<float[3] w = {1,2,3}> { z = Mul(x, w) y = Identity(z) t = Neg(y) }",
        outputs="float[3] y, float[3] z, float[3] t",
    )
    replace_value(value(found, "y"), value(found, source))
    drop_unused(found)
    assert [v.name for v in found.graph.outputs] == ["y", "z", "t"]
    assert [v.name for v in found.graph.inputs] == ["x"]
    assert listing(found) == ["z = Mul(x,w)", f"t = Neg({source})", f"y = Identity({source})"]
    verify(found)


def test_a_branch_output_replaced_by_an_outer_value() -> None:
    found = model(
        """{ a = Relu(x) y = If (k) <then_branch = t () => (float[3] u) { u = Identity(a) },
                                    else_branch = e () => (float[3] v) { v = Abs(x) }> }""",
        "float[3] x, bool k",
    )
    branch = found.graph[1].attributes["then_branch"].as_graph()
    replace_value(branch.outputs[0], value(found, "a"))
    assert branch.outputs[0].name == "u"
    assert value(found, "a").producer() is found.graph[0]
    verify(found)


def test_a_chain_behind_a_value_is_read_by_all_others() -> None:
    found = model("{ a = Relu(x) b = Neg(a) y = Add(a, b) }")
    a = value(found, "a")
    first = oir.node("Abs", [a])
    second = oir.node("Exp", [first.outputs[0]])
    first.outputs[0].name, second.outputs[0].name = "p", "q"
    insert_after_value(found.graph, a, [first, second], second.outputs[0])
    assert listing(found) == [
        "a = Relu(x)",
        "p = Abs(a)",
        "q = Exp(p)",
        "b = Neg(q)",
        "y = Add(q,b)",
    ]


def test_a_chain_behind_a_graph_input_comes_first() -> None:
    found = model("{ a = Relu(x) y = Neg(a) }")
    node = oir.node("Abs", [value(found, "x")])
    node.outputs[0].name = "p"
    insert_after_value(found.graph, value(found, "x"), [node], node.outputs[0])
    assert listing(found) == ["p = Abs(x)", "a = Relu(p)", "y = Neg(a)"]


def test_what_nothing_reads_is_dropped() -> None:
    found = model("<float[3] w = {1,2,3}> { a = Mul(x, w) b = Neg(a) y = Relu(x) }")
    assert drop_unused(found) == 3
    assert listing(found) == ["y = Relu(x)"]
    assert not found.graph.initializers
