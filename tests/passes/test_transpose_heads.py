"""transpose-heads: three nodes become one where the shapes prove it."""

from __future__ import annotations

import pytest

from qcompile.passes.transpose_heads import TransposeHeads
from tests.passes.checks import check_passes, parse

SIZES = """
    sizes = Shape (x)
    rows = Slice (sizes, two, three)
    outer = Slice (sizes, zero, two)
    joined = Concat <axis = 0> (minus, rows, eight)
"""
TURN = "j = Reshape (x, joined)\n t = Transpose <perm = [0, 2, 1]> (j)\n"
BACK = "apart = Concat <axis = 0> (outer, eight, rows)\n y = Reshape (t, apart)"


def model(*body: str, x: str = "B, 2, T, 8") -> str:
    return f"""
    <ir_version: 9, opset_import: ["" : 17]>
    g (float[{x}] x) => (float[B, M, C, R] y)
    <int64[1] zero = {{0}}, int64[1] two = {{2}}, int64[1] three = {{3}}, int64[1] minus = {{-1}},
     int64[1] eight = {{8}}, int64[1] four = {{4}}> {{ {"".join(body)} }}"""


def test_keys_are_turned_at_once() -> None:
    (node,) = check_passes(parse(model(SIZES, TURN, BACK)), TransposeHeads(), ["Transpose"]).graph
    assert list(node.attributes["perm"].as_ints()) == [0, 1, 3, 2]


@pytest.mark.parametrize(
    "body",
    [
        # four columns instead of eight
        SIZES + TURN + "apart = Concat <axis = 0> (outer, four, minus)\n y = Reshape (t, apart)",
        # the turned tensor is read by another
        SIZES
        + TURN
        + BACK.replace(
            "y = Reshape (t, apart)",
            "z = Reshape (t, apart)\n s = Neg (t)\nu = Reshape (s, apart)\n y = Add (z, u)",
        ),
    ],
)
def test_other_shapes_stay(body: str) -> None:
    check_passes(parse(model(body)), TransposeHeads(), changed=False)
