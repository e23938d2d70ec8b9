"""drop-noops: nodes that change nothing vanish; those that look so and are not stay."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.drop_noops import DropNoops
from tests.passes.checks import check_passes, parse

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
TENSORS = """<float zero = {0.0}, float one = {1.0}, float[1, 3, 1, 1] ones = {1.0, 1.0, 1.0},
    int64[4] start = {0, 0, 0, 0}, int64[4] end = {9223372036854775807, 3, 4, 4},
    int64[8] pads = {0, 0, 0, 0, 0, 0, 0, 0}, int64[4] same = {0, 3, 4, 4},
    float[4] scales = {1.0, 1.0, 1.0, 1.0}>"""


def around(line: str) -> str:
    """A model with ``line`` (from a to b) between two nodes that stay."""
    body = f"{{ a = Exp(x)\n {line}\n y = Neg(b) }}"
    return f"{HEADER}g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) {TENSORS} {body}"


@pytest.mark.parametrize(
    "line",
    [
        "b = Identity(a)",
        "b = Dropout(a)",
        "b = Cast<to = 1>(a)",
        "b = Add(zero, a)",
        "b = Sub(a, zero)",
        "b = Mul(a, ones)",
        "b = Div(a, one)",
        "b = Pow(a, one)",
        "b = Transpose<perm = [0, 1, 2, 3]>(a)",
        "b = Concat<axis = 1>(a)",
        "b = Sum(a)",
        "b = Slice(a, start, end)",
        "b = Pad(a, pads)",
        "b = Reshape(a, same)",
        'b = Resize(a, "", scales)'.replace('""', ""),
        "c = Transpose<perm = [0, 2, 3, 1]>(a)\n b = Transpose<perm = [0, 3, 1, 2]>(c)",
        "c = Identity(a)\n d = Mul(c, one)\n b = Add(d, zero)",
    ],
)
def test_dropped(line: str) -> None:
    check_passes(parse(around(line)), DropNoops(), ["Exp", "Neg"], rtol=1e-6)


@pytest.mark.parametrize(
    "line",
    [
        "b = Sub(zero, a)",
        "b = Div(one, a)",
        "b = Add(a, one)",
        "b = Transpose<perm = [0, 1, 3, 2]>(a)",
        "c = Transpose<perm = [0, 2, 3, 1]>(a)\n b = Transpose<perm = [0, 2, 3, 1]>(c)",
    ],
)
def test_kept(line: str) -> None:
    after = check_passes(parse(around(line)), DropNoops())
    assert len(after.graph) >= 3


def test_transposes_that_do_not_cancel_become_one() -> None:
    line = "c = Transpose<perm = [0, 2, 3, 1]>(a)\n b = Transpose<perm = [0, 2, 3, 1]>(c)"
    check_passes(parse(around(line)), DropNoops(), ["Exp", "Transpose", "Neg"])


def test_adding_zeros_that_broadcast_stays() -> None:
    model = parse(
        HEADER
        + """g (float[N, 1] x) => (float[N, 3] y) <float[3] zeros = {0.0, 0.0, 0.0}> {
            y = Add(x, zeros)
        }"""
    )
    check_passes(model, DropNoops(), ["Add"], changed=False)


def test_an_output_keeps_its_name() -> None:
    model = parse(HEADER + "g (float[2] x) => (float[2] y) { a = Neg(x)\n y = Identity(a) }")
    check_passes(model, DropNoops(), ["Neg"])


def test_an_input_that_is_an_output_stays() -> None:
    model = parse(HEADER + "g (float[2] x) => (float[2] y) { y = Identity(x) }")
    check_passes(model, DropNoops(), ["Identity"], changed=False)


def test_two_outputs_of_one_tensor_stay() -> None:
    model = parse(
        HEADER + "g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x)\n z = Identity(y) }"
    )
    check_passes(model, DropNoops(), ["Neg", "Identity"], changed=False)


def test_reshapes_become_one() -> None:
    model = parse(
        HEADER
        + """g (float[N, 4, 3] x) => (float[N, 12] y)
        <int64[4] first = {-1, 2, 2, 3}, int64[2] second = {-1, 12}> {
            a = Reshape(x, first)
            y = Reshape(a, second)
        }"""
    )
    check_passes(model, DropNoops(), ["Reshape"])


def test_a_reshape_that_copies_dimensions_of_the_first_stays() -> None:
    model = parse(
        HEADER
        + """g (float[N, 4, 3] x) => (float[M, 6] y)
        <int64[3] first = {-1, 2, 3}, int64[2] second = {0, -1}> {
            a = Reshape(x, first)
            y = Reshape(a, second)
        }"""
    )
    check_passes(model, DropNoops(), ["Reshape", "Reshape"], changed=False)


def test_a_cast_that_loses_nothing_in_between() -> None:
    text = "g (int32[N] x) => (float[N] y) { a = Cast<to = %d>(x)\n y = Cast<to = 1>(a) }"
    check_passes(parse(HEADER + text % 7), DropNoops(), ["Cast"])
    check_passes(parse(HEADER + text % 3), DropNoops(), ["Cast", "Cast"], changed=False)


def test_dropout_in_training_mode_stays() -> None:
    model = parse(
        HEADER
        + """g (float[8] x) => (float[8] y) <float ratio = {0.0}, bool t = {1}> {
            a = Dropout(x, ratio, t)
            y = Neg(a)
        }"""
    )
    check_passes(model, DropNoops(), ["Dropout", "Neg"], feed={"x": np.ones(8, np.float32)})
