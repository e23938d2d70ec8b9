"""fold-table: functions of rows are applied to the embedding once."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.fold_table import FoldTable
from tests.passes.checks import check_passes, parse

TABLE = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
NUMBERS = """<float k = {2.0}, float[4] v = {1.0, 2.0, 3.0, 4.0}, float[1, 1, 4] u = {1.0, 2.0, 3.0, 4.0},
    float[3, 1] tall = {1.0, 2.0, 3.0}>"""


def model(body: str, output: str = "float[N, 3, 4] y") -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (int64[N, 3] ids) => ({output}) {NUMBERS} {{ a = Gather(w, ids)\n {body} }}"""


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(a)",
        "y = Gelu(a)",
        "y = com.microsoft.FastGelu(a)",
        "y = Mul(a, k)",
        "y = Sub(v, a)",
        "b = Add(a, u)\n c = Sigmoid(b)\n y = Mul(k, c)",
        "y = LayerNormalization<axis = -1>(a, v, v)",
        "y = LayerNormalization<axis = 2>(a, v)",
    ],
)
def test_folded(body: str) -> None:
    check_passes(parse(model(body), w=TABLE), FoldTable(), ["Gather"])


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("y = Add(a, tall)", "float[N, 3, 4] y"),
        ("y = Softmax<axis = 1>(a)", "float[N, 3, 4] y"),
        ("y = LayerNormalization<axis = 1>(a, w3)", "float[N, 3, 4] y"),
        ("y = Relu(a)", "float[N, 3, 4] y, float[N, 3, 4] a"),
        ("b = Relu(a)\n c = Neg(a)\n y = Add(b, c)", "float[N, 3, 4] y"),
        ("b = Relu(a)\n y = MatMul(b, t)\n z = Transpose(w)", "float[N, 3, 5] y, float[4, 5] z"),
        ("y = Pow(a, k)", "float[N, 3, 4] y"),
    ],
)
def test_left_alone(body: str, output: str) -> None:
    made = parse(model(body, output), w=TABLE, w3=np.ones((3, 4), np.float32), t=TABLE.T.copy())
    check_passes(made, FoldTable(), changed=False)


def test_a_result_that_is_no_number_stays_where_it_is() -> None:
    check_passes(parse(model("y = Sqrt(a)"), w=TABLE), FoldTable(), changed=False)
