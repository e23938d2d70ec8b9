"""Range estimators by name, and the choice among them by error on held-back data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qcompile.calibrators.entropy import entropy_ranges
from qcompile.calibrators.mse import mse_ranges, reconstruction_errors
from qcompile.calibrators.percentile import percentile_range
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import TensorRange, solve
from qcompile.ir.errors import OptionError
from qcompile.ir.spec import QuantSpec

__all__ = [
    "ESTIMATORS",
    "METHODS",
    "check_method",
    "choose_estimators",
    "choose_ranges",
    "fit_ranges",
    "merged",
]

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

_AT_ONCE = 64
"""Tensors whose running sums lie in memory together: 64 x 100 KB."""

Stores = Mapping[str, TensorStore]


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


def choose_ranges(
    stores: Stores, method: str, spec: QuantSpec, held: Stores | None = None
) -> dict[str, TensorRange]:
    """The range of each tensor by an estimator, from all of ``stores`` and ``held``.

    For "auto", the estimators are fitted to ``stores`` and judged on ``held`` (see
    ``choose_estimators``); the winner is then fitted to both.

    Raises:
        OptionError: no such method.
    """
    check_method(method)
    methods = dict.fromkeys(stores, method)
    if method == "auto":
        methods = choose_estimators(stores, spec, held)
    return fit_ranges(merged(stores, held), methods, spec)


def merged(
    stores: Stores, held: Stores | None, capacity: int | None = None
) -> dict[str, TensorStore]:
    """What both saw of each tensor, with histograms of ``capacity`` bins if asked for."""
    if not held and capacity is None:
        return dict(stores)
    both = {name: store.copy(capacity) for name, store in stores.items()}
    for name, store in both.items():
        if held and name in held:
            store.merge(held[name])
    return both


def choose_estimators(
    stores: Stores, spec: QuantSpec, held: Stores | None = None
) -> dict[str, str]:
    """For each tensor the estimator whose range from ``stores`` reconstructs ``held`` best.

    Tensors that ``held`` has nothing of are judged on ``stores``.
    """
    fits = [fit_ranges(stores, dict.fromkeys(stores, m), spec) for m in ESTIMATORS]
    chosen: dict[str, str] = {}
    for name, store in stores.items():
        judge = (held or {}).get(name, store)
        lows = np.array([float(fit[name].low) for fit in fits])
        highs = np.array([float(fit[name].high) for fit in fits])
        qparams = solve(TensorRange(lows, highs), spec)
        errors = reconstruction_errors(store if judge.empty else judge, qparams)
        chosen[name] = ESTIMATORS[int(np.argmax(errors <= errors.min() * _NOISE))]
    return chosen


def fit_ranges(
    stores: Stores, methods: Mapping[str, str], spec: QuantSpec
) -> dict[str, TensorRange]:
    """The range of each tensor of ``methods`` by its own estimator ("auto" is none)."""
    groups: dict[str, list[str]] = {}
    for name, method in methods.items():
        groups.setdefault("minmax" if stores[name].empty else method, []).append(name)
    found: dict[str, TensorRange] = {}
    for method, names in groups.items():
        for at in range(0, len(names), _AT_ONCE):
            part = names[at : at + _AT_ONCE]
            ends = _limits([stores[name] for name in part], method, spec)
            for name, low, high in zip(part, *ends, strict=True):
                found[name] = TensorRange(np.float64(low), np.float64(high), methods[name])
    return {name: found[name] for name in methods}


def _limits(
    stores: Sequence[TensorStore], method: str, spec: QuantSpec
) -> tuple[Sequence[float], Sequence[float]]:
    percent = _percent(method)
    if percent is not None:
        pairs = [percentile_range(store, percent) for store in stores]
        return [low for low, _ in pairs], [high for _, high in pairs]
    if method == "minmax":
        seen = [(0.0, 0.0) if s.empty else (s.low, s.high) for s in stores]
        return [low for low, _ in seen], [high for _, high in seen]
    lows, highs = (entropy_ranges if method == "entropy" else mse_ranges)(stores, spec)
    return lows.tolist(), highs.tolist()
