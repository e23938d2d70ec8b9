"""Which plan a budget buys: the exact hull of latency and error, then flips between its points."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, inf, log10, sqrt

from qcompile.ir.errors import BudgetError
from qcompile.ir.plan import FLOAT
from qcompile.planner.energy import Energy, Labels
from qcompile.planner.flips import fill
from qcompile.planner.problem import Problem

__all__ = ["PlanPoint", "knee", "pareto", "pareto_json", "solve_budget"]

PARETO_VERSION = 1

_CLOSE = 1e-3
"""Neighbours on the hull this close (relative) are not filled between: that is all there is to gain.
(5,000 sites: 0.5 s a budget instead of 9 s.)"""


@dataclass(frozen=True)
class PlanPoint:
    """One plan with what it is predicted to cost.

    Attributes:
        labels: origin -> precision.
        latency_ns: predicted latency.
        error: predicted relative output error energy (a linear ratio: 0.01 is 20 dB).
        found_by: "hull" (optimal for its trade-off), "flips" or "expansion" (heuristics).
        ns_per_error: the trade-off for which a hull point is optimal: nanoseconds that one unit
            of relative error energy is worth; None for other points.
    """

    labels: Mapping[str, str]
    latency_ns: int
    error: float
    found_by: str
    ns_per_error: float | None = None

    @property
    def sqnr_db(self) -> float:
        """The error as SQNR."""
        return inf if self.error == 0 else -10 * log10(self.error)


@dataclass(frozen=True)
class _Point:
    labels: Labels
    ns: int
    units: int
    error: float
    weights: tuple[int, int]


class _Hull:
    """Exact hull points of a problem, on demand."""

    def __init__(self, problem: Problem) -> None:
        self.energy = Energy(problem)

    def at(self, latency_weight: int, error_weight: int) -> _Point:
        common = gcd(latency_weight, error_weight) or 1
        weights = (latency_weight // common, error_weight // common)
        labels = self.energy.solve(*weights)
        e = self.energy
        return _Point(
            labels, e.total_ns(labels), e.total_units(labels), e.total_error(labels), weights
        )

    def fastest(self) -> _Point:
        """Least latency, among those the least error."""
        return self.at(self.energy.most_units, 1)

    def finest(self) -> _Point:
        """Least error, among those the least latency."""
        return self.at(1, self.energy.most_ns)

    def between(self, slow: _Point, fast: _Point) -> _Point | None:
        """The hull point farthest below the line of two others, None when they are neighbours."""
        a, b = fast.units - slow.units, slow.ns - fast.ns
        if a <= 0 or b <= 0:
            return None
        new = self.at(a, b)
        if a * new.ns + b * new.units >= a * slow.ns + b * slow.units:
            return None
        return new

    def point(self, labels: Labels, found_by: str, weights: tuple[int, int] | None) -> PlanPoint:
        e = self.energy
        scale = e.unit_error
        worth = None if weights is None or not weights[0] else weights[1] / weights[0] / scale
        return PlanPoint(
            e.named(labels), e.total_ns(labels), e.total_error(labels), found_by, worth
        )

    def hull_point(self, p: _Point) -> PlanPoint:
        return self.point(p.labels, "hull", p.weights)


def solve_budget(
    problem: Problem, *, max_error: float | None = None, max_latency_ns: int | None = None
) -> PlanPoint:
    """The best plan within a budget.

    With ``max_error`` (alone or with a latency limit) the fastest plan that keeps it, with only
    ``max_latency_ns`` the one of least error, with neither the knee of the Pareto front.

    Args:
        problem: sites, tensors, costs.
        max_error: limit on the relative error energy (``10 ** (-dB / 10)``).
        max_latency_ns: limit on the predicted latency.

    Raises:
        BudgetError: no plan keeps the limits; the text names the nearest one.
    """
    if max_error is None and max_latency_ns is None:
        return knee(pareto(problem))
    hull = _Hull(problem)
    fast, fine = hull.fastest(), hull.finest()
    if max_error is not None:
        best = _within(hull, fine, fast, max_error, on_error=True)
        if best is None:
            raise BudgetError(
                f"no plan keeps the error below {max_error:.3g}: the sites pinned to integers alone "
                f"cause {fine.error:.3g}; allow more error or unpin some"
            )
        if max_latency_ns is not None and best.latency_ns > max_latency_ns:
            raise BudgetError(
                f"no plan found is within {max_latency_ns / 1e6:.3f} ms and error {max_error:.3g}: "
                f"the fastest with that error is predicted at {best.latency_ns / 1e6:.3f} ms; "
                "allow more of one of them"
            )
        return best
    limit = max_latency_ns if max_latency_ns is not None else 0
    best = _within(hull, fast, fine, limit, on_error=False)
    if best is None:
        raise BudgetError(
            f"no plan is within {limit / 1e6:.3f} ms: the fastest is predicted at "
            f"{fast.ns / 1e6:.3f} ms; allow more latency"
        )
    return best


def _within(
    hull: _Hull, inside: _Point, outside: _Point, limit: float, *, on_error: bool
) -> PlanPoint | None:
    """Descend the hull to the two neighbours around ``limit``, then fill the gap by flips."""

    def keeps(p: _Point) -> bool:
        return (p.error if on_error else p.ns) <= limit

    if not keeps(inside):
        return None
    if keeps(outside):
        return hull.hull_point(outside)
    while True:
        new = hull.between(*((inside, outside) if on_error else (outside, inside)))
        if new is None:
            break
        if keeps(new):
            inside = new
        else:
            outside = new
    best, bound = (inside.ns, outside.ns) if on_error else (inside.error, outside.error)
    if best - bound <= _CLOSE * best:
        return hull.hull_point(inside)
    labels = fill(hull.energy, inside.labels, outside.labels, limit, on_error=on_error)
    if (labels == inside.labels).all():
        return hull.hull_point(inside)
    return hull.point(labels, "flips", None)


def pareto(problem: Problem, *, max_points: int = 48, gap: float = 0.03) -> list[PlanPoint]:
    """Plans from the fastest to the most accurate, none dominated by another.

    Args:
        problem: sites, tensors, costs.
        max_points: how many hull points at most; the widest gaps are opened first.
        gap: latency gap (relative) between hull points from which flips look for a plan between.
    """
    hull = _Hull(problem)
    fast, fine = hull.fastest(), hull.finest()
    points = [fast] if fast.ns == fine.ns or fast.units == fine.units else [fast, fine]
    edges: list[tuple[float, int, _Point, _Point]] = []
    opened = 0

    def push(slow: _Point, quick: _Point) -> None:
        nonlocal opened
        area = (
            (slow.ns - quick.ns)
            / max(1, fine.ns)
            * (log10(1 + quick.units) - log10(1 + slow.units))
        )
        heapq.heappush(edges, (-area, opened, slow, quick))
        opened += 1

    if len(points) == 2:
        push(fine, fast)
    while edges and len(points) < max_points:
        _, _, slow, quick = heapq.heappop(edges)
        new = hull.between(slow, quick)
        if new is not None:
            points.append(new)
            push(slow, new)
            push(new, quick)
    points.sort(key=lambda p: (p.ns, p.error))
    found = [hull.hull_point(p) for p in points]
    wide = sorted(
        (q.ns / max(1, p.ns), i)
        for i, (q, p) in enumerate(zip(points[1:], points, strict=False))
        if q.ns > (1 + gap) * p.ns
    )
    for _, i in wide[::-1][:16]:
        quick, slow = points[i], points[i + 1]
        middle = sqrt(max(slow.error, quick.error * 1e-3) * quick.error)
        labels = fill(hull.energy, slow.labels, quick.labels, middle, on_error=True)
        found.append(hull.point(labels, "flips", None))
    return _undominated(found)


def _undominated(points: Sequence[PlanPoint]) -> list[PlanPoint]:
    kept: list[PlanPoint] = []
    for p in sorted(points, key=lambda p: (p.latency_ns, p.error, p.found_by != "hull")):
        if not kept or p.error < kept[-1].error:
            kept.append(p)
    return kept


def knee(front: Sequence[PlanPoint]) -> PlanPoint:
    """The point of a front where more speed starts to cost much more error.

    Latency in shares of the slowest, error as amplitude (square root of energy): the point farthest
    below the line between the ends (Satopaa et al. 2011, "Finding a kneedle in a haystack").
    """
    if not front:
        raise BudgetError("the front has no plan to choose from")
    first, last = front[0], front[-1]
    across = last.latency_ns - first.latency_ns
    down = sqrt(first.error) - sqrt(last.error)
    if across <= 0 or down <= 0:
        return first

    def below(p: PlanPoint) -> float:
        x = (p.latency_ns - first.latency_ns) / across
        y = (sqrt(p.error) - sqrt(last.error)) / down
        return 1 - x - y

    return max(front, key=lambda p: (below(p), -p.latency_ns))


def pareto_json(front: Sequence[PlanPoint]) -> str:
    """Deterministic JSON text of a front: one plan a line, sites that are not float by precision."""
    rows = []
    for p in front:
        sites: dict[str, list[str]] = {}
        for origin, label in p.labels.items():
            if label != FLOAT:
                sites.setdefault(label, []).append(origin)
        row = {
            "latency_ns": p.latency_ns,
            "error": p.error,
            "sqnr_db": None if p.error == 0 else round(p.sqnr_db, 3),
            "found_by": p.found_by,
            "ns_per_error": p.ns_per_error,
            "sites": sites,
        }
        rows.append("  " + json.dumps(row, sort_keys=True))
    body = ",\n".join(rows)
    return f'{{"version": {PARETO_VERSION}, "points": [\n{body}\n]}}\n'
