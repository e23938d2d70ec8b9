"""Range estimators by name, and the choice among them by error on held-back data."""

from __future__ import annotations

import numpy as np

from qcompile.calibrators.entropy import entropy_range
from qcompile.calibrators.mse import mse_range, reconstruction_error
from qcompile.calibrators.percentile import percentile_range
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import TensorRange, solve
from qcompile.ir.errors import OptionError
from qcompile.ir.spec import QuantSpec

__all__ = ["ESTIMATORS", "METHODS", "check_method", "choose_estimator", "choose_range"]

ESTIMATORS = (
    "minmax",
    "percentile-99.999",
    "percentile-99.99",
    "percentile-99.9",
    "entropy",
    "mse",
)
"""In the order in which equal errors are decided: the widest range first."""

METHODS = ("auto", "percentile", *ESTIMATORS)
"""All names a user may give; "percentile" is 99.99, and "percentile-P" takes any P from 50 to 100."""

_NOISE = 1.01
"""Errors on held-back data within 1 % of the least count as equal."""


def check_method(method: str) -> None:
    """Make sure that ``method`` names an estimator.

    Raises:
        OptionError: it does not; lists the names.
    """
    if method not in METHODS and _percent(method) is None:
        raise OptionError(
            f"calibration method '{method}' is unknown; choose one of {', '.join(METHODS)}"
        )


def _percent(method: str) -> float | None:
    if method == "percentile":
        return 99.99
    prefix, _, number = method.partition("-")
    try:
        percent = float(number)
    except ValueError:
        return None
    return percent if prefix == "percentile" and 50.0 <= percent <= 100.0 else None


def choose_range(
    store: TensorStore, method: str, spec: QuantSpec, held: TensorStore | None = None
) -> TensorRange:
    """The range of a tensor by an estimator, from all of ``store`` and ``held``.

    For "auto", the estimators are fitted to ``store`` and judged on ``held`` (see
    ``choose_estimator``); the winner is then fitted to both.

    Raises:
        OptionError: no such method.
    """
    check_method(method)
    if method == "auto":
        method = choose_estimator(store, spec, held)
    if held is not None and not held.empty:
        both = store.copy()
        both.merge(held)
        store = both
    low, high = _limits(store, method, spec)
    return TensorRange(np.float64(low), np.float64(high), method)


def choose_estimator(store: TensorStore, spec: QuantSpec, held: TensorStore | None = None) -> str:
    """The estimator whose range from ``store`` reconstructs ``held`` (else ``store``) best."""
    judge = store if held is None or held.empty else held
    errors = {
        method: reconstruction_error(judge, solve(choose_range(store, method, spec), spec))
        for method in ESTIMATORS
    }
    least = min(errors.values())
    return next(method for method in ESTIMATORS if errors[method] <= least * _NOISE)


def _limits(store: TensorStore, method: str, spec: QuantSpec) -> tuple[float, float]:
    if store.empty:
        return 0.0, 0.0
    percent = _percent(method)
    if percent is not None:
        return percentile_range(store, percent)
    if method == "entropy":
        return entropy_range(store, spec)
    if method == "mse":
        return mse_range(store, spec)
    return store.low, store.high
