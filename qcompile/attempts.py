"""Hands candidates to the gate, the best first, until one passes or the attempts are used up.

With --best-effort the fused float model is the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qcompile.build import Builder
from qcompile.float_only import nothing_integer, why_float
from qcompile.gate import Limits, judge
from qcompile.ir.errors import OptionError, PassError, QCompileError
from qcompile.ir.plan import FLOAT, PrecisionPlan
from qcompile.job import Job
from qcompile.needed import needed
from qcompile.oldest_runtime import oldest_runtime, parse_release
from qcompile.planner.race import Candidate
from qcompile.planner.search import Found
from qcompile.reporter import Reporter
from qcompile.verdict import GateResult

__all__ = ["ATTEMPTS", "pass_gate"]

ATTEMPTS = {"fast": 1, "default": 3, "max": 8}
"""How often the gate judges, by effort."""


def pass_gate(
    job: Job, found: Found, builder: Builder, reporter: Reporter
) -> tuple[Candidate, GateResult]:
    """The first candidate that the gate lets through; where none passes, the first one's verdict.

    A candidate that failed on accuracy is followed by the next more accurate one; one that failed on
    speed or size alone by the next in order, whatever its accuracy.

    Where nothing in the model could be integer, that is the verdict, and nothing runs.

    Raises:
        OptionError: every candidate needs a newer ONNX Runtime than --min-ort.
    """
    why = why_float(job.prepared) if job.prepared.target.ops else ""
    if why and found.order and not job.options.best_effort:
        return found.order[0], nothing_integer(why)
    fused, rule = _comparison(found, builder, reporter), needed(job)
    first: tuple[Candidate, GateResult] | None = None
    least: float | None = None
    tried = 0
    for candidate in _old_enough(job, found.order):
        if tried == ATTEMPTS[job.options.effort]:
            break
        reached = candidate.reached_db(rule)
        if least is not None and reached is not None and reached <= least:
            continue
        tried += 1
        result = _judge(job, candidate, job.limits(), reporter, fused, spins=found.spins)
        if result.exit_code == 0:
            return candidate, result
        first = first or (candidate, result)
        if any(check.name in ("accuracy", "metric", "steps") for check in result.failed):
            least = max(least or 0.0, reached or 0.0)
    if first is None:
        raise PassError("the search proposed no plan")
    if job.options.best_effort:
        return _fused_float(job, first, builder, reporter)
    return first


def _comparison(found: Found, builder: Builder, reporter: Reporter) -> Candidate | None:
    """The fused float model that the report shows beside the two; None where it cannot be built."""
    if not found.order:
        return None
    try:
        return _all_float(found.order[0], builder, "timed for the report")
    except QCompileError as e:
        reporter.note(f"the fused float model is not compared: {e}")
        return None


def _judge(
    job: Job,
    candidate: Candidate,
    limits: Limits,
    reporter: Reporter,
    fused: Candidate | None = None,
    *,
    spins: bool = True,
) -> GateResult:
    return judge(
        job.float_path,
        candidate.build.path,
        list(job.data.held),
        limits,
        metric=job.data.metric,
        names=job.data.held.names,
        slices=job.options.slices,
        extremes=job.data.extremes(),
        reference=job.reference,
        fused=None if fused is None else fused.build.path,
        rollout=job.rollout,
        selected=job.prepared.selected,
        threads=job.options.threads,
        budget_s=job.options.gate_time,
        spins=spins,
        custom_ops=job.options.custom_ops,
        progress=lambda _, share: reporter.advance(share, 1.0),
    )


def _fused_float(
    job: Job, first: tuple[Candidate, GateResult], builder: Builder, reporter: Reporter
) -> tuple[Candidate, GateResult]:
    """The prepared model without an integer in it; ``first`` where even that does not pass.

    It must not be slower than the user's model, but need not be as much faster as was asked of the
    quantized one.
    """
    refused = first[1]
    why = "nothing quantized passed the gate (--best-effort)"
    candidate = _all_float(first[0], builder, why)
    limits = replace(job.limits(), min_speedup=min(1.0, job.options.min_speedup))
    result = _judge(job, candidate, limits, reporter)
    if result.exit_code != 0:
        note = f"--best-effort: the fused float model does not pass either: {result.headline}"
        return first[0], replace(refused, notes=(*refused.notes, note))
    word = result.verdict.upper()
    figures = result.headline.removeprefix(word).lstrip(": ")
    return candidate, replace(
        result,
        headline=f"{word} IN FLOAT, since nothing quantized passed the gate: {figures}",
        notes=(*result.notes, f"quantized it was {refused.headline}"),
    )


def _all_float(first: Candidate, builder: Builder, why: str) -> Candidate:
    """The lowering of a plan without integers."""
    layers = first.build.plan.layers
    plan = PrecisionPlan(
        tuple(replace(c, precision=FLOAT, reason=why, pinned=False) for c in layers)
    )
    return Candidate("fused float", builder.build(plan))


def _old_enough(job: Job, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that --min-ort's ONNX Runtime opens."""
    if job.options.min_ort is None:
        return list(candidates)
    release = parse_release(job.options.min_ort)
    kept, needs = [], {}
    for candidate in candidates:
        oldest = oldest_runtime(candidate.build.lowered)
        if oldest.release is not None and oldest.release <= release:
            kept.append(candidate)
        else:
            needs[oldest.text or "one that is not known here"] = ", ".join(oldest.because)
    if candidates and not kept:
        least = min(needs)
        raise OptionError(
            f"--min-ort {job.options.min_ort}: the artifact needs ONNX Runtime {least} "
            f"({needs[least]}); pass --min-ort {least}, or export the model with an older opset"
        )
    return kept
