"""fold-constants: what depends on no input becomes an initializer."""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from qcompile.passes.fold_constants import FoldConstants
from tests.passes.checks import check_passes, ops, parse, state_of

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def test_chains_of_constants_collapse() -> None:
    model = parse(
        HEADER
        + """g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1.0, 2.0}> {
            two = Constant<value = float {2.0}>()
            a = Mul(w, two)
            b = Sqrt(a)
            y = Add(x, b)
        }"""
    )
    after = check_passes(model, FoldConstants(), ["Add"])
    assert set(after.graph.initializers) == {"b"}


def test_constant_nodes_keep_the_name_of_their_output() -> None:
    model = parse(
        HEADER
        + """g (float[N, 2] x) => (float[N, 2] y) {
            k = Constant<value_floats = [1.0, 2.0]>()
            y = Add(x, k)
        }"""
    )
    assert set(check_passes(model, FoldConstants(), ["Add"]).graph.initializers) == {"k"}


def test_shape_of_a_static_tensor() -> None:
    model = parse(
        HEADER
        + """g (float[2, 3, 4] x) => (float[6, 4] y) <int64[1] rest = {-1}, int64 four = {2}> {
            s = Shape(x)
            w = Gather(s, four)
            zero = Constant<value = int64[1] {0}>()
            u = Unsqueeze(w, zero)
            t = Concat<axis = 0>(rest, u)
            y = Reshape(x, t)
        }"""
    )
    check_passes(model, FoldConstants(), ["Reshape"])


def test_shape_of_a_dynamic_tensor_stays() -> None:
    model = parse(HEADER + "g (float[N, 3] x) => (int64[2] y) { s = Shape(x)\n y = Abs(s) }")
    check_passes(model, FoldConstants(), ["Shape", "Abs"], changed=False)


def test_an_overridable_initializer_stays() -> None:
    model = parse(
        HEADER
        + """g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1.0, 2.0}> {
            a = Neg(w)
            y = Add(x, a)
        }"""
    )
    feed = {"x": np.ones(2, np.float32)}
    check_passes(model, FoldConstants(), ["Neg", "Add"], feed=feed, changed=False)


def test_a_result_much_bigger_than_its_operands_stays() -> None:
    model = parse(
        HEADER
        + """g (float[1024, 1024] x) => (float[1024, 1024] y) <int64[2] size = {1024, 1024}> {
            big = ConstantOfShape<value = float[1] {1.0}>(size)
            y = Add(x, big)
        }"""
    )
    check_passes(model, FoldConstants(), ["ConstantOfShape", "Add"], notes=["would add 3 MB"])
    check_passes(model, FoldConstants(max_growth=1 << 23), ["Add"])


def test_quantized_weights_stay_quantized() -> None:
    model = parse(
        HEADER
        + """g (float[N, 2] x) => (float[N, 2] y) <int8[2] w = {1, 2}, float s = {0.5}> {
            a = DequantizeLinear(w, s)
            y = Add(x, a)
        }"""
    )
    check_passes(model, FoldConstants(), ["DequantizeLinear", "Add"], changed=False)


def test_random_nodes_and_graph_outputs_stay() -> None:
    model = parse(
        HEADER
        + """g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1.0, 2.0}> {
            r = RandomNormal<shape = [2]>()
            y = Sub(x, r)
            z = Neg(w)
        }"""
    )
    state = state_of(model)
    result = FoldConstants().run(state)
    assert result.changed == 0
    assert ops(state.model) == ["RandomNormal", "Sub", "Neg"]


def test_an_unknown_operator_is_no_reason_to_fail() -> None:
    model = oir.from_proto(
        parse(
            '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>\n'
            "g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { a = my.Op(w)\n y = Add(x, a) }"
        )
    )
    assert FoldConstants().run(state_of(model)).changed == 0


def test_a_constant_read_in_a_branch_keeps_its_name() -> None:
    model = parse(
        HEADER
        + """g (float[2] x, bool k) => (float[2] y) <float[2] w = {1.0, 2.0}> {
            a = Neg(w)
            y = If(k) <then_branch = t () => (float[2] p) { p = Add(x, a) },
                       else_branch = e () => (float[2] q) { q = Sub(x, a) }>
        }"""
    )
    feed = {"x": np.ones(2, np.float32), "k": np.array(True)}
    after = check_passes(model, FoldConstants(), ["If"], feed=feed)
    assert set(after.graph.initializers) == {"a"}
