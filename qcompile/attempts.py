"""Hands candidates to the gate, the best first, until one passes or the attempts are used up."""

from __future__ import annotations

from qcompile.gate import judge
from qcompile.ir.errors import PassError
from qcompile.job import Job
from qcompile.planner.race import Candidate
from qcompile.planner.search import Found
from qcompile.reporter import Reporter
from qcompile.verdict import GateResult

__all__ = ["pass_gate"]

ATTEMPTS = {"fast": 1, "default": 3, "max": 8}


def pass_gate(job: Job, found: Found, reporter: Reporter) -> tuple[Candidate, GateResult]:
    """The first candidate that the gate lets through; where none passes, the first one's verdict.

    A candidate that failed on accuracy is followed by the next more accurate one; one that failed on
    speed or size alone by the next in order, whatever its accuracy.
    """
    extremes = job.data.extremes()
    held = list(job.data.held)
    first: tuple[Candidate, GateResult] | None = None
    least: float | None = None
    tried = 0
    for candidate in found.order:
        if tried == ATTEMPTS[job.options.effort]:
            break
        if least is not None and candidate.sqnr_db is not None and candidate.sqnr_db <= least:
            continue
        tried += 1
        result = judge(
            job.float_path,
            candidate.build.path,
            held,
            job.limits(),
            metric=job.data.metric,
            names=job.data.held.names,
            slices=job.options.slices,
            extremes=extremes,
            threads=job.options.threads,
            budget_s=job.options.gate_time,
            custom_ops=job.options.custom_ops,
            progress=lambda _, share: reporter.advance(share, 1.0),
        )
        if result.exit_code == 0:
            return candidate, result
        first = first or (candidate, result)
        if any(check.name in ("accuracy", "metric") for check in result.failed):
            least = max(least or 0.0, candidate.sqnr_db or 0.0)
    if first is None:
        raise PassError("the search proposed no plan")
    return first
