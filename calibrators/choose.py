"""Range estimators by name, and the choice among them by error on held-back data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.entropy import entropy_ranges
from qcompile.calibrators.mse import mse_ranges, reconstruction_errors
from qcompile.calibrators.percentile import percentile_range
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import TensorRange, solve
from qcompile.ir.errors import OptionError
from qcompile.ir.spec import FLOAT8, QuantSpec

__all__ = [
    "ESTIMATORS",
    "METHODS",
    "check_method",
    "choose_estimators",
    "choose_ranges",
    "estimators",
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
"""The estimators that "auto" chooses from."""

FLOATING = ("minmax", "percentile-99.999", "percentile-99.99", "percentile-99.9")
"""Those that serve 8-bit floats; the others count evenly spaced levels."""

METHODS = ("auto", "percentile", *ESTIMATORS)
"""All names a user may give; "percentile" is 99.99, and "percentile-P" takes any P from 50 to 100."""

_NOISE = 1.01
"""Errors within 1 % count as equal; then "mse" decides, which follows the data in small steps."""

_OVERFIT = 2.0
"""An estimator is out when on held-back data its error is more than twice that of the full range."""

_COHERENT = 16.0
"""How often the mean error counts. It is common to all elements, so that the sums of a Conv or MatMul
keep it whole while rounding averages out. Tried from 0 to 1000 on eight networks; 8 to 64 are alike."""

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


def estimators(spec: QuantSpec) -> tuple[str, ...]:
    """The names that "auto" chooses from, for a request."""
    return FLOATING if spec.dtype == FLOAT8 else ESTIMATORS


def choose_ranges(
    stores: Stores, method: str, spec: QuantSpec, held: Stores | None = None
) -> dict[str, TensorRange]:
    """The range of each tensor by an estimator, from all of ``stores`` and ``held``.

    For "auto" see ``choose_estimators``.

    Raises:
        OptionError: no such method, or it counts levels that 8-bit floats do not have.
    """
    check_method(method)
    if spec.dtype == FLOAT8 and method in ("entropy", "mse"):
        raise OptionError(
            f"--method {method} counts evenly spaced levels, which 8-bit floats do not have; use minmax "
            "or percentile"
        )
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
    """For each tensor the estimator whose range reconstructs the data best.

    The error over all data decides, but an estimator that, fitted to ``stores`` alone, clips too much
    of ``held`` is out. (Judged on a few held-back samples alone, chance decides: on PP-OCR recognition
    12 dB instead of 17.)
    """
    if spec.dtype == FLOAT8:
        # Small values keep their digits under any scale, so there is nothing to gain by clipping.
        return dict.fromkeys(stores, "minmax")
    everything = merged(stores, held)
    errors = _errors(everything, everything, dict.fromkeys(stores, ESTIMATORS), spec)
    chosen = {name: _least(found) for name, found in errors.items()}
    doubted = [name for name in chosen if held and name in held and not stores[name].empty]
    while held and doubted:
        pairs = {name: ("minmax", chosen[name]) for name in doubted}
        apart = _errors(stores, held, pairs, spec)
        doubted = [name for name, (full, own) in apart.items() if own > full * _OVERFIT]
        for name in doubted:
            errors[name][ESTIMATORS.index(chosen[name])] = np.inf
            chosen[name] = _least(errors[name])
    return chosen


def _least(errors: npt.NDArray[np.float64]) -> str:
    good = [ESTIMATORS[i] for i in np.flatnonzero(errors <= errors.min() * _NOISE)]
    # Where no estimator clips, plain limits say so.
    return "mse" if "mse" in good and len(good) < len(ESTIMATORS) else good[0]


def _errors(
    stores: Stores, judges: Stores, methods: Mapping[str, Sequence[str]], spec: QuantSpec
) -> dict[str, npt.NDArray[np.float64]]:
    """For each tensor of ``methods`` the errors on ``judges`` of those estimators fitted to ``stores``."""
    rounds = zip(*methods.values(), strict=True)
    fits = [fit_ranges(stores, dict(zip(methods, some, strict=True)), spec) for some in rounds]
    found: dict[str, npt.NDArray[np.float64]] = {}
    for name in methods:
        lows = np.array([float(fit[name].low) for fit in fits])
        highs = np.array([float(fit[name].high) for fit in fits])
        qparams = solve(TensorRange(lows, highs), spec)
        found[name] = reconstruction_errors(judges[name], qparams, coherent=_COHERENT)
    return found


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
