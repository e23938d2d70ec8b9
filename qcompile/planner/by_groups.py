"""A plan accurate enough, where nothing can be timed: the groups of layers that hurt most go back to float.

Neighbouring compute layers form a group; each is made integer alone and compared with float. Groups
then leave in the order of their error until the rest keeps the limit. What left comes back in halves
of halves, as long as the limit holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from qcompile.ir.plan import FLOAT, PrecisionPlan

__all__ = ["Tried", "accurate_plan"]

GROUPS = 8
RESTORES = 12
"""Plans built to bring layers back."""


@dataclass(frozen=True)
class Tried:
    """A plan and the least SQNR of its outputs in dB; None where there is no float output."""

    name: str
    plan: PrecisionPlan
    sqnr_db: float | None


def accurate_plan(
    start: PrecisionPlan,
    compute: frozenset[str],
    needed_db: float,
    measure: Callable[[PrecisionPlan], float | None],
) -> list[Tried]:
    """Plans that were tried; the last one is to be taken.

    Args:
        start: everything integer that can be, with the user's pins.
        compute: origin ids of compute layers.
        needed_db: what a plan must reach.
        measure: least SQNR of a plan's outputs.
    """
    first = Tried("all that can be integer", start, measure(start))
    tried = [first]
    layers = [
        c.origin
        for c in start.layers
        if c.precision != FLOAT and not c.pinned and c.origin in compute
    ]
    if first.sqnr_db is None or first.sqnr_db >= needed_db or not layers:
        return tried
    count = min(GROUPS, len(layers))
    edges = [len(layers) * i // count for i in range(count + 1)]
    groups = [layers[a:b] for a, b in pairwise(edges)]
    alone = {}
    for index, group in enumerate(groups):
        others = [o for o in layers if o not in group]
        only = start.with_choice(others, FLOAT, "another group is looked at")
        found = measure(only)
        alone[index] = float("inf") if found is None else found
    plan, left, gone = start, 0, []
    for index in sorted(alone, key=lambda i: alone[i]):
        reason = f"its part of the model alone reaches {alone[index]:.1f} dB"
        plan = plan.with_choice(groups[index], FLOAT, reason)
        left += len(groups[index])
        gone.append(groups[index])
        tried.append(Tried(f"{left} of {len(layers)} compute layers float", plan, measure(plan)))
        found = tried[-1].sqnr_db
        if found is None or found >= needed_db:
            return [*tried, *_restored(plan, start, gone, needed_db, measure)]
    best = max(tried, key=lambda t: float("inf") if t.sqnr_db is None else t.sqnr_db)
    return [*(t for t in tried if t is not best), best]


def _restored(
    plan: PrecisionPlan,
    start: PrecisionPlan,
    gone: list[list[str]],
    needed_db: float,
    measure: Callable[[PrecisionPlan], float | None],
) -> list[Tried]:
    """Plans in which parts of the groups that left are back; empty where none may come back."""
    first = start.by_origin()
    waiting = [half for group in reversed(gone) for half in _halves(group)]
    kept: list[Tried] = []
    back = 0
    for _ in range(RESTORES):
        if not waiting:
            break
        part = waiting.pop(0)
        choice = first[part[0]]
        trial = plan.with_choice(part, choice.precision, choice.reason)
        found = measure(trial)
        if found is None or found >= needed_db:
            plan, back = trial, back + len(part)
            kept.append(Tried(f"{back} compute layers back", plan, found))
        elif len(part) > 1:
            waiting += _halves(part)
    return kept


def _halves(group: list[str]) -> list[list[str]]:
    middle = len(group) // 2
    return [half for half in (group[:middle], group[middle:]) if half and len(group) > 1]
