"""Range estimators against brute force on distributions as networks have them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.calibrators.choose import (
    ESTIMATORS,
    METHODS,
    check_method,
    choose_estimators,
    choose_ranges,
)
from qcompile.calibrators.mse import reconstruction_errors
from qcompile.calibrators.percentile import percentile_range
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import TensorRange, fake_quantize, solve
from qcompile.ir.errors import OptionError
from qcompile.ir.spec import QuantSpec

UINT8 = QuantSpec("uint8", symmetric=False)
INT8 = QuantSpec("int8", symmetric=True)
UINT16 = QuantSpec("uint16", symmetric=False)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def draw(name: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=20_000)
    made = {
        "normal": x,
        "relu": np.maximum(x, 0),
        "relu6": np.clip(4 * x, 0, 6),
        "hardswish": 3 * x * np.clip(3 * x + 3, 0, 6) / 6,
        "laplace": rng.laplace(size=20_000),
        "softmax": softmax(3 * x.reshape(-1, 100)),
        "outliers": np.where(np.arange(20_000) % 4001 == 7, 400 * x, x),
        "shifted": x - 20,
        "zero": 0 * x,
        "constant": 0 * x + 3.7,
        "tiny": 1e-20 * x,
    }
    return made[name].astype(np.float32).reshape(-1)


def choose_range(
    fit: TensorStore, method: str, spec: QuantSpec, held: TensorStore | None = None
) -> TensorRange:
    return choose_ranges({"t": fit}, method, spec, None if held is None else {"t": held})["t"]


def choose_estimator(fit: TensorStore, held: TensorStore | None = None) -> str:
    return choose_estimators({"t": fit}, UINT8, None if held is None else {"t": held})["t"]


NAMES = ["normal", "relu", "relu6", "hardswish", "laplace", "softmax", "outliers", "shifted"]
DEGENERATE = ["zero", "constant", "tiny"]


def store(values: np.ndarray) -> TensorStore:
    found = TensorStore()
    found.observe(values)
    return found


def true_error(values: np.ndarray, limits: TensorRange, spec: QuantSpec) -> float:
    error = fake_quantize(values, solve(limits, spec)).astype(np.float64) - values
    return float(np.mean(error**2))


@pytest.mark.parametrize("spec", [UINT8, INT8, UINT16], ids=["uint8", "int8", "uint16"])
@pytest.mark.parametrize("name", NAMES + DEGENERATE)
def test_every_range_is_finite_and_within_what_was_seen(name: str, spec: QuantSpec) -> None:
    values = draw(name)
    for method in METHODS:
        found = choose_range(store(values), method, spec)
        assert min(float(values.min()), 0) <= found.low <= found.high <= max(float(values.max()), 0)
        assert solve(found, spec).scale > 0
        assert found.low.dtype == found.high.dtype == np.float64


@pytest.mark.parametrize("spec", [UINT8, INT8], ids=["uint8", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_error_from_the_histogram_is_the_error(name: str, spec: QuantSpec) -> None:
    values = draw(name)
    for method in ("minmax", "percentile-99.9", "mse"):
        found = choose_range(store(values), method, spec)
        candidates = solve(TensorRange(found.low[None], found.high[None]), spec)
        (estimated,) = reconstruction_errors(store(values), candidates)
        assert estimated == pytest.approx(true_error(values, found, spec), rel=0.1)


@pytest.mark.parametrize("spec", [UINT8, INT8], ids=["uint8", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_mse_is_close_to_the_best_of_a_full_search(name: str, spec: QuantSpec) -> None:
    values = draw(name)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    steps = np.geomspace(1, 0.004, 40)
    best = min(
        true_error(values, TensorRange(np.float64(low * a), np.float64(high * b)), spec)
        for a in (steps if low < 0 else [1.0])
        for b in (steps if high > 0 else [1.0])
    )
    found = choose_range(store(values), "mse", spec)
    assert true_error(values, found, spec) <= best * 1.1


@given(
    hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1000, 1000, width=32)),
    st.floats(50, 100),
)
def test_percentiles_leave_out_no_more_than_asked(values: np.ndarray, percent: float) -> None:
    low, high = percentile_range(store(values), percent)
    share = (1 - percent / 100) * len(values)
    # a bin that is cut counts as the share of it that is outside
    width = store(values).histogram.width
    assert (values > high + width).sum() <= share + 1e-6
    assert (values < low - width).sum() <= share + 1e-6
    assert low <= 0 <= high


def test_percentile_of_mostly_zeros_is_zero() -> None:
    values = np.zeros(10_000, np.float32)
    values[0] = 5
    assert percentile_range(store(values), 99.9) == (0, 0)
    assert percentile_range(store(values), 100) == (0, 5)


def test_entropy_clips_rare_outliers_but_not_bounds() -> None:
    values = draw("normal")
    values[7] = 20
    found = choose_range(store(values), "entropy", UINT8)
    assert 3 < found.high < 10
    found = choose_range(store(draw("relu6")), "entropy", UINT8)
    assert (float(found.low), float(found.high)) == (0, 6)


@pytest.mark.parametrize("name", NAMES + DEGENERATE)
def test_auto_is_the_best_over_all_data(name: str) -> None:
    fit, held = store(draw(name)), store(draw(name, seed=1))
    values = np.concatenate([draw(name), draw(name, 1)])
    costs = {}
    for method in ESTIMATORS:
        limits = choose_range(fit, method, UINT8, held)
        mean = float(
            np.mean(fake_quantize(values, solve(limits, UINT8)).astype(np.float64) - values)
        )
        costs[method] = true_error(values, limits, UINT8) + 16 * mean**2
    chosen = choose_estimator(fit, held)
    assert costs[chosen] <= min(costs.values()) * 1.1 + 1e-30
    found = choose_range(fit, "auto", UINT8, held)
    assert found.method == chosen
    assert found == choose_range(store(values), chosen, UINT8)


def test_estimators_that_held_back_data_refute_are_out() -> None:
    values = np.concatenate([draw("normal", seed).clip(-4.5, 4.5) for seed in range(10)])
    more = draw("normal", 10).clip(-4.5, 4.5)
    values[:2] = -4.5, 4.5
    more[:12] = 4.4
    assert choose_range(store(np.concatenate([values, more])), "auto", UINT8).high < 4.4
    assert choose_range(store(values), "auto", UINT8, store(more)).high >= 4.4


def test_a_shift_of_all_values_counts_more_than_rounding() -> None:
    values = draw("normal")
    values[: len(values) // 2] = 1.0  # a flat background
    limits = choose_range(store(values), "auto", UINT8)
    plain = choose_range(store(values), "mse", UINT8)
    shift = [abs(fake_quantize(np.float32([1]), solve(r, UINT8))[0] - 1) for r in (limits, plain)]
    assert shift[0] <= shift[1]


def test_where_nothing_is_lost_the_full_range_stays() -> None:
    assert choose_estimator(store(draw("relu6"))) == "minmax"
    assert choose_estimator(store(draw("constant"))) == "minmax"
    assert choose_estimator(TensorStore()) == "minmax"


def test_an_enormous_extreme_that_no_sample_met_is_kept() -> None:
    values = draw("normal")
    sparse = TensorStore()
    for _ in range(20):
        sparse.update(float(values.min()), 100.0, 100 * len(values), values)
    assert choose_range(sparse, "mse", UINT8).high < 10
    sparse.update(0.0, 2e6, 1, None)
    assert choose_range(sparse, "mse", UINT8).high > 1e6
    assert choose_range(sparse, "auto", UINT8).high > 1e6


def test_nothing_seen_is_an_empty_range() -> None:
    for method in METHODS:
        found = choose_range(TensorStore(), method, UINT8)
        assert (float(found.low), float(found.high)) == (0, 0)


@pytest.mark.parametrize(
    "method", ["best", "percentile-", "percentile-x", "percentile-101", "MSE", ""]
)
def test_unknown_methods_are_refused(method: str) -> None:
    with pytest.raises(OptionError, match="choose one of auto"):
        check_method(method)


@pytest.mark.parametrize("method", [*METHODS, "percentile-99.5", "percentile-100"])
def test_known_methods(method: str) -> None:
    check_method(method)


def test_many_tensors_at_once_get_what_each_gets_alone() -> None:
    names = NAMES + DEGENERATE
    fits = {name: store(draw(name)) for name in names} | {"nothing": TensorStore()}
    held = {name: store(draw(name, 1)) for name in names}
    for method in METHODS:
        together = choose_ranges(fits, method, UINT8, held)
        assert list(together) == list(fits)
        for name in fits:
            assert together[name] == choose_range(fits[name], method, UINT8, held.get(name)), name
