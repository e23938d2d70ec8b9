"""fuse-rotary: the spellings of exporters, tables of every origin; refused where the operator differs."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.fuse_rotary import FuseRotary
from tests.passes.checks import check_passes, ops, parse

RNG = np.random.default_rng(0)
ANGLES = RNG.uniform(0, 1, (1, 4)).astype(np.float32)
COS = RNG.standard_normal((5, 4)).astype(np.float32)
SIN = RNG.standard_normal((5, 4)).astype(np.float32)

SLICES = """
    a = Slice (x, zero, half, last, one)
    b = Slice (x, half, far, last)
"""
SPLIT = "a, b = Split <axis = -1> (x, sizes)"
TURNED = """
    n = Neg (b)
    r = Concat <axis = -1> (n, a)
    p = Mul (x, cos)
    q = Mul (r, sin)
    y = Add (p, q)
"""
OTHER_ORDER = """
    n = Mul (minus, b)
    r = Concat <axis = 3> (n, a)
    p = Mul (cos, x)
    q = Mul (sin, r)
    y = Add (q, p)
"""
BY_HALVES = """
    ac = Mul (a, cos)
    bs = Mul (b, sin)
    bc = Mul (b, cos)
    as = Mul (sin, a)
    low = Sub (ac, bs)
    high = Add (bc, as)
    y = Concat <axis = -1> (low, high)
"""
COUNTED = """
    shape = Shape <start = 2, end = 3> (x)
    count = Squeeze (shape)
    at = Range (i0, count, i1)
    f = Cast <to = 1> (at)
    rows = Unsqueeze (f, one)
    turns = Mul (rows, angles)
"""
TWICE = """
    whole = Concat <axis = -1> (turns, turns)
    c = Cos (whole)
    s = Sin (whole)
    c2 = Mul (c, scale)
    cos = Unsqueeze (c2, lead)
    s2 = Mul (scale, s)
    sin = Unsqueeze (s2, lead)
"""
GIVEN = """
    f = Cast <to = 1> (ids)
    rows = Unsqueeze (f, last)
    turns = MatMul (rows, angles)
    c = Cos (turns)
    s = Sin (turns)
    cc = Concat <axis = -1> (c, c)
    ss = Concat <axis = -1> (s, s)
    cos = Unsqueeze (cc, one)
    sin = Unsqueeze (ss, one)
"""


def model(*body: str, x: str = "B, 3, S, 8", more: str = "", y: str = "B, 3, S, 8") -> str:
    return f"""
    <ir_version: 9, opset_import: ["" : 17]>
    g (float[{x}] x{more}) => (float[{y}] y)
    <float[1, 4] angles, float[5, 4] cos_half, float[5, 4] sin_half, float minus = {{-1.0}},
     int64[1] zero = {{0}}, int64[1] half = {{4}}, int64[1] last = {{-1}}, int64[1] one = {{1}},
     int64[1] far = {{9223372036854775807}}, int64[2] sizes = {{4, 4}}, int64[2] lead = {{0, 1}},
     int64[2] unequal = {{3, 5}}, int64[1] two = {{2}}, int64[1] width = {{8}},
     int64 i0 = {{0}}, int64 i1 = {{1}}, float scale = {{1.25}}> {{ {"".join(body)} }}"""


ARRAYS = {"angles": ANGLES, "cos_half": COS, "sin_half": SIN}
IDS = ", int64[B, S] ids"
SHORT_SIN = (
    "c = Cos (turns)\n s = Sin (turns)\n cos = Unsqueeze (c, lead)\n sin = Unsqueeze (s, lead)"
)


@pytest.mark.parametrize("halves", [SLICES, SPLIT])
@pytest.mark.parametrize("turned", [TURNED, OTHER_ORDER])
def test_positions_that_are_counted(halves: str, turned: str) -> None:
    after = check_passes(
        parse(model(COUNTED, TWICE, halves, turned), **ARRAYS), FuseRotary(), changed=True
    )
    last = after.graph[-1]
    assert (last.op_type, last.domain) == ("RotaryEmbedding", "com.microsoft")
    assert not {"Split", "Concat", "Neg"} & set(ops(after)[-4:])


def test_positions_that_each_sample_brings() -> None:
    text = model(GIVEN, SPLIT, TURNED, more=IDS)
    ids = np.array([[0, 1, 2], [7, 3, 5]])
    x = RNG.standard_normal((2, 3, 3, 8)).astype(np.float32)
    after = check_passes(
        parse(text, **ARRAYS), FuseRotary(), feed={"x": x, "ids": ids}, changed=True
    )
    assert "Split" not in ops(after)
    assert ops(after).count("Range") == 1


def test_halves_of_half_as_many_angles() -> None:
    text = model(COUNTED, SHORT_SIN, SPLIT, BY_HALVES)
    assert ops(check_passes(parse(text, **ARRAYS), FuseRotary()))[-1] == "RotaryEmbedding"


def test_constant_tables_are_read_by_two_rotations() -> None:
    tables = {
        name: np.concatenate([half, half], -1).reshape(1, 1, 5, 8)
        for name, half in (("cos", COS), ("sin", SIN))
    }
    second = TURNED.replace("x,", "first,").replace("y =", "twice =").replace("n =", "n2 =")
    for name in "rpq":
        second = second.replace(f"{name} =", f"{name}2 =").replace(f" {name})", f" {name}2)")
    second = second.replace("(n,", "(n2,").replace("(b)", "(d)").replace(", a)", ", c)")
    second = second.replace("(r,", "(r2,").replace("(p,", "(p2,")
    body = TURNED.replace("y =", "first =")
    halves = "c, d = Split <axis = -1> (first, sizes)"
    end = "y = Identity (twice)"
    text = model(SPLIT, body, halves, second, end, x="B, 3, 5, 8", y="B, 3, 5, 8")
    text = text.replace("float scale", "float[1, 1, 5, 8] cos, float[1, 1, 5, 8] sin, float scale")
    after = check_passes(
        parse(text, **ARRAYS, **tables),
        FuseRotary(),
        ["RotaryEmbedding", "RotaryEmbedding", "Identity"],
    )
    assert sum(1 for name in after.graph.initializers if "rows" in name) == 2


def test_heads_behind_positions() -> None:
    counted = COUNTED.replace("start = 2, end = 3", "start = 1, end = 2")
    behind = TWICE.replace("(c2, lead)", "(c2, behind)").replace("(s2, lead)", "(s2, behind)")
    text = model(counted, behind, SPLIT, TURNED, x="B, S, 3, 8", y="B, S, 3, 8")
    text = text.replace("int64 i0", "int64[2] behind = {0, 2}, int64 i0")
    after = check_passes(parse(text, **ARRAYS), FuseRotary(), changed=True)
    assert ops(after)[-3:] == ["Reshape", "RotaryEmbedding", "Reshape"]


@pytest.mark.parametrize("left", ["Slice (whole, width, far, last)", "Identity (x)"])
def test_the_first_channels_alone(left: str) -> None:
    taken = "x = Slice (whole_x, zero, width, last)\n"
    end = f"rest = {left.replace('whole', 'whole_x')}\n y = Concat <axis = -1> (part, rest)"
    turned = TURNED.replace("y =", "part =")
    text = model(taken, COUNTED, TWICE, SPLIT, turned, end, x="B, 3, S, 12", y="B, 3, S, M")
    text = text.replace("12] x", "12] whole_x")
    after = check_passes(parse(text, **ARRAYS), FuseRotary(), changed=True)
    rotary = next(n for n in after.graph if n.op_type == "RotaryEmbedding")
    whole = left.startswith("Slice")
    assert rotary.attributes.get_int("rotary_embedding_dim", 0) == (8 if whole else 0)
    assert (after.graph[-1] is rotary) == whole


def test_halves_that_differ_are_refused() -> None:
    body = (
        COUNTED + "other = Mul (turns, scale)\n" + TWICE.replace("(turns, turns)", "(turns, other)")
    )
    check_passes(
        parse(model(body, SPLIT, TURNED), **ARRAYS),
        FuseRotary(),
        notes=["the halves of 'cos' are not certain to be equal"],
        changed=False,
    )


def test_tables_of_each_head_are_refused() -> None:
    body = GIVEN.replace("Unsqueeze (cc, one)", "Identity (cc)")
    body = body.replace("Unsqueeze (ss, one)", "Identity (ss)")
    text = model(body, SPLIT, TURNED, x="1, B, S, 8", y="1, B, S, 8", more=IDS)
    check_passes(
        parse(text, **ARRAYS),
        FuseRotary(),
        notes=["to have a row for each position"],
        changed=False,
    )


def test_positions_of_another_length_are_refused() -> None:
    text = model(GIVEN, SPLIT, TURNED, more=", int64[B, T] ids")
    feed = {"x": np.ones((2, 3, 4, 8), np.float32), "ids": np.zeros((2, 1), np.int64)}
    check_passes(
        parse(text, **ARRAYS),
        FuseRotary(),
        feed=feed,
        notes=["to have a row for each position"],
        changed=False,
    )


def test_samples_that_share_positions_without_saying_so_are_refused() -> None:
    text = model(GIVEN, SPLIT, TURNED, more=", int64[A, S] ids")
    feed = {"x": np.ones((2, 3, 4, 8), np.float32), "ids": np.zeros((1, 4), np.int64)}
    check_passes(parse(text, **ARRAYS), FuseRotary(), feed=feed, changed=False)


@pytest.mark.parametrize(
    "halves",
    [
        "b, a = Split <axis = -1> (x, sizes)",
        "a = Slice (x, zero, far, last, two)\n b = Slice (x, one, far, last, two)",
    ],
)
def test_other_pairs_of_channels_are_no_such_rotation(halves: str) -> None:
    check_passes(
        parse(model(COUNTED, TWICE, halves, TURNED), **ARRAYS), FuseRotary(), changed=False
    )


def test_what_is_read_elsewhere_stays() -> None:
    text = model(COUNTED, TWICE, SPLIT, TURNED).replace("] y)", "] y, float[B, 3, S, 4] n)")
    check_passes(
        parse(text, **ARRAYS), FuseRotary(), notes=["is an output of the model"], changed=False
    )


def test_half_precision_is_left_alone() -> None:
    text = model(COUNTED, TWICE, SPLIT, TURNED).replace("float[B, 3, S, 8]", "float16[B, 3, S, 8]")
    text = text.replace("cos = Unsqueeze (c2", "ch = Cast <to = 10> (c2)\n cos = Unsqueeze (ch")
    text = text.replace("sin = Unsqueeze (s2", "sh = Cast <to = 10> (s2)\n sin = Unsqueeze (sh")
    check_passes(
        parse(text, **ARRAYS), FuseRotary(), notes=["is not float32"], changed=False, rtol=1e-2
    )
