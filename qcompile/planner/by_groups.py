"""A plan accurate enough, where nothing can be timed: the groups of layers that hurt most go back to float.

Neighbouring compute layers form a group; each is made integer alone and compared with float. Groups
then leave in the order of their error until the rest keeps the limit. What left comes back in halves
of halves, as long as the limit holds. Before any layer leaves, tensors that share a scale get their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from qcompile.ir.plan import FLOAT, PrecisionPlan

__all__ = ["Tried", "accurate_plan"]

GROUPS = 8
RESTORES = 12
"""Plans built to bring layers back."""


@dataclass(frozen=True)
class Tried:
    """A plan and the limit in dB that it just keeps (``Needed``); None without a float output."""

    name: str
    plan: PrecisionPlan
    sqnr_db: float | None


def accurate_plan(
    start: PrecisionPlan,
    compute: frozenset[str],
    needed_db: float,
    measure: Callable[[PrecisionPlan], float | None],
    settle: Callable[[PrecisionPlan], PrecisionPlan] = lambda plan: plan,
) -> list[Tried]:
    """Plans that were tried; the last one is to be taken.

    Args:
        start: everything integer that can be, with the user's pins.
        compute: origin ids of compute layers.
        needed_db: what a plan must reach.
        measure: the limit in dB that a plan's outputs just keep.
        settle: leaves out what a plan's float layers leave without purpose.
    """
    tried = [Tried("all that can be integer", start, measure(start))]
    layers = [
        c.origin
        for c in start.layers
        if c.precision != FLOAT and not c.pinned and c.origin in compute
    ]
    if _enough(tried[0], needed_db) or not layers:
        return tried
    apart = _apart(start, compute)
    if apart is not None:
        tried.append(Tried("each tensor with its own scale", apart, measure(apart)))
        if _enough(tried[-1], needed_db):
            return tried
        start = max(tried, key=_db).plan
    count = min(GROUPS, len(layers))
    edges = [len(layers) * i // count for i in range(count + 1)]
    groups = [layers[a:b] for a, b in pairwise(edges)]
    alone = {}
    for index, group in enumerate(groups):
        others = [o for o in layers if o not in group]
        only = settle(start.with_choice(others, FLOAT, "another group is looked at"))
        found = measure(only)
        alone[index] = float("inf") if found is None else found
    left: dict[str, str] = {}
    gone = []
    for index in sorted(alone, key=lambda i: alone[i]):
        reason = f"its part of the model alone reaches {alone[index]:.1f} dB"
        left |= dict.fromkeys(groups[index], reason)
        gone.append(groups[index])
        plan = settle(_without(start, left))
        tried.append(
            Tried(f"{len(left)} of {len(layers)} compute layers float", plan, measure(plan))
        )
        if _enough(tried[-1], needed_db):
            return [*tried, *_restored(start, left, gone, needed_db, measure, settle)]
    best = max(tried, key=_db)
    return [*(t for t in tried if t is not best), best]


def _db(tried: Tried) -> float:
    return float("inf") if tried.sqnr_db is None else tried.sqnr_db


def _enough(tried: Tried, needed_db: float) -> bool:
    return _db(tried) >= needed_db


def _apart(start: PrecisionPlan, compute: frozenset[str]) -> PrecisionPlan | None:
    """The plan in which nothing between layers makes tensors share a scale; None where nothing does."""
    joins = [c.origin for c in start.layers if c.op_type == "Concat" and c.precision != FLOAT]
    joins = [name for name in joins if name not in compute]
    plan = start.with_choice(joins, FLOAT, "one scale for its inputs costs accuracy")
    return None if plan == start else plan


def _without(start: PrecisionPlan, left: Mapping[str, str]) -> PrecisionPlan:
    """The plan with layers in float, each for its reason."""
    for reason in dict.fromkeys(left.values()):
        start = start.with_choice([o for o, why in left.items() if why == reason], FLOAT, reason)
    return start


def _restored(
    start: PrecisionPlan,
    left: Mapping[str, str],
    gone: list[list[str]],
    needed_db: float,
    measure: Callable[[PrecisionPlan], float | None],
    settle: Callable[[PrecisionPlan], PrecisionPlan],
) -> list[Tried]:
    """Plans in which parts of the groups that left are back; empty where none may come back."""
    waiting = [half for group in reversed(gone) for half in _halves(group)]
    kept: list[Tried] = []
    for _ in range(RESTORES):
        if not waiting:
            break
        part = waiting.pop(0)
        trial = {o: why for o, why in left.items() if o not in part}
        plan = settle(_without(start, trial))
        found = measure(plan)
        if found is None or found >= needed_db:
            back = sum(map(len, gone)) - len(trial)
            left = trial
            kept.append(Tried(f"{back} compute layers back", plan, found))
        elif len(part) > 1:
            waiting += _halves(part)
    return kept


def _halves(group: list[str]) -> list[list[str]]:
    middle = len(group) // 2
    return [half for half in (group[:middle], group[middle:]) if half and len(group) > 1]
