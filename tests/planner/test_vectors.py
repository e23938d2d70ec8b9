"""A product of one row stays float; one of several does not."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.ir.plan import FLOAT, INT8
from qcompile.planner.default import default_plan
from qcompile.planner.vectors import kept_wide, weight_products
from tests.passes.qdq_models import state_of, text_model
from tests.passes.test_insert_qdq_trt import SM80


@pytest.mark.parametrize(("shape", "precision"), [((1, 32), FLOAT), ((4, 32), INT8), ((), INT8)])
def test_rows_of_the_largest_sample_decide(shape: tuple[int, ...], precision: str) -> None:
    proto = text_model(
        "g (float[4, 64] x, float[32, 8] z) => (float[4, 8] y) { g = Gemm (x, w)\n y = MatMul (g, z) }",
        w=np.ones((64, 32), np.float32),
    )
    state = state_of(proto, SM80)
    products = weight_products(state.model.graph)
    assert products == {"n_g": "g"}
    found = kept_wide(default_plan(state), products, {"g": shape} if shape else {})
    assert found.precision("n_g") == precision
