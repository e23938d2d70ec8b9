"""The search for the range of a block."""

from __future__ import annotations

import numpy as np

from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockSpec


def test_a_fine_grid_is_not_searched_without_importance() -> None:
    matrix = np.random.default_rng(5).standard_normal((64, 256)).astype("f")
    for bits, searched in ((8, False), (4, True)):
        spec = BlockSpec(bits, 64)
        full = fit_blocks(matrix, spec, shrinks=(1.0,))
        assert np.array_equal(fit_blocks(matrix, spec).scale, full.scale) != searched
    weights = np.where(np.arange(256) % 64 < 60, 1.0, 0.0).astype("f")
    matrix[:, 60::64] *= 9  # large ones that do not count
    spec = BlockSpec(8, 64)
    by_importance = fit_blocks(matrix, spec, weights).scale
    assert not np.array_equal(by_importance, fit_blocks(matrix, spec, weights, (1.0,)).scale)
