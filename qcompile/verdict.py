"""The words of a verdict, what each stands for, and the sentence that a run ends with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompile.compare import OutputResult
from qcompile.measure import SpeedResult
from qcompile.rollout import StepResult

__all__ = [
    "DELIVERED",
    "EXIT_CODES",
    "FAIL",
    "INCONCLUSIVE",
    "NOT_DELIVERED",
    "NOT_MEASURED",
    "PASS",
    "SKIPPED",
    "VAGUE",
    "Check",
    "GateResult",
    "ScoreResult",
    "conclude",
    "not_measured",
    "to_jsonable",
]

DELIVERED = "delivered"
NOT_DELIVERED = "not delivered"
NOT_MEASURED = "not measured"
INCONCLUSIVE = "inconclusive"

EXIT_CODES: Mapping[str, int] = {
    DELIVERED: 0,
    NOT_DELIVERED: 3,
    NOT_MEASURED: 0,
    INCONCLUSIVE: 0,
}

PASS, FAIL, VAGUE, SKIPPED = "pass", "fail", "inconclusive", "skipped"


@dataclass(frozen=True)
class Check:
    """One thing the gate looked at.

    Attributes:
        name: "opens", "interface", "runs", "finite", "accuracy", "metric", "speed", "latency",
            "size", or "layers" where nothing became integers.
        state: `PASS`, `FAIL`, `VAGUE` (an interval straddles the limit) or `SKIPPED`.
        text: one clause with the numbers, as the verdict's sentence takes it.
        found: the number, where there is one.
        limit: what it was held against.
        where: the output it belongs to, None for the model.
    """

    name: str
    state: str
    text: str
    found: float | None = None
    limit: float | None = None
    where: str | None = None


@dataclass(frozen=True)
class ScoreResult:
    """A user's metric on both models.

    Attributes:
        name: of the metric.
        float_score: of the float model.
        artifact_score: of the artifact.
        lower_is_better: direction.
        allowed: largest allowed worsening in the metric's unit.
        text: ``top1 0.870 -> 0.866 (-0.4pt of 0.5pt allowed)``.
        slices: slice -> (float, artifact), where the metric returns a score per slice.
    """

    name: str
    float_score: float
    artifact_score: float
    lower_is_better: bool
    allowed: float
    text: str
    slices: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def drop(self) -> float:
        """How much worse the artifact is, in the metric's unit; negative when it is better."""
        worse = self.float_score - self.artifact_score
        return -worse if self.lower_is_better else worse


@dataclass(frozen=True)
class GateResult:
    """The gate's verdict with everything it rests on.

    Attributes:
        verdict: "delivered", "not delivered", "not measured" or "inconclusive".
        headline: the sentence a run ends with.
        checks: in the order in which they were made.
        outputs: each output beside float's, over the held-back samples.
        speed: latency, load time, memory; None where it was not measured.
        score: the user's metric, None without one.
        float_bytes: size of the float model with its external data.
        artifact_bytes: size of the artifact with its external data.
        samples: held-back samples compared.
        notes: warnings and what could not be checked.
        steps: each output at the first, middle and last of N steps, where state is carried over.
    """

    verdict: str
    headline: str
    checks: tuple[Check, ...]
    outputs: tuple[OutputResult, ...] = ()
    speed: SpeedResult | None = None
    score: ScoreResult | None = None
    float_bytes: int | None = None
    artifact_bytes: int | None = None
    samples: int = 0
    notes: tuple[str, ...] = ()
    steps: tuple[StepResult, ...] = ()

    @property
    def delivered(self) -> bool:
        """Whether every check passed."""
        return self.verdict == DELIVERED

    @property
    def exit_code(self) -> int:
        """0, or 3 when a limit was not kept."""
        return EXIT_CODES[self.verdict]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(c for c in self.checks if c.state == FAIL)

    @property
    def speedup(self) -> float | None:
        """Float latency / artifact latency, None where not measured."""
        return self.speed.speedup("artifact").value if self.speed else None

    @property
    def sqnr_db(self) -> float | None:
        """The least SQNR of all float outputs, each as a whole; None without one."""
        found = [o.sqnr_db for o in self.outputs if o.sqnr_db is not None and not o.zero]
        return min(found, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-serializable dicts, lists, numbers and text."""
        found: dict[str, Any] = to_jsonable(self)
        found |= {
            "exit_code": self.exit_code,
            "speedup": self.speedup,
            "sqnr_db": self.sqnr_db,
        }
        return found


def conclude(
    checks: Sequence[Check],
    *,
    outputs: Sequence[OutputResult] = (),
    speed: SpeedResult | None = None,
    score: ScoreResult | None = None,
    float_bytes: int | None = None,
    artifact_bytes: int | None = None,
    samples: int = 0,
    notes: Sequence[str] = (),
    steps: Sequence[StepResult] = (),
) -> GateResult:
    """The verdict that the checks add up to: one failure decides, then one vague number."""
    states = {c.state for c in checks}
    if FAIL in states:
        verdict = NOT_DELIVERED
    elif VAGUE in states:
        verdict = INCONCLUSIVE
    else:
        verdict = DELIVERED
    result = GateResult(
        verdict=verdict,
        headline="",
        checks=tuple(checks),
        outputs=tuple(outputs),
        speed=speed,
        score=score,
        float_bytes=float_bytes,
        artifact_bytes=artifact_bytes,
        samples=samples,
        notes=tuple(notes),
        steps=tuple(steps),
    )
    return dataclasses.replace(result, headline=_headline(result))


def not_measured(reason: str, notes: Sequence[str] = ()) -> GateResult:
    """The verdict when the target's hardware is not here."""
    return GateResult(
        verdict=NOT_MEASURED,
        headline=f"NOT MEASURED: {reason}",
        checks=(Check("measured", SKIPPED, reason),),
        notes=tuple(notes),
    )


def _headline(result: GateResult) -> str:
    word = result.verdict.upper()
    if result.verdict == DELIVERED:
        figures = ", ".join(p for p in (_speed(result), _size(result), _accuracy(result)) if p)
        skipped = [c.text for c in result.checks if c.state == SKIPPED and c.found is not None]
        alone = [text for text in skipped if text not in figures]
        return "; ".join([f"{word} {figures}".strip(), *alone])
    wanted = FAIL if result.verdict == NOT_DELIVERED else VAGUE
    named = [c for c in result.checks if c.state == wanted]
    reasons = list(dict.fromkeys(c.text for c in named))
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    said = {c.name for c in named}
    parts = [_speed(result, ratio="speed" not in said), _size(result) if result.speed else ""]
    if not said & {"accuracy", "metric"}:
        parts.append(_accuracy(result))
    rest = ", ".join(p for p in parts if p)
    return f"{word}: {'; '.join(reasons[:3])}{more}" + (f" ({rest})" if rest else "")


def _speed(result: GateResult, *, ratio: bool = True) -> str:
    if result.speed is None:
        return next(
            (c.text for c in result.checks if c.name == "speed" and c.found is not None), ""
        )
    before, after = result.speed.models["float"].p50_ms, result.speed.models["artifact"].p50_ms
    threads = result.speed.threads
    how = "default threads" if threads is None else f"{threads} thread{'s' * (threads != 1)}"
    figures = f"{_ms(before)} -> {_ms(after)} ms p50, {how}, this CPU"
    return f"{faster(result.speed.speedup('artifact').value)} ({figures})" if ratio else figures


def faster(ratio: float) -> str:
    """A speed-up in words: "2.31x faster", "1.78x slower", "as fast".

    >>> faster(2.0), faster(0.5), faster(1.001)
    ('2.00x faster', '2.00x slower', 'as fast')
    """
    if f"{ratio:.2f}" == "1.00":
        return "as fast"
    return f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / max(ratio, 1e-9):.2f}x slower"


def _ms(value: float) -> str:
    """Two significant digits at least, so that a tiny model's latencies differ on paper too."""
    return f"{value:.1f}" if value >= 3 else f"{value:.2f}" if value >= 0.3 else f"{value:.3f}"


def _size(result: GateResult) -> str:
    if not result.float_bytes or not result.artifact_bytes:
        return ""
    ratio = result.float_bytes / result.artifact_bytes
    if f"{ratio:.1f}" == "1.0":
        return "same size"
    return f"{ratio:.1f}x smaller" if ratio > 1 else f"{1 / ratio:.1f}x larger"


def _accuracy(result: GateResult) -> str:
    if result.score is not None:
        return result.score.text
    if result.sqnr_db is None:
        return ""
    least = min(
        (o for o in result.outputs if o.sqnr_db is not None and not o.zero),
        key=lambda o: o.least_db or 0.0,
    )
    if not least.max_abs_error and not least.shape_differs:
        return "outputs equal"
    parts = [least.name] if len(result.outputs) > 1 else []
    group = least.worst_group
    if group is not None and group.sqnr_db == least.least_db:
        parts.append(f"{group.sqnr_db:.1f} dB in {group.text}")
    where = f" ({': '.join(parts)})" if parts else ""
    return f"SQNR {least.sqnr_db:.1f} dB{where}"


def to_jsonable(value: Any) -> Any:
    """Dataclasses, tuples and numpy scalars as JSON has them; non-finite floats become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(v) for v in value]
    if isinstance(value, np.generic):
        return to_jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
