"""Chooses the range estimator by what it does to the model's outputs, not to single tensors.

The least reconstruction error of each tensor ("auto") is not always the least error at the output: a
clipped outlier may carry the decision. So every estimator is built once, whole, and run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from qcompile.build import Builder
from qcompile.calibrators.choose import estimators
from qcompile.ir.plan import PrecisionPlan
from qcompile.job import Job
from qcompile.planner.race import open_race
from qcompile.ranges import Ranges

__all__ = ["choose_ranges"]

AnyBuilder = TypeVar("AnyBuilder", bound=Builder)

GAIN_DB = 0.5
"""An estimator must beat "auto" by this much to replace it: the best of many is partly chance."""


def choose_ranges(
    job: Job,
    ranges: Ranges,
    builder: AnyBuilder,
    plan: PrecisionPlan,
    progress: Callable[[float, float | None], None],
) -> tuple[Ranges, AnyBuilder]:
    """The ranges of the estimator with the least output error on selection samples, and their builder.

    Ranges stay as they are where the user named the estimator or wants no choice, where they were
    replayed, and with ``--effort fast``.
    """
    options = job.options
    named = options.method != "auto" or not options.uses("range-choice")
    if ranges.calibration is None or named or options.effort == "fast":
        return ranges, builder
    race = open_race(job, builder)
    names = ("auto", *estimators(job.prepared.target.activation))
    best, best_db, first_db, name = builder, float("-inf"), float("-inf"), "auto"
    for count, method in enumerate(names):
        chosen = ranges.calibration.ranges(method)
        if method != "auto" and chosen == builder.ranges:
            continue
        folder = job.work / f"ranges{count}"
        folder.mkdir(exist_ok=True)
        trial = replace(builder, ranges=chosen, work=folder, _made={})
        race = replace(race, builder=trial)
        found = race.accuracy(method, plan)
        progress(count + 1, len(names))
        if found.refused or found.judged_db is None:
            continue
        if method == "auto":
            first_db = best_db = found.judged_db
        elif found.judged_db > max(best_db, first_db + GAIN_DB):
            best, best_db, name = trial, found.judged_db, method
    if name == "auto":
        return ranges, builder
    text = f"ranges by {name}: {best_db:.1f} dB at the output, {first_db:.1f} dB by each tensor's own best"
    return replace(ranges, chosen=best.ranges, findings=(*ranges.findings, text)), best
