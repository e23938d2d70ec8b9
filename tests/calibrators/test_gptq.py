"""GPTQ against the paper's own updates, in float64 on a small layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from qcompile.calibrators.gptq import factored, gptq, output_error, triangular
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockSpec, BlockWeight

Array = npt.NDArray[np.float64]


def layer(seed: int, out: int = 12, width: int = 48) -> tuple[npt.NDArray[np.float32], Array]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width)) * rng.exponential(1.0, width)[:, None]
    inputs = rng.standard_normal((400, width)) @ mix
    return rng.standard_normal((out, width)).astype(np.float32), inputs.T @ inputs / 400


def paper(matrix: Array, moments: Array, grid: BlockWeight, damping: float, order: Array) -> Array:
    """Algorithm 1 of the paper, one column at a time, with the inverse of H and its Cholesky factor."""
    width = matrix.shape[1]
    h = moments + damping * np.diagonal(moments).mean() * np.eye(width)
    h = h[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    spec = grid.spec
    w = matrix[:, order].copy()
    q = np.zeros_like(w)
    for j in range(width):
        at = order[j] // spec.block
        scale = grid.scale[:, at].astype(np.float64)
        zero = spec.middle if grid.zero is None else grid.zero[:, at].astype(np.float64)
        q[:, j] = (np.clip(np.rint(w[:, j] / scale + zero), spec.low, spec.high) - zero) * scale
        step = (w[:, j] - q[:, j]) / upper[j, j]
        w[:, j:] -= np.outer(step, upper[j, j:])
    back = np.empty_like(q)
    back[:, order] = q
    return back


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_it_is_the_papers_algorithm(bits: int, symmetric: bool, act_order: bool) -> None:
    matrix, moments = layer(bits)
    spec = BlockSpec(bits, 16, symmetric)
    grid = fit_blocks(matrix, spec)
    found = gptq(matrix, moments, spec, act_order=act_order, start=grid)
    order = np.argsort(-np.diagonal(moments), kind="stable") if act_order else np.arange(48)
    wanted = paper(matrix.astype(np.float64), moments, grid, found.damping, order)
    wrong = wanted - matrix
    error = float(np.einsum("oi,oi->", wrong @ moments, wrong))
    signal = float(np.einsum("oi,oi->", matrix @ moments, matrix))
    assert found.error == pytest.approx(error / signal, rel=1e-6)
    np.testing.assert_allclose(found.weight.values(), wanted, rtol=1e-6, atol=1e-6)


def test_it_errs_less_than_the_nearest_integers() -> None:
    for seed in range(5):
        matrix, moments = layer(seed)
        found = gptq(matrix, moments, BlockSpec(3, 16))
        assert found.error < 0.8 * found.nearest_error
        assert found.note == ""


def test_uncorrelated_inputs_leave_the_nearest_integers() -> None:
    matrix, _ = layer(0)
    found = gptq(matrix, np.eye(48), BlockSpec(4, 16))
    assert found.error == pytest.approx(found.nearest_error)


def test_singular_moments_are_damped_and_fallbacks_are_said() -> None:
    matrix, moments = layer(1)
    moments[:, 5] = moments[5] = 0.0
    found = gptq(matrix, moments, BlockSpec(4, 16))
    assert found.note == "1 inputs are always zero"
    one = np.outer(np.arange(48.0), np.arange(48.0))
    indefinite = one - 0.5 * np.eye(48)
    used = triangular(indefinite, 1e-6)[1]
    assert used > 1e-6
    assert (
        "damping raised from 1e-06" in gptq(matrix, indefinite, BlockSpec(4, 16), damping=1e-6).note
    )
    moments[0, 0] = np.nan
    assert "rounded to nearest" in gptq(matrix, moments, BlockSpec(4, 16)).note


def test_rows_that_are_no_whole_number_of_blocks() -> None:
    matrix, moments = layer(2, width=40)
    found = gptq(matrix, moments, BlockSpec(4, 32))
    assert found.weight.values().shape == (12, 40)
    assert found.error == pytest.approx(output_error(matrix, found.weight, moments))


@pytest.mark.parametrize("samples", [5, 400])
def test_its_error_is_the_outputs_however_few_the_samples(samples: int) -> None:
    rng = np.random.default_rng(samples)
    matrix = rng.standard_normal((12, 96)).astype(np.float32)
    inputs = rng.standard_normal((samples, 96)) * np.exp(rng.standard_normal(96))
    moments = inputs.T @ inputs / samples
    found = gptq(matrix, moments, BlockSpec(4, 16))
    assert found.error == pytest.approx(output_error(matrix, found.weight, moments), rel=1e-5)
    nearest = fit_blocks(
        matrix,
        BlockSpec(4, 16),
        (np.diagonal(moments) + 0.01 * np.diagonal(moments).mean()).astype(np.float32),
    )
    assert found.nearest_error == pytest.approx(output_error(matrix, nearest, moments), rel=1e-5)


def test_moments_are_factored_once_for_matrices_that_share_them() -> None:
    matrix, moments = layer(3)
    ready = factored(moments)
    for one in (matrix, matrix[::-1]):
        alone, shared = (gptq(one, moments, BlockSpec(3, 16), ready=r) for r in (None, ready))
        np.testing.assert_array_equal(alone.weight.integers, shared.weight.integers)
        assert alone.error == shared.error
