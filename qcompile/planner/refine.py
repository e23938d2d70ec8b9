"""Refits the most promising artifacts: the same layers in the same kernels, with better numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as oir

from qcompile.build import Builder
from qcompile.ir.errors import CalibrationError
from qcompile.ir.plan import FLOAT
from qcompile.job import Job
from qcompile.needed import Needed, needed
from qcompile.planner.race import Candidate, Race
from qcompile.refit import refit_plan
from qcompile.reporter import Reporter

__all__ = ["gains", "may_refit", "refine", "refitted"]

GAIN_DB = 0.2
"""What a refit must gain on selection samples to be taken."""

SAME_SPEED = 0.06
"""Speed-ups closer than this share are within the noise of the race, which knows each to +-3 % at best."""

SAME_DB = 1.0
"""Accuracies closer than this are what a refit evens out."""

MORE_DB = 6.0
"""A candidate whose refit would have to gain this much more than the refits before it did, to be worth
more than the best so far, is not refitted."""


@dataclass(frozen=True)
class _Effort:
    candidates: int
    samples: int
    seconds: float
    sweeps: int


EFFORTS = {
    "fast": _Effort(0, 0, 0.0, 0),
    "default": _Effort(2, 32, 20.0, 2),
    "max": _Effort(5, 64, 120.0, 8),
}


def refine(
    job: Job,
    builder: Builder,
    race: Race,
    order: Sequence[Candidate],
    reporter: Reporter,
) -> list[Candidate]:
    """A better candidate for each of the most promising in ``order`` that a refit improves.

    Their latencies are those of the candidates they come from: only constants differ.
    """
    if not may_refit(job):
        return []
    effort = EFFORTS[job.options.effort]
    found: list[Candidate] = []
    # under a limit on accuracy or latency others than the best may be what is delivered
    by_worth = job.options.min_sqnr is None and job.options.max_latency is None
    most, best = 0.0, max((c.worth() for c in order[:1]), default=0.0)
    for count, candidate in enumerate(_promising(order, effort.candidates)):
        if count and by_worth and not _may_win(candidate, most + MORE_DB, best):
            continue
        portable = candidate.build.portable
        better = refitted(job, builder, race, candidate, portable, f"refit{count}")
        reporter.advance(count + 1, effort.candidates)
        if better is not None:
            found.append(better)
            most = max(most, (better.judged_db or 0.0) - (candidate.judged_db or 0.0))
            best = max(best, better.worth())
    return found


def may_refit(job: Job) -> bool:
    """Whether plans of a job are refitted at all."""
    wanted = job.options.uses("refit") and EFFORTS[job.options.effort].candidates > 0
    return wanted and not job.data.random


def _may_win(candidate: Candidate, gain_db: float, best: float) -> bool:
    """Whether a candidate with ``gain_db`` more would be worth more than ``best``."""
    if candidate.judged_db is None:
        return False
    return replace(candidate, blended_db=candidate.judged_db + gain_db).worth() > best


def _promising(order: Sequence[Candidate], most: int) -> list[Candidate]:
    """The first, the fastest other (whose accuracy may have been all that spoke against it), the next.

    One that is as fast and as accurate as another of them would only be refitted to the same.
    """
    fastest = max(order[1:], key=lambda c: c.speedup or 0.0, default=None)
    found: list[Candidate] = []
    for candidate in (*order[:1], *(() if fastest is None else (fastest,)), *order):
        if not any(_alike(candidate, known) for known in found):
            found.append(candidate)
    return found[:most]


def _alike(one: Candidate, other: Candidate) -> bool:
    if one is other:
        return True
    if None in (one.speedup, other.speedup, one.judged_db, other.judged_db):
        return False
    ratio = (one.speedup or 1.0) / (other.speedup or 1.0)
    apart = abs((one.judged_db or 0.0) - (other.judged_db or 0.0))
    return abs(ratio - 1.0) < SAME_SPEED and apart < SAME_DB


def refitted(
    job: Job,
    builder: Builder,
    race: Race,
    candidate: Candidate,
    portable: oir.Model,
    folder: str,
) -> Candidate | None:
    """The candidate's plan with refitted numbers; None where that gains nothing.

    Args:
        job: model, data, options.
        builder: what built the candidate.
        race: judges it.
        candidate: a plan, built.
        portable: its Q/DQ model, to be run node by node.
        folder: a name of its own in the work folder.
    """
    plan = candidate.build.plan
    if candidate.refused or candidate.judged_db is None:
        return None
    if all(choice.precision == FLOAT for choice in plan.layers):
        return None
    options, effort = job.options, EFFORTS[job.options.effort]
    feeds, judges = job.data.teaching(effort.samples)
    try:
        learned = refit_plan(
            builder.model,
            portable,
            builder.target,
            builder.ranges,
            plan,
            builder.learned,
            feeds,
            held=judges,
            time_budget_s=effort.seconds,
            memory_limit=None if options.memory_limit is None else options.memory_limit // 4,
            seed=options.seed,
            sweeps=effort.sweeps,
            threads=options.threads,
            custom_ops=options.custom_ops,
            given=builder.given,
        )
    except CalibrationError:
        return None
    work = job.work / folder
    work.mkdir(exist_ok=True)
    trial = replace(builder, learned=learned, work=work, _made={})
    judged = replace(race, builder=trial).accuracy(f"{candidate.name}, refitted", plan)
    if judged.refused or not gains(candidate, judged, needed(job)):
        return None
    return replace(judged, ms=candidate.ms, speedup=candidate.speedup)


def gains(before: Candidate, after: Candidate, rule: Needed) -> bool:
    """Whether a plan's other numbers are better: they keep a limit that was not kept, or noise falls."""
    kept = [rule.kept(one.sqnr_db, one.channels_db) for one in (before, after)]
    if kept[0] != kept[1]:
        return kept[1]
    return (after.judged_db or 0.0) >= (before.judged_db or 0.0) + GAIN_DB
