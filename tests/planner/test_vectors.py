"""A product of few rows by few weights stays float; one of more rows or of many weights does not."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.ir.plan import FLOAT, INT8
from qcompile.ir.target import Target
from qcompile.planner.default import default_plan
from qcompile.planner.vectors import WeightProduct, kept_wide, weight_products
from tests.passes.qdq_models import state_of, text_model
from tests.passes.test_insert_qdq_trt import SM80

FEW, MANY = 1 << 20, 1 << 10


@pytest.mark.parametrize(
    ("shape", "least", "precision"),
    [
        ((1, 32), FEW, FLOAT),
        ((1, 32), MANY, INT8),
        ((8, 32), FEW, FLOAT),
        ((9, 32), FEW, INT8),
        ((), FEW, INT8),
    ],
)
def test_rows_of_the_largest_sample_and_weights_decide(
    shape: tuple[int, ...], least: int, precision: str
) -> None:
    proto = text_model(
        "g (float[4, 64] x, float[32, 8] z) => (float[4, 8] y) { g = Gemm (x, w)\n y = MatMul (g, z) }",
        w=np.ones((64, 32), np.float32),
    )
    state = state_of(proto, SM80)
    products = weight_products(state.model.graph, Target.vector_ops)
    assert products == {"n_g": WeightProduct("g", -1, 2048)}
    found = kept_wide(default_plan(state), products, {"g": shape} if shape else {}, least)
    assert found.precision("n_g") == precision


@pytest.mark.parametrize(("size", "precision"), [(1, FLOAT), (3, INT8)])
def test_a_conv_over_one_position_is_a_product_of_one_row(size: int, precision: str) -> None:
    proto = text_model(
        "g (float[1, 64, n, n] x) => (float[1, 32, n, n] y) { y = Conv (x, w) }",
        w=np.ones((32, 64, 1, 1), np.float32),
    )
    state = state_of(proto, SM80)
    products = weight_products(state.model.graph, Target.vector_ops)
    assert products == {"n_y": WeightProduct("y", 1, 2048)}
    found = kept_wide(default_plan(state), products, {"y": (1, 32, size, size)}, FEW)
    assert found.precision("n_y") == precision
    assert (size > 1) or "1 row by 2048 weights" in found.by_origin()["n_y"].reason
