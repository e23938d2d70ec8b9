"""What calibration learned: statistics of each tensor, ranges by any estimator, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qcompile.calibrators.choose import check_method, choose_ranges, fit_ranges
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import TensorRange, solve
from qcompile.ir.errors import CalibrationError
from qcompile.ir.spec import QuantSpec

__all__ = ["MOVING", "SETTLES_FROM", "Calibration", "Convergence", "converge", "relative_move"]

MOVING = 0.05
"""A range moves when an end differs from its final place by more than this share of the width."""

SETTLES_FROM = 16
"""Samples from which convergence is judged: with fewer, one sample more always moves something."""

_CLIPS = 0.001
"""Share of held-back values outside the range that is worth a word: ten times a wide percentile's."""

_LISTED = 7


@dataclass(frozen=True)
class Convergence:
    """Whether more data would change the ranges.

    Attributes:
        enough: the fewest samples that already gave every range to within ``MOVING``; None when the
            last quarter of the data still moved some, or nothing can be said.
        moving: tensors whose range the last quarter of the data moved, those that moved most first.
        clipped: tensor -> share of held-back values outside the range chosen without them.
    """

    enough: int | None = None
    moving: tuple[str, ...] = ()
    clipped: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Calibration:
    """Statistics of every observed tensor, and the ranges that follow from them.

    Attributes:
        fit: observed tensor -> what the samples showed that ranges are fitted to.
        held: observed tensor -> what every fourth sample showed, which judges the estimators; empty
            with fewer than eight samples.
        samples: how many feeds were seen.
        spec: what ranges are chosen for.
        method: the estimator that ``ranges()`` uses.
        sampled: whether histograms were kept, which all methods but "minmax" need.
        same: tensor name -> the observed tensor whose elements it holds (itself, or what a Reshape or
            Transpose took them from).
        unusable: observed tensor -> why it has no range.
        whole: observed tensor -> magnitude up to which "auto" does not clip it, since callers read it.
        convergence: see there; None where it was not asked for.
        model_sha256: of the model, "" when not known.
        data_sha256: of the data, "" when not known.
    """

    fit: dict[str, TensorStore]
    held: dict[str, TensorStore]
    samples: int
    spec: QuantSpec
    method: str = "auto"
    sampled: bool = True
    same: dict[str, str] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    convergence: Convergence | None = None
    model_sha256: str = ""
    data_sha256: str = ""
    _ranges: dict[str, dict[str, TensorRange]] = field(default_factory=dict, repr=False)

    def ranges(self, method: str | None = None) -> dict[str, TensorRange]:
        """The range of every tensor by an estimator (default: the one asked of ``calibrate``).

        Unless the user named an estimator, what callers read keeps its minimum and maximum.

        Raises:
            OptionError: no such method.
            CalibrationError: it needs histograms, and only minima and maxima were observed.
        """
        method = method or self.method
        check_method(method)
        if not self.sampled and method != "minmax":
            raise CalibrationError(
                f"method '{method}' needs histograms, but these statistics were taken with method "
                "'minmax'; calibrate again with method 'auto'"
            )
        found = self.observed_ranges(method)
        return {name: found[root] for name, root in self.same.items() if root in found}

    def observed_ranges(self, method: str) -> dict[str, TensorRange]:
        """The same of the observed tensors alone, computed once for each method."""
        if method not in self._ranges:
            found = choose_ranges(self.fit, method, self.spec, self.held)
            if self.method == "auto":
                whole = {name: self.fit[name] for name in self.whole if name in self.fit}
                held = {name: self.held[name] for name in whole if name in self.held}
                found |= choose_ranges(whole, "minmax", self.spec, held)
            self._ranges[method] = self.bounded(found)
        return self._ranges[method]

    def bounded(self, ranges: Mapping[str, TensorRange]) -> dict[str, TensorRange]:
        """The ranges, those of what callers read cut where a sigmoid behind them is saturated."""
        if self.method != "auto":
            return dict(ranges)
        return {n: _within(r, self.whole[n]) if n in self.whole else r for n, r in ranges.items()}

    def findings(self) -> tuple[str, ...]:
        """Convergence and clipping in words, one clause each."""
        told: list[str] = []
        report = self.convergence
        if report is not None:
            if report.moving:
                told.append(
                    f"ranges still moving after {self.samples} samples: {len(report.moving)} of "
                    f"{len(self.fit)} tensors: {_list(report.moving)}; more samples would help"
                )
            elif report.enough is not None:
                told.append(f"{report.enough} of {self.samples} samples were enough")
            clipping = sorted(
                (name for name, share in report.clipped.items() if share > _CLIPS),
                key=lambda name: -report.clipped[name],
            )
            if clipping:
                shares = [f"{name} ({report.clipped[name]:.1%})" for name in clipping]
                told.append(
                    f"held-back samples are clipped in {len(clipping)} tensors: {_list(shares)}"
                )
        elif self.samples < SETTLES_FROM:
            told.append(f"{self.samples} samples are too few to tell whether ranges have settled")
        if self.unusable:
            told.append(f"no range for {len(self.unusable)} tensors: {_list(list(self.unusable))}")
        return tuple(told)

    def save(self, path: Path) -> None:
        """Write ``ranges.npz``: the same bytes for the same statistics.

        Raises:
            OutputError: it cannot be written.
        """
        from qcompile.ranges_file import write_ranges

        write_ranges(self, path)

    @classmethod
    def load(
        cls, path: Path, *, model_sha256: str | None = None, data_sha256: str | None = None
    ) -> Calibration:
        """Read what ``save`` wrote; hashes that are given must match.

        Raises:
            CalibrationError: no such file, not of this kind, or of another model or other data.
        """
        from qcompile.ranges_file import read_ranges

        return read_ranges(path, model_sha256=model_sha256, data_sha256=data_sha256)


def _within(limits: TensorRange, limit: float) -> TensorRange:
    """The part of the range up to a magnitude; all of it where nothing would be left."""
    if float(limits.high) <= -limit or float(limits.low) >= limit:
        return limits
    return replace(limits, low=np.maximum(limits.low, -limit), high=np.minimum(limits.high, limit))


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def converge(
    calibration: Calibration, earlier: Mapping[int, Mapping[str, TensorStore]]
) -> Convergence:
    """Compare the final ranges with those that ``earlier`` statistics give.

    Args:
        calibration: all the data.
        earlier: samples -> statistics after that many.
    """
    final = calibration.observed_ranges(calibration.method)
    spec = calibration.spec
    moved: dict[int, dict[str, float]] = {}
    methods = {name: limits.method for name, limits in final.items()}
    for count, stores in earlier.items():
        before = calibration.bounded(fit_ranges(stores, methods, spec))
        moved[count] = {name: relative_move(before[name], final[name]) for name in final}
    # The last quarter decides: with three quarters of the data, was the range already there?
    late = [n for n in moved if calibration.samples * 0.6 <= n <= calibration.samples * 0.8]
    moving: dict[str, float] = {}
    for count in late[-1:]:
        moving = {name: by for name, by in moved[count].items() if by > MOVING}
    enough = None
    if not moving:
        for count in sorted(moved, reverse=True):
            if any(by > MOVING for by in moved[count].values()):
                break
            enough = count
    fitted = calibration.bounded(fit_ranges(calibration.fit, methods, spec))
    clipped = {name: _outside(held, fitted[name], spec) for name, held in calibration.held.items()}
    return Convergence(enough, tuple(sorted(moving, key=lambda n: -moving[n])), clipped)


def relative_move(before: TensorRange, after: TensorRange) -> float:
    """How far an end went, as a share of the width; both ranges include zero."""
    low, high = min(float(after.low), 0.0), max(float(after.high), 0.0)
    if high == low:
        return 0.0 if float(before.low) == float(before.high) else 1.0
    ends = abs(min(float(before.low), 0.0) - low), abs(max(float(before.high), 0.0) - high)
    return max(ends) / (high - low)


def _outside(store: TensorStore, limits: TensorRange, spec: QuantSpec) -> float:
    """Share of the stored values that ``limits`` clip."""
    histogram = store.histogram
    if histogram.total == 0 or len(histogram.counts) == 0:
        return 0.0
    edges = histogram.edges
    upto = np.concatenate([[0], np.cumsum(histogram.counts)])
    low, high = min(float(limits.low), 0.0), max(float(limits.high), 0.0)
    # What lies less than a step beyond an end loses little more than rounding does; the least error
    # often puts an end just inside a crowd of values, as at the minimum of a HardSwish.
    step = float(solve(limits, spec).scale)
    inside = np.interp(high + step, edges, upto) - np.interp(low - step, edges, upto)
    return float((upto[-1] - inside) / histogram.total)
