"""fuse-bias: MatMul and Add of matrices become Gemm."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.fuse_bias import FuseBias
from tests.passes.checks import check_passes, parse

W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
BIASES = {
    "vector": np.array([1.0, 2, 3], np.float32),
    "row": np.array([[1.0, 2, 3]], np.float32),
    "number": np.array(2.0, np.float32),
    "one": np.array([2.0], np.float32),
}


def model(x: str = "float[N, 4] x", y: str = "float[N, 3] y", body: str = "y = Add(c, b)") -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]>\ng ({x}) => ({y}) {{ c = MatMul(x, w)\n {body} }}'


@pytest.mark.parametrize("bias", list(BIASES))
def test_fused(bias: str) -> None:
    after = check_passes(parse(model(), w=W, b=BIASES[bias]), FuseBias(), ["Gemm"])
    (node,) = after.graph
    assert node.metadata_props["qcompile.origin"] == "MatMul_0\nAdd_1"
    assert node.name == "MatMul_0"
    check_passes(parse(model(body="y = Add(b, c)"), w=W, b=BIASES[bias]), FuseBias(), ["Gemm"])


@pytest.mark.parametrize(
    ("text", "bias", "reason"),
    [
        (
            model("float[N, 2, 4] x", "float[N, 2, 3] y"),
            BIASES["vector"],
            "has 3 dimensions",
        ),
        (model(y="float[2, 3] y"), np.ones((2, 3), np.float32), "has shape [2, 3]"),
        (model(y="float[1, N, 3] y"), np.ones((1, 1, 3), np.float32), "has shape [1, 1, 3]"),
        (model(y="float[N, 3] y, float[N, 3] c"), BIASES["vector"], "output of the model"),
    ],
)
def test_kept(text: str, bias: np.ndarray, reason: str) -> None:
    feed = {"x": np.ones((2, 2, 4) if "2, 4" in text else (2, 4), np.float32)}
    made = parse(text, w=W, b=bias)
    check_passes(made, FuseBias(), ["MatMul", "Add"], feed=feed, notes=[reason], changed=False)


def test_a_bias_that_is_computed_stays() -> None:
    text = model(x="float[N, 4] x, float[3] b")
    check_passes(parse(text, w=W), FuseBias(), ["MatMul", "Add"], changed=False)
