"""Rounding toward float's outputs: what is gained, what is not believed, and rows that are too large."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.toward_float import CAP, Inputs, gather, toward_float

Arrays = list[npt.NDArray[np.float32]]


def samples(gap: float, count: int = 64, width: int = 24, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Inputs behind rounded layers, and in float: they miss a part that the others tell."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width)) / 5
    read = [rng.standard_normal((32, width)).astype(np.float32) for _ in range(count)]
    noise = [rng.standard_normal((32, width)) for _ in range(count)]
    real = [
        (x + gap * (x @ mix) + 0.1 * e).astype(np.float32) for x, e in zip(read, noise, strict=True)
    ]
    return read, real


def apart(
    matrix: npt.NDArray[np.float32], aim: npt.NDArray[np.float32], seed: int, gap: float
) -> float:
    """How far from float's outputs those of ``aim`` are, on other samples of the same kind."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((matrix.shape[1], matrix.shape[1])) / 5
    x = np.random.default_rng(seed).standard_normal((500, matrix.shape[1]))
    return float(np.square((x + gap * (x @ mix)) @ matrix.T - x @ aim.T).sum())


def test_outputs_come_nearer_to_floats_on_other_samples() -> None:
    matrix = np.random.default_rng(1).standard_normal((8, 24)).astype(np.float32)
    aim, share = toward_float(matrix, gather(*samples(0.2)))
    assert share > 0.9
    assert apart(matrix, aim, 7, 0.2) < 0.2 * apart(matrix, matrix, 7, 0.2)


def test_what_does_not_help_unseen_samples_is_hardly_followed() -> None:
    matrix = np.random.default_rng(1).standard_normal((8, 24)).astype(np.float32)
    read, real = samples(0.0, count=16)
    aim, share = toward_float(matrix, gather(read, real))
    assert share < 0.5
    assert apart(matrix, aim, 7, 0.0) < 0.01 * float(np.square(matrix).sum()) * 500


def test_nothing_is_changed_where_nothing_is_missing_or_nothing_judges() -> None:
    matrix = np.random.default_rng(1).standard_normal((8, 24)).astype(np.float32)
    read, real = samples(0.2)
    for inputs in (
        gather(read, read),
        gather(read[:7], real[:7]),
        Inputs(np.eye(24)),
        gather([np.full_like(x, np.nan) for x in read], real),
    ):
        aim, share = toward_float(matrix, inputs)
        assert share == 0.0
        np.testing.assert_array_equal(aim, matrix)


def test_some_samples_in_float_are_enough() -> None:
    matrix = np.random.default_rng(1).standard_normal((8, 24)).astype(np.float32)
    read, real = samples(0.2)
    every, some = gather(read, real), gather(read, real[::2], 2)
    np.testing.assert_allclose(every.moments, some.moments)
    assert some.held is not None
    assert len(some.held[0]) == 4 * 32
    assert apart(matrix, toward_float(matrix, some)[0], 7, 0.2) < 0.3 * apart(
        matrix, matrix, 7, 0.2
    )


def test_a_row_far_larger_than_the_others_does_not_rule_the_moments() -> None:
    read, _ = samples(0.0)
    rows = np.concatenate(read)
    usual = np.trace(rows.T @ rows) / len(rows)
    read[3][0] *= 1e4
    found = gather(read, read).moments
    assert np.trace(found) < usual * (1 + 2 * CAP / len(rows))
    read[3][0] = 0
    assert np.isfinite(gather(read, [0 * x for x in read]).moments).all()


def test_inputs_that_are_all_zero_are_no_error() -> None:
    zeros = [np.zeros((4, 6), np.float32)] * 16
    matrix = np.ones((2, 6), np.float32)
    aim, share = toward_float(matrix, gather(zeros, zeros))
    assert share == 0.0
    np.testing.assert_array_equal(aim, matrix)
