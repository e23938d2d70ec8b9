"""Patterns: terms match expressions, refusals carry reasons, replacements keep names and origins."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as oir
import pytest

from qcompile.ir.graph import origins, set_origin
from qcompile.ir.manager import CompileState
from qcompile.ir.pattern import (
    Match,
    Rule,
    absorb,
    alt,
    apply_rules,
    const,
    escape,
    match,
    op,
    replace,
    var,
)
from qcompile.ir.spec import QuantSpec
from qcompile.ir.target import Target
from qcompile.ir.verify import verify

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
TARGET = Target(
    "test",
    "none",
    "none",
    QuantSpec("uint8", symmetric=False),
    QuantSpec("int8", symmetric=True),
    {},
)


def load(text: str) -> oir.Model:
    model = oir.from_proto(onnx.parser.parse_model(HEADER + text))
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
        set_origin(node, [node.name])
    return model


def last(model: oir.Model) -> oir.Node:
    return list(model.graph)[-1]


SWISH = """g (float[N, 4] x) => (float[N, 4] y) <float three = {3.0}, float low = {0.0}, float high = {6.0}> {
    a = Add(three, x)
    c = Clip(a, low, high)
    m = Mul(c, x)
    y = Div(m, high)
}"""
X = var("x")
GATE = op("Clip", op("Add", X, const(3.0)), const(0.0), const(6.0, "high"))
PATTERN = op("Div", op("Mul", X, GATE, name="product"), const(6.0))


def test_commutative_inputs_match_in_both_orders() -> None:
    found = match(PATTERN, last(load(SWISH)))
    assert found is not None
    assert [n.op_type for n in found.nodes] == ["Div", "Mul", "Clip", "Add"]
    assert found.values["x"].name == "x"
    assert found.named["product"].op_type == "Mul"
    assert found.array("high") == 6.0


def test_a_variable_binds_one_tensor() -> None:
    text = SWISH.replace("m = Mul(c, x)", "z = Relu(x)\n    m = Mul(c, z)")
    assert match(PATTERN, last(load(text))) is None


def test_a_constant_must_have_its_value_everywhere() -> None:
    text = SWISH.replace("float three = {3.0}", "float[4] three = {3.0, 3.0, 3.0, 2.9}")
    assert match(PATTERN, last(load(text))) is None
    text = SWISH.replace("float three = {3.0}", "float[4] three = {3.0, 3.0, 3.0, 3.0}")
    assert match(PATTERN, last(load(text))) is not None


def test_an_overridable_initializer_is_no_constant() -> None:
    text = SWISH.replace("(float[N, 4] x)", "(float[N, 4] x, float three)")
    assert match(PATTERN, last(load(text))) is None


def test_missing_trailing_inputs_and_attributes() -> None:
    model = load("g (float[4] x) => (float[4] y) { y = Elu<alpha = 0.5>(x) }")
    assert match(op("Elu", X, alpha=0.5), last(model)) is not None
    assert match(op("Elu", X, alpha=0.25), last(model)) is None
    assert match(op("Elu", X, const()), last(model)) is None
    assert match(op("Relu|Elu", X), last(model)) is not None


def test_alternatives_backtrack() -> None:
    model = load("g (float[4] x) => (float[4] y) { a = Neg(x)\n b = Abs(a)\n y = Mul(a, b) }")
    pattern = op(
        "Mul", alt(op("Abs", var("a")), var("a")), alt(op("Exp", var("a")), op("Abs", var("a")))
    )
    found = match(pattern, last(model))
    assert found is not None
    assert found.values["a"].name == "a"


def test_a_shared_subterm_counts_once() -> None:
    model = load("g (float[4] x) => (float[4] y) { a = Neg(x)\n y = Mul(a, a) }")
    found = match(op("Mul", op("Neg", X), op("Neg", X)), last(model))
    assert found is not None
    assert len(found.nodes) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SWISH, None),
        (
            SWISH.replace("=> (float[N, 4] y)", "=> (float[N, 4] y, float[N, 4] c)"),
            "output of the model",
        ),
        (SWISH.replace("    y = Div", "    y2 = Neg(c)\n    y = Div"), "also read by 'Neg_3'"),
    ],
)
def test_inner_tensors_read_elsewhere_forbid_a_rewrite(text: str, reason: str | None) -> None:
    found = match(PATTERN, last(load(text)))
    assert found is not None
    said = escape(found)
    assert said is None if reason is None else said is not None and reason in said


def test_a_tensor_read_in_a_branch_is_read() -> None:
    model = load(
        """g (float[4] x, bool k) => (float[4] y, float[4] z) {
            a = Neg(x)
            z = If(k) <then_branch = t () => (float[4] p) { p = Abs(a) },
                       else_branch = e () => (float[4] q) { q = Abs(x) }>
            y = Relu(a)
        }"""
    )
    found = match(op("Relu", op("Neg", X)), last(model))
    assert found is not None
    assert "also read by" in str(escape(found))


def test_replace_keeps_names_and_origins() -> None:
    model = load(SWISH)
    found = match(PATTERN, last(model))
    assert found is not None
    replace(found, [oir.Node("", "HardSwish", [found.values["x"]])])
    verify(model)
    (node,) = model.graph
    assert node.outputs[0].name == "y"
    assert model.graph.outputs[0] is node.outputs[0]
    assert node.name == "Div_3"
    assert origins(node) == ("Div_3", "Mul_2", "Clip_1", "Add_0")


def test_absorb_hands_on_the_last_result() -> None:
    model = load("g (float[4] x) => (float[4] y) { a = Neg(x)\n b = Abs(a)\n y = Abs(b) }")
    first, *rest = model.graph
    absorb(first, rest)
    verify(model)
    assert [n.op_type for n in model.graph] == ["Neg"]
    assert first.outputs[0].name == "y"
    assert origins(first) == ("Neg_0", "Abs_1", "Abs_2")


def test_rules_note_what_they_did_and_why_not() -> None:
    def check(found: Match, state: CompileState) -> str | None:
        return "its input is a graph input" if found.values["x"].is_graph_input() else None

    def build(found: Match, state: CompileState) -> list[oir.Node]:
        return [oir.Node("", "Abs", [found.values["x"]])]

    rule = Rule("Abs", (op("Neg", X),), build, check)
    model = load("g (float[4] x) => (float[4] y) { a = Neg(x)\n y = Neg(a) }")
    result = apply_rules(CompileState(model, TARGET), [rule])
    assert result.changed == 1
    assert [(n.where, n.changed) for n in result.notes] == [("Neg_0", False), ("Neg_1", True)]
    assert "its input is a graph input" in result.notes[0].text
    assert [n.op_type for n in model.graph] == ["Neg", "Abs"]
