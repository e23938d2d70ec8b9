"""What an artifact is held against, and how each number is held against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from qcompile.compare import OutputResult, db
from qcompile.enough import Enough
from qcompile.interval import Interval
from qcompile.ir.errors import OptionError
from qcompile.needed import Needed
from qcompile.rollout import StepResult
from qcompile.row_sums import Rows
from qcompile.units import Drop
from qcompile.verdict import FAIL, PASS, VAGUE, Check, ScoreResult

__all__ = [
    "Limits",
    "Metric",
    "PairMetric",
    "accuracy_checks",
    "compare_scores",
    "named_metric",
    "output_notes",
    "score_checks",
    "scores",
    "size_checks",
    "speed_check",
    "step_checks",
    "timed_enough",
]

Outputs = Mapping[str, Any]
Run = Callable[[Outputs], Outputs]

CLEAR = 0.1
"""A speed-up far from what is needed is known well enough to +-10 %; the report has its interval."""

DEFAULT_DROP = Drop(0.01, relative=True)


class Metric(Protocol):
    """A named score; ``fn`` gets ``run(feed) -> outputs`` and returns a number, or one per slice."""

    @property
    def name(self) -> str:
        """For the report."""

    @property
    def fn(self) -> Callable[[Any], Any]:
        """The score."""

    @property
    def lower_is_better(self) -> bool:
        """Direction."""


@runtime_checkable
class PairMetric(Protocol):
    """A named score of both models from what the gate runs anyway."""

    @property
    def name(self) -> str:
        """For the report."""

    @property
    def lower_is_better(self) -> bool:
        """Direction."""

    def take(self, feed: Outputs, ref: Outputs, got: Outputs, rows: Mapping[str, Rows]) -> None:
        """Take in a sample, float's outputs, the artifact's, and what is known of their rows."""

    def both(self) -> tuple[float, float]:
        """Float's score, the artifact's."""


@dataclass(frozen=True)
class Limits:
    """What the artifact is held against.

    Attributes:
        min_speedup: least ratio of latencies, float / artifact.
        max_drop: how much worse the metric may become; None: 1 % of float's score.
        min_sqnr: least SQNR in dB of every float output, and of the worst slice. None: 10 without
            a metric, nothing with one. Kinds of channels in one output (`channel_groups`) need
            10 dB each, or this where it is less.
        min_agreement: least share of equal elements of integer outputs, where SQNR is asked for.
        max_latency_ms: p50.
        max_bytes: size of the artifact with its external data.
    """

    min_speedup: float = 1.0
    max_drop: Drop | None = None
    min_sqnr: float | None = None
    min_agreement: float = 0.9
    max_latency_ms: float | None = None
    max_bytes: int | None = None


@dataclass(frozen=True)
class _Plain:
    name: str
    fn: Callable[[Any], Any]
    lower_is_better: bool


def named_metric(metric: Metric | PairMetric | Callable[[Run], Any]) -> Metric | PairMetric:
    """A metric as it is; a plain callable under its own name and direction."""
    if callable(metric):
        lower = bool(getattr(metric, "lower_is_better", False))
        return _Plain(getattr(metric, "__name__", "metric"), metric, lower)
    return metric


def accuracy_checks(output: OutputResult, limit: float, agreement: float) -> list[Check]:
    """The checks of one output: all samples together, then the worst slice and kind of channels."""
    where = f"output '{output.name}'"
    if output.kind != "float":
        found = 1.0 if output.agreement is None else output.agreement
        text = f"{where} agrees in {found:.1%} ({agreement:.0%} needed)"
        return [
            Check("accuracy", PASS if found >= agreement else FAIL, text, found, agreement, where)
        ]
    if output.zero:
        # nothing to relate an error to: 10 dB below the smallest signal worth the name
        small = output.max_abs_error <= 1e-3
        text = f"{where} is zero in float and up to {output.max_abs_error:.3g} here (0.001 allowed)"
        return [Check("accuracy", PASS if small else FAIL, text, output.max_abs_error, 1e-3, where)]
    value = db(0.0, 1.0) if output.sqnr_db is None else output.sqnr_db
    text = f"{where} SQNR {value:.1f} dB ({limit:g} dB needed)"
    checks = [Check("accuracy", PASS if value >= limit else FAIL, text, value, limit, where)]
    if output.slices:
        label, least = min(output.slices.items(), key=lambda item: item[1])
        text = f"{where} SQNR {least:.1f} dB in slice '{label}' ({limit:g} dB needed)"
        checks.append(
            Check("accuracy", PASS if least >= limit else FAIL, text, least, limit, where)
        )
    group = output.worst_group
    if group is not None:
        least, limit = group.sqnr_db, Needed.of(limit).kind_db
        text = f"{where} SQNR {least:.1f} dB in {group.text} ({limit:g} dB needed)"
        checks.append(
            Check("accuracy", PASS if least >= limit else FAIL, text, least, limit, where)
        )
    return checks


def step_checks(row: StepResult, limit: float) -> list[Check]:
    """The checks of one output after N steps; a state is judged by what it does to the outputs."""
    if row.state or row.sqnr_db is None:
        return []
    needed = Needed.of(limit)
    found = [(row.sqnr_db, "", needed.whole_db)]
    if row.channels_db is not None:
        found.append((row.channels_db, " in its worst kind of channels", needed.kind_db))
    return [
        Check(
            "steps",
            PASS if value >= least else FAIL,
            f"output '{row.output}' SQNR {value:.1f} dB{kind} at step {row.step} with the state "
            f"rolled back in ({least:g} dB needed)",
            value,
            least,
            where=row.output,
        )
        for value, kind, least in found
    ]


def scores(metric: Metric, run: Callable[[Any], Any]) -> dict[str, float]:
    """Score by slice; a plain number stands under ""."""
    found = metric.fn(run)
    if isinstance(found, Mapping):
        if not found:
            raise ValueError("it returned no score")
        return {str(k): float(v) for k, v in found.items()}
    return {"": float(found)}


def score_checks(
    metric: Metric | PairMetric,
    before: Mapping[str, float],
    after: Mapping[str, float],
    limits: Limits,
) -> tuple[list[Check], ScoreResult]:
    """A check for each slice, and the score: of the whole, else of the worst slice with all beside it.

    Raises:
        OptionError: float's own score is no finite number.
    """
    results = {
        key: compare_scores(metric, key, before[key], after.get(key, math.nan), limits)
        for key in before
    }
    checks = [
        # not <=, so that NaN fails
        Check(
            "metric",
            PASS if one.drop <= one.allowed else FAIL,
            one.text,
            one.drop,
            one.allowed,
            where=key or None,
        )
        for key, one in results.items()
    ]
    worst = max(results.values(), key=lambda s: math.inf if math.isnan(s.drop) else s.drop)
    slices = {k: (s.float_score, s.artifact_score) for k, s in results.items()}
    return checks, worst if "" in results else replace(worst, slices=slices)


def compare_scores(
    metric: Metric | PairMetric, key: str, before: float, after: float, limits: Limits
) -> ScoreResult:
    """Float's score beside the artifact's; ``key`` is the slice, "" for the whole.

    Raises:
        OptionError: float's own score is no finite number.
    """
    if not math.isfinite(before):
        raise OptionError(f"metric '{metric.name}' is {before} on the float model")
    drop = limits.max_drop or DEFAULT_DROP
    allowed = drop.allowed(before)
    change = (after - before) * (-1 if metric.lower_is_better else 1)
    unit, factor = ("%", 100 / abs(before) if before else 0.0) if drop.relative else ("pt", 100.0)
    signed = f"{change * factor:+.2g}{unit}"
    name = f"{metric.name} [{key}]" if key else metric.name
    digits = 3 if abs(before) < 10 else 2
    return ScoreResult(
        name=name,
        float_score=before,
        artifact_score=after,
        lower_is_better=metric.lower_is_better,
        allowed=allowed,
        text=f"{name} {before:.{digits}f} -> {after:.{digits}f} ({signed} of {drop} allowed)",
    )


def output_notes(output: OutputResult) -> list[str]:
    """What makes an output's numbers say less than they seem to."""
    notes = []
    if output.ignored:
        notes.append(
            f"output '{output.name}': float itself gives NaN or infinity in "
            f"{output.ignored} places, which were left out"
        )
    if output.shape_differs:
        notes.append(
            f"output '{output.name}': another number of results than float in "
            f"{output.shape_differs} samples, counted as if nothing matched"
        )
    if output.near_constant and not output.zero:
        notes.append(
            f"output '{output.name}' hardly differs between the samples (saturated, or the "
            f"samples are too alike): its SQNR says little; largest error "
            f"{output.max_abs_error:.3g} at a peak of {output.peak:.3g}"
        )
    if output.groups:
        kinds = [f"{g.text} {g.sqnr_db:.1f} dB (peak {g.peak:.3g})" for g in output.groups]
        notes.append(
            f"output '{output.name}' holds channels of different magnitude, each kind judged by "
            f"itself: {'; '.join(kinds)}"
        )
    return notes


def size_checks(found: int | None, limit: int | None) -> list[Check]:
    """The artifact's bytes beside what is allowed, where something was asked."""
    if found is None or limit is None:
        return []
    text = f"size {found / 1e6:.2f} MB ({limit / 1e6:.2f} MB allowed)"
    return [Check("size", PASS if found <= limit else FAIL, text, float(found), float(limit))]


def timed_enough(limits: Limits) -> Enough:
    """How closely latencies must be known: the nearer the speed-up is to its limit, the closer.

    A limit in milliseconds is held against the latency itself, which is known as closely as it can be.
    """
    if limits.max_latency_ms is not None:
        return Enough()
    return Enough(loose=CLEAR, limit=limits.min_speedup, beside=("fused",))


def speed_check(ratio: Interval, limit: float) -> Check:
    """Only an interval wholly below the limit fails."""
    state = FAIL if ratio.high < limit else VAGUE if ratio.low < limit else PASS
    # near the limit two digits would read as equal
    digits = 3 if abs(ratio.value - limit) < 0.05 or ratio.value < 0.5 else 2
    reach = ratio.reach(digits)
    text = f"{ratio.value:.{digits}f}x the speed of float ({reach}; {limit:g}x needed)"
    return Check("speed", state, text, ratio.value, limit)
