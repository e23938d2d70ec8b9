"""HQQ's zero points."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.calibrators.hqq import POWER, hqq
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockSpec


def norm(error: np.ndarray) -> float:
    return float(np.power(np.abs(error), POWER).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_p_norm_is_at_most_that_of_the_full_range(bits: int) -> None:
    matrix = np.random.default_rng(bits).standard_t(3, (16, 96)).astype(np.float32)
    spec = BlockSpec(bits, 32)
    plain = fit_blocks(matrix, spec, shrinks=(1.0,))
    assert norm(hqq(matrix, spec).values() - matrix) < norm(plain.values() - matrix)


def test_a_symmetric_grid_has_no_zero_point() -> None:
    matrix = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    spec = BlockSpec(4, 32, symmetric=True)
    found, plain = hqq(matrix, spec), fit_blocks(matrix, spec, shrinks=(1.0,))
    assert found.zero is None
    assert norm(found.values() - matrix) <= norm(plain.values() - matrix)
