"""Embeddings in 8 bits: for memory, so only where they cost neither accuracy nor time to speak of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from qcompile.build import Builder
from qcompile.ir.plan import FLOAT, INT8, TABLE, PrecisionPlan
from qcompile.job import Job
from qcompile.measure import measure_pair
from qcompile.needed import needed
from qcompile.passes.quantizable import Site
from qcompile.passes.store_tables import table_of
from qcompile.planner.clock import typical_feed
from qcompile.planner.costing import elsewhere
from qcompile.planner.race import open_race
from qcompile.planner.search import SECONDS_EACH
from qcompile.sizes import model_bytes

__all__ = ["store_tables"]

LEAST_BYTES = 1 << 18
LEAST_SHARE = 0.02
"""Of the model's bytes that a table must save: each costs three small kernels."""
ALONE_DB = 30.0
APART_DB = 10.0
"""By how much rounded tables alone must be more accurate than what is asked of the artifact."""
WORTH = 0.99
"""Share of a candidate's worth, at equal speed, that they must leave beside all that is integer."""
SLOWER = 0.97
"""Share of the speed that they may cost; refused where they cost more for certain."""
GROUPS = 6
"""Turns of timing below which nothing is certain."""


def store_tables(job: Job, builder: Builder, plan: PrecisionPlan) -> PrecisionPlan:
    """The plan with the tables marked that are kept in 8 bits, or with the reason why none is.

    Args:
        job: model, data, options.
        builder: builds plans, with the ranges that were chosen.
        plan: all that can be integer; a given one says of tables what it says.
    """
    integer = job.prepared.target.precision == INT8 and any(
        c.precision != FLOAT for c in plan.layers
    )
    names = _large(job, plan) if integer and job.options.plan is None else {}
    if not names or "store-tables" in job.options.disable:
        return plan
    saved = sum(names.values()) / 1e6
    marked = _marked(plan, names, f"kept in 8 bits, read as float: {saved:.1f} MB less")
    refused = _refusal(job, builder, plan, marked)
    if not refused:
        return marked
    return plan.with_choice(names, FLOAT, f"a table that 8 bits would make smaller, but {refused}")


def _large(job: Job, plan: PrecisionPlan) -> dict[str, int]:
    """Origins of Gathers whose table is worth its while -> bytes saved (a shared table once)."""
    whole = model_bytes(job.float_path) or 0
    least = max(LEAST_BYTES, LEAST_SHARE * whole)
    free = {c.origin for c in plan.layers if not c.pinned and c.precision == FLOAT}
    found: dict[str, int] = {}
    seen = set()
    for site in job.prepared.sites:
        array = table_of(site.node) if site.origin in free else None
        if array is None or not _read_by_lookups(site):
            continue
        value = site.node.inputs[0]
        saved = array.nbytes - array.size - 4 * array.shape[0]
        if saved >= least:
            found[site.origin] = 0 if value in seen else saved
            seen.add(value)
    return found


def _read_by_lookups(site: Site) -> bool:
    """Whether nothing else needs the float table."""
    value = site.node.inputs[0]
    uses = [] if value is None else value.uses()
    return all(use.node.op_type == "Gather" and use.idx == 0 for use in uses)


def _marked(plan: PrecisionPlan, names: Collection[str], why: str) -> PrecisionPlan:
    return PrecisionPlan(
        tuple(
            replace(c, precision=TABLE, reason=why, pinned=True) if c.origin in names else c
            for c in plan.layers
        )
    )


def _refusal(job: Job, builder: Builder, plan: PrecisionPlan, marked: PrecisionPlan) -> str:
    """Why the tables stay float, "" when they need not."""
    race = open_race(job, builder, SECONDS_EACH[job.options.effort])
    only = PrecisionPlan(tuple(c for c in marked.layers if c.precision == TABLE))
    alone = race.accuracy("tables in 8 bits", only)
    before = race.accuracy("float tables", plan)
    after = race.accuracy("tables in 8 bits, too", marked)
    if alone.judged_db is None or before.judged_db is None or after.judged_db is None:
        return alone.refused or before.refused or after.refused or "no float output tells the error"
    least = max(ALONE_DB, needed(job).whole_db + APART_DB)
    if alone.judged_db < least:
        return f"the output would have {alone.judged_db:.1f} dB by it alone ({least:.0f} needed)"
    if replace(after, speedup=1.0).worth() < WORTH * replace(before, speedup=1.0).worth():
        return f"the output would have {after.judged_db:.1f} dB, {before.judged_db:.1f} without"
    if job.options.costs is not None or elsewhere(job):
        return ""
    speed = measure_pair(
        before.build.path,
        after.build.path,
        [typical_feed(race.feeds)],
        load=False,
        threads=job.options.threads,
        budget_s=4 * race.seconds_each,
        custom_ops=job.options.custom_ops,
    ).speedup("artifact")
    if speed.count >= GROUPS and speed.high < SLOWER:
        return f"it would run at {speed.value:.2f} times the speed"
    return ""
