"""fold-shapes: shape arithmetic of dynamic models becomes constants, where that is certain."""

from __future__ import annotations

import onnx
import onnx_ir as oir
import pytest

from qcompile.passes.dims import total
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.fold_shapes import FoldShapes
from qcompile.passes.tracker import Tracker
from tests.passes.checks import check_passes, parse, state_of

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
NUMBERS = """<int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64 four = {4}, int64[1] v0 = {0},
    int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] v3 = {3}, int64[1] heads = {4}, int64[1] rest = {-1}>"""
HEADS = """s = Shape(x)
    b = Gather(s, i0)
    t = Gather(s, i1)
    d = Gather(s, i2)
    e = Div(d, four)
    bu = Unsqueeze(b, v0)
    tu = Unsqueeze(t, v0)
    eu = Unsqueeze(e, v0)"""


def model(body: str, signature: str = "(float[batch, seq, 8] x) => (float[A, B, C, D] y)") -> str:
    return f"{HEADER}g {signature} {NUMBERS} {{ {body} }}"


def target_of(made: oir.Model) -> list[int]:
    (reshape,) = [n for n in made.graph if n.op_type == "Reshape"]
    assert reshape.inputs[1] is not None and reshape.inputs[1].const_value is not None
    return [int(i) for i in reshape.inputs[1].const_value.numpy()]


def test_the_heads_of_an_attention() -> None:
    body = f"{HEADS}\n c = Concat<axis = 0>(bu, tu, heads, eu)\n n = Neg(x)\n y = Reshape(n, c)"
    after = check_passes(parse(model(body)), FoldShapes(), ["Neg", "Reshape"])
    assert target_of(after) == [0, 0, 4, 2]


def test_through_a_matmul_and_a_transpose() -> None:
    body = f"""{HEADS}
        c = Concat<axis = 0>(bu, tu, heads, eu)
        r = Reshape(x, c)
        p = Transpose<perm = [0, 2, 1, 3]>(r)
        q = Transpose<perm = [0, 2, 3, 1]>(r)
        m = MatMul(p, q)
        o = MatMul(m, p)
        back = Transpose<perm = [0, 2, 1, 3]>(o)
        du = Unsqueeze(d, v0)
        c2 = Concat<axis = 0>(bu, tu, du)
        y = Reshape(back, c2)"""
    signature = "(float[batch, seq, 8] x) => (float[batch, seq, 8] y)"
    after = check_passes(parse(model(body, signature)), FoldShapes())
    targets = [n.inputs[1] for n in after.graph if n.op_type == "Reshape"]
    found = [t.const_value.numpy().tolist() for t in targets if t is not None and t.const_value]
    assert found == [[0, 0, 4, 2], [0, 0, 8]]
    assert not any(n.op_type in ("Shape", "Gather", "Concat", "Unsqueeze") for n in after.graph)


def test_one_unknown_dimension_becomes_minus_one() -> None:
    body = """s = Shape(x)
        t = Slice(s, v1, v2)
        c = Concat<axis = 0>(t, heads, v2)
        y = Reshape(x, c)"""
    made = parse(model(body, "(float[1, seq, 8] x) => (float[A, B, C] y)"))
    assert target_of(check_passes(made, FoldShapes(), ["Reshape"])) == [-1, 4, 2]


def test_two_unknown_dimensions_in_other_places_stay() -> None:
    body = """s = Shape(x)
        b = Slice(s, v0, v1)
        t = Slice(s, v1, v2)
        c = Concat<axis = 0>(t, b, heads, v2)
        y = Reshape(x, c)"""
    check_passes(parse(model(body)), FoldShapes(), changed=False)


def test_a_symbol_written_twice_on_one_input_is_not_believed() -> None:
    body = """s = Shape(x)
        a = Slice(s, v0, v1)
        b = Slice(s, v1, v2)
        c = Concat<axis = 0>(b, a, heads)
        y = Reshape(x, c)"""
    made = parse(model(body, "(float[n, n, 4] x) => (float[A, B, C] y)"))
    check_passes(made, FoldShapes(), changed=False)


def test_an_expand_to_its_own_shape_is_dropped() -> None:
    body = """s = Shape(x)
        b = Slice(s, v0, v1)
        c = Concat<axis = 0>(b, v1, v1)
        n = Neg(x)
        e = Expand(n, c)
        y = Abs(e)"""
    made = parse(model(body, "(float[batch, seq, 8] x) => (float[A, B, C] y)"))
    check_passes(made, FoldShapes(), ["Neg", "Abs"])
    grown = parse(
        model(
            body.replace("Neg(x)", "ReduceMean<axes = [0]>(x)"),
            "(float[b, t, 8] x) => (float[A, B, C] y)",
        )
    )
    after = check_passes(grown, FoldShapes(), changed=False)
    assert "Expand" in [n.op_type for n in after.graph]


def test_numbers_become_constants() -> None:
    body = f"{HEADS}\n f = Cast<to = 1>(e)\n y = Div(x, f)"
    signature = "(float[batch, seq, 8] x) => (float[batch, seq, 8] y)"
    after = check_passes(
        parse(model(body, signature)), FoldShapes(), ["Cast", "Div"], notes=["always [2]"]
    )
    assert any(n.startswith("e_known") for n in after.graph.initializers)


def test_shapes_are_written_for_later_passes_but_not_the_symbols() -> None:
    body = f"{HEADS}\n c = Concat<axis = 0>(bu, tu, heads, eu)\n r = Reshape(x, c)\n y = Neg(r)"
    made = parse(model(body))
    for value in list(made.graph.value_info):
        made.graph.value_info.remove(value)
    state = state_of(made)
    FoldShapes().run(state)
    shape = next(iter(state.model.graph)).outputs[0].shape
    assert shape is not None
    assert [d if isinstance(d, int) else d.value for d in shape] == [None, None, 4, 2]


@pytest.mark.parametrize(
    ("line", "dims"),
    [
        ("y = MatMul(x, w)", ("batch", "seq", 3)),
        ("y = Add(x, m)", ("batch", "seq", 8)),
        ("y = Add(x, t)", ("batch", "seq", 8)),
        ("y = Add(x, o)", ("batch", "y:1", 8)),
        ("y = Transpose(x)", (8, "seq", "batch")),
        ("y = ReduceMean<axes = [1]>(x)", ("batch", 1, 8)),
        ("y = ReduceMean<axes = [-1], keepdims = 0>(x)", ("batch", "seq")),
        ("y = Reshape(x, flat)", ("y:0", 8)),
        ("y = Reshape(x, copied)", ("batch", "seq", 4, 2)),
        ("y = Unsqueeze(x, v0)", (1, "batch", "seq", 8)),
        ("y = Concat<axis = -1>(x, x)", ("batch", "seq", 16)),
        ("y = Slice(x, v0, v1, v1)", ("batch", "y:1", 8)),
        ("z, y = Split<axis = 1>(x, halves)", ("batch", "y:1", 8)),
        ("s = Shape(x)\n n = Gather(s, i1)\n y = Range(i0, n, i1)", ("seq",)),
    ],
)
def test_dimensions(line: str, dims: tuple[int | str, ...]) -> None:
    text = f"""{HEADER}g (float[batch, seq, 8] x, float[batch, 1, 8] m,
        float[1, seq, 1] t, float[batch, other, 8] o)
        => (float y) <float[8, 3] w = {{{", ".join("0.0" for _ in range(24))}}}, int64[2] flat = {{-1, 8}},
        int64[4] copied = {{0, 0, -1, 2}}, int64[1] v0 = {{0}}, int64[1] v1 = {{1}},
        int64[2] halves = {{2, 3}}, int64 i0 = {{0}}, int64 i1 = {{1}}> {{ {line} }}"""
    made = parse(text.replace("(float y)", "(float[A] y)"))
    made.graph.output[0].type.tensor_type.ClearField("shape")
    graph = oir.from_proto(made).graph
    assert Tracker(graph).dims(graph.outputs[0]) == dims


def test_the_repeated_heads_of_grouped_attention() -> None:
    """PyTorch writes expand(b, -1, 3, ...) as Where(shape == -1, 1, shape)."""
    body = """s = Shape(x)
        b = Slice(s, v0, v1)
        t = Slice(s, v1, v2)
        c = Concat<axis = 0>(b, t, v3, heads)
        l = Shape(c)
        ones = ConstantOfShape<value = int64[1] {1}>(l)
        minus = Mul(ones, rest)
        e = Equal(c, minus)
        w = Where(e, ones, c)
        n = ReduceSum(x, v2)
        u = Unsqueeze(n, v3)
        y = Expand(u, w)"""
    made = parse(model(body, "(float[batch, seq, 8] x) => (float[batch, seq, 3, 4] y)"))
    after = check_passes(made, FoldShapes(), ["ReduceSum", "Unsqueeze", "Expand"])
    target = list(after.graph)[-1].inputs[1]
    assert target is not None and target.const_value is not None
    assert target.const_value.numpy().tolist() == [1, 1, 3, 4]


def test_a_stale_inner_shape_does_not_freeze_the_batch() -> None:
    """As left behind by scripts that make the batch of a fixed model dynamic."""
    body = """n = Neg(x)
        s = Shape(n)
        b = Slice(s, v0, v1)
        c = Concat<axis = 0>(b, rest)
        y = Reshape(n, c)"""
    made = parse(model(body, "(float[batch, 3, 4] x) => (float[batch, 12] y)"))
    del made.graph.value_info[:]
    made.graph.value_info.append(onnx.helper.make_tensor_value_info("n", 1, [1, 3, 4]))
    state = state_of(made)
    for one in (FoldConstants(), FoldShapes()):
        one.run(state)
    assert target_of(state.model) == [0, -1]


def test_keys_behind_a_cache_are_as_many_as_past_and_new() -> None:
    """PyTorch's newer exporter adds the sizes and repeats the heads to the sum."""
    body = """
        k = Concat<axis = 2>(past, x)
        s = Shape<start = 2, end = 3>(x)
        p = Shape<start = 2, end = 3>(past)
        sum = Add(s, p)
        b = Shape<start = 0, end = 1>(x)
        target = Concat<axis = 0>(b, v2, heads, sum, v3)
        wide = Unsqueeze(k, v2)
        y = Expand(wide, target)"""
    signature = "(float[B, 2, S, 3] x, float[B, 2, P, 3] past) => (float[A, C, D, E, F] y)"
    after = check_passes(
        parse(model(body, signature)), FoldShapes(), ["Concat", "Unsqueeze", "Expand"]
    )
    target = after.graph[-1].inputs[1]
    assert target is not None
    assert target.const_value is not None
    assert target.const_value.numpy().tolist() == [1, 1, 4, 1, 1]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((2, 3), 5),
        (("a", 0), "a"),
        (("b", 1, "a"), "a plus b plus 1"),
        (("a plus b plus 1", -1), "a plus b"),
        ((), 0),
    ],
)
def test_a_sum_of_sizes_has_one_name(parts: tuple[int | str, ...], expected: int | str) -> None:
    assert total(parts) == expected
    assert total(reversed(parts)) == expected
