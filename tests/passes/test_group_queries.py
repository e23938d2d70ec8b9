"""group-queries: heads of keys and values are read once; left where repetition is not certain."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.group_queries import GroupQueries
from tests.passes.checks import check_passes, ops, parse

REPEATED = """
    k1 = Unsqueeze (k, two)
    k2 = Expand (k1, times)
    K = Reshape (k2, merged)
"""
VALUES = REPEATED.replace("k", "v").replace("K", "V")
TURN = "Kt = Transpose <perm = [0, 1, 3, 2]> (K)\n"
SCORES = "s = MatMul (q, Kt)\n"
REST = "m = Div (s, scale)\n p = Softmax <axis = -1> (m)\n"
TAIL = "o = MatMul (p, V)\n y = Neg (o)"


def model(*body: str, q: str = "B, 6, S, 8", k: str = "B, 2, T, 8", y: str = "B, 6, S, 8") -> str:
    return f"""
    <ir_version: 9, opset_import: ["" : 17]>
    g (float[{q}] q, float[{k}] k, float[{k}] v) => (float[{y}] y)
    <int64[1] two = {{2}}, int64[1] first = {{1}}, int64[5] times = {{1, 1, 3, 1, 1}},
     int64[5] tiled = {{1, 3, 1, 1, 1}}, int64[4] merged = {{0, 6, -1, 8}},
     float scale = {{2.5}}, float root = {{0.6}}> {{ {"".join(body)} }}"""


def feed(samples: int, queries: int, keys: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"q": (6, queries), "k": (2, keys), "v": (2, keys)}
    return {
        name: rng.standard_normal((samples, heads, length, 8)).astype(np.float32)
        for name, (heads, length) in shapes.items()
    }


@pytest.mark.parametrize("sizes", [(1, 1, 5), (2, 3, 3), (3, 4, 9)])
def test_keys_and_values_are_read_once(sizes: tuple[int, int, int]) -> None:
    after = check_passes(
        parse(model(REPEATED, TURN, VALUES, SCORES, REST, TAIL)),
        GroupQueries(),
        [
            "Reshape",
            "Transpose",
            "MatMul",
            "Div",
            "Reshape",
            "Softmax",
            "Reshape",
            "MatMul",
            "Reshape",
            "Neg",
        ],
        feed=feed(*sizes),
        notes=["2 heads are read once, not repeated 3 times"],
    )
    assert {"m", "p", "o"} <= {v.name for n in after.graph for v in n.outputs}


def test_keys_that_are_scaled() -> None:
    scaled = "Ks = Mul (Kt, root)\n q2 = Mul (q, root)\n s = MatMul (q2, Ks)\n"
    rest = "p = Softmax <axis = -1> (s)\n"
    after = check_passes(
        parse(model(REPEATED, TURN, scaled, VALUES, rest, TAIL)), GroupQueries(), feed=feed(2, 3, 5)
    )
    assert "Expand" not in ops(after)
    assert ops(after)[:5] == ["Mul", "Reshape", "Transpose", "Mul", "MatMul"]


def test_one_head_of_keys() -> None:
    text = model(REPEATED, TURN, SCORES, REST, VALUES, TAIL, k="B, 1, T, 8")
    text = text.replace("1, 1, 3, 1, 1", "1, 1, 6, 1, 1")
    given = feed(2, 3, 5)
    given |= {name: given[name][:, :1] for name in "kv"}
    after = check_passes(parse(text), GroupQueries(), feed=given)
    assert "Expand" not in ops(after)


LEFT = {
    "heads in another order": (
        VALUES.replace("v1 = Unsqueeze (v, two)", "v1 = Unsqueeze (v, first)").replace(
            "(v1, times)", "(v1, tiled)"
        ),
        "B, 6, S, 8",
    ),
    "one sample's queries for all": (VALUES, "1, 6, S, 8"),
    "queries of one head": (VALUES, "B, 1, S, 8"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_such_repetition_stays(name: str) -> None:
    values, q = LEFT[name]
    text = model(values, "o = MatMul (q3, V)\n y = Neg (o)", q=q)
    text = text.replace("{ \n", "{ q3 = MatMul (q, square)\n", 1)
    text = text.replace("float scale", "float[8, 5] square, float scale")
    square = np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32)
    given = feed(2, 3, 5)
    given["q"] = given["q"][: 1 if q[0] == "1" else 2, : 1 if "B, 1" in q else 6]
    check_passes(parse(text, square=square), GroupQueries(), feed=given, changed=False)


def test_scores_that_callers_read_stay() -> None:
    text = model(REPEATED, TURN, SCORES, "m = Relu (s)\n y = MatMul (m, K)")
    text = text.replace("8] y)", "8] y, float[B, 6, S, T] s)")
    after = check_passes(
        parse(text), GroupQueries(), feed=feed(2, 3, 5), notes=["an output of the model"]
    )
    assert "Expand" in ops(after)
