"""split-first: a Transpose and the Split behind it swap places."""

from __future__ import annotations

import pytest

from qcompile.passes.split_first import SplitFirst
from tests.passes.checks import check_passes, parse

NUMBERS = """<int64[3] ones = {1, 1, 1}, int64[1] zero = {0}, int64 i = {0}, int64 j = {1},
    int64 k = {2}, int64[1] l = {2}>"""


def model(body: str, output: str = "float[N, 2, 4, 5] y") -> str:
    return f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4, 3, 2, 5] x) => ({output}) {NUMBERS} {{
        t = Transpose<perm = [2, 0, 3, 1, 4]>(x)
        {body}
    }}"""


SPLIT = """a, b, c = Split<axis = 0>(t, ones)
    q = Squeeze(a, zero)
    r = Squeeze(b, zero)
    s = Squeeze(c, zero)
    m = Mul(q, r)
    y = Sub(m, s)"""
GATHERS = """q = Gather<axis = 0>(t, i)
    s = Gather<axis = 0>(t, k)
    r = Gather<axis = 0>(t, j)
    m = Mul(q, r)
    y = Sub(m, s)"""


@pytest.mark.parametrize("body", [SPLIT, GATHERS])
def test_each_part_is_transposed_by_itself(body: str) -> None:
    after = check_passes(parse(model(body)), SplitFirst(), changed=True)
    kinds = [n.op_type for n in after.graph]
    assert kinds.count("Transpose") == 3
    assert kinds.count("Squeeze") == 3
    split = next(n for n in after.graph if n.op_type == "Split")
    assert split.inputs[0] is after.graph.inputs[0]
    assert split.attributes["axis"].value == 2
    turned = [n for n in after.graph if n.op_type == "Transpose"]
    assert all(n.inputs[0].producer() is split for n in turned)


def test_a_negative_axis_counts_from_the_end() -> None:
    body = "a, b = Split<axis = -3>(t, one)\n y = Add(a, b)"
    text = model(body, "float[3, N, 1, 4, 5] y").replace(
        "<int64[3] ones", "<int64[2] one = {1, 1}, int64[3] ones"
    )
    after = check_passes(parse(text), SplitFirst(), changed=True)
    split = next(n for n in after.graph if n.op_type == "Split")
    assert split.attributes["axis"].value == 3


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("y = Relu(t)", "float[3, N, 2, 4, 5] y"),
        ("a, b, c = Split<axis = 0>(t, ones)\n d = Add(a, b)\n e = Add(d, c)\n y = Add(e, t)",
         "float[3, N, 2, 4, 5] y"),
        ("a, b, y = Split<axis = 0>(t, ones)\n d = Add(a, b)", "float[1, N, 2, 4, 5] y"),
        ("q = Gather<axis = 0>(t, i)\n r = Gather<axis = 0>(t, j)\n y = Add(q, r)",
         "float[N, 2, 4, 5] y"),
        ("q = Gather<axis = 0>(t, l)\n r = Gather<axis = 0>(t, j)\n y = Add(q, r)",
         "float[1, N, 2, 4, 5] y"),
    ],
)  # fmt: skip
def test_left_alone(body: str, output: str) -> None:
    check_passes(parse(model(body, output)), SplitFirst(), changed=False)
