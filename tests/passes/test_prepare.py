"""The PREPARE passes together: on a block as PP-OCR writes it, and on real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.ir.graph import origins
from qcompile.passes.prepare import prepare_passes
from tests.passes.checks import check_passes, ops, parse

BLOCK = """<ir_version: 8, opset_import: ["" : %d]>
g (float[N, 3, 8, 8] x) => (float[N, 8, H, W] y) {
    three = Constant<value = float[1] {3.0}>()
    low = Constant<value = float {0.0}>()
    high = Constant<value = float {6.0}>()
    six = Constant<value = float[1] {6.0}>()
    a1 = Constant<value = float[1] {1.4}>()
    b1 = Constant<value = float[1] {0.6}>()
    a2 = Constant<value = float[1] {0.2}>()
    b2 = Constant<value = float[1] {-0.3}>()
    one = Constant<value = float[1] {1.0}>()
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
    n = BatchNormalization(c, gamma, beta, mean, var)
    m1 = Mul(a1, n)
    s1 = Add(m1, b1)
    h1 = Add(s1, three)
    h2 = Clip(h1, low, high)
    h3 = Mul(s1, h2)
    h4 = Div(h3, six)
    m2 = Mul(a2, h4)
    s2 = Add(m2, b2)
    p = GlobalAveragePool(s2)
    e = Conv(p, we, be)
    r = Relu(e)
    g1 = Conv(r, wg, bg)
    g2 = HardSigmoid<alpha = 0.2>(g1)
    g3 = Mul(s2, g2)
    q = Conv(g3, wq, bq)
    t = Mul(q, one)
    z = Sigmoid(t)
    y = Mul(q, z)
}"""


def block(opset: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w": (6, 3, 3, 3), "we": (2, 6, 1, 1), "wg": (6, 2, 1, 1), "wq": (8, 6, 1, 1)}
    shapes |= {"be": (2,), "bg": (6,), "bq": (8,), "gamma": (6,), "beta": (6,), "mean": (6,)}
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return parse(BLOCK % opset, var=rng.uniform(0.5, 2, 6).astype(np.float32), **weights)


GATE = ["GlobalAveragePool", "Conv", "Relu", "Conv", "HardSigmoid", "Mul", "Conv", "Sigmoid", "Mul"]


@pytest.mark.parametrize(
    ("opset", "swish"), [(12, ["HardSigmoid", "Mul"]), (14, ["HardSwish"]), (17, ["HardSwish"])]
)
def test_a_block_of_pp_ocr(opset: int, swish: list[str]) -> None:
    """Two learned scales, a HardSwish and a gate: 19 nodes become 12, one Add stays (the gate's)."""
    after = check_passes(block(opset), prepare_passes(), ["Conv", *swish, "Add", *GATE])
    conv = next(iter(after.graph))
    assert [one.split("_")[0] for one in origins(conv)] == [
        "Conv",
        "BatchNormalization",
        "Mul",
        "Add",
    ]


def test_real_models_stay_equal(fmnist_model: Path, fmnist_calibration: np.ndarray) -> None:
    proto = onnx.load(fmnist_model)
    before = len(proto.graph.node)
    after = check_passes(
        proto,
        prepare_passes(contrib=True),
        feed={"image": fmnist_calibration[:4]},
        rtol=1e-4,
        atol=1e-5,
    )
    assert len(after.graph) <= before
    assert "Constant" not in ops(after)
