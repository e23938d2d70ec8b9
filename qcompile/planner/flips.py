"""Local search between the hull's plans: flips of one site, of two, and of whole regions.

The cut reaches only the convex hull of latency and error. Between two neighbours of the hull, plans
off the hull may use a budget better; they are found by changing a few sites. A heuristic: what it
returns keeps the limit and is never worse than the hull point it started from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.planner.energy import DYNAMIC, INTEGER, NONE, PLAIN, Energy, Labels

__all__ = ["Flips", "fill"]

_PAIR_CANDIDATES = 192
_PAIR_ROUNDS = 40
_NOISE = 1e-12
"""Changes of the error sum below this share of it are rounding, not gains."""

_FREE = (0, 0.0)

_TINY = 1e-30
"""Divides where a change is nothing."""

Assignment = Sequence[tuple[int, int]]
"""(site, label) pairs."""


@dataclass(frozen=True)
class _Move:
    change: Assignment
    group: int
    tensors: tuple[int, ...]


class Flips:
    """A labelling that knows what each flip would change, kept up to date flip by flip.

    Attributes:
        ns: latency of the current labelling, nanoseconds.
        error: its relative error energy.
        by_ns: for each move the change of ``ns``.
        by_error: for each move the change of ``error``; infinite for moves that change nothing.
    """

    def __init__(self, energy: Energy, labels: Labels) -> None:
        self.energy = energy
        self._latency: list[list[int]] = energy.latency.tolist()
        self._error: list[list[float]] = energy.error.tolist()
        self._writes_float: list[bool] = energy.writes_float.tolist()
        self._group: list[int] = energy.group.tolist()
        tensors = energy.problem.tensors
        self._quantize = [(t.quantize_ns, 0.0) for t in tensors]
        self._dequantize = [(t.dequantize_ns, t.write_error) for t in tensors]
        self._float_read = [t.float_read for t in tensors]
        self._reads: list[list[int]] = [[] for _ in energy.problem.nodes]
        self._writes: list[list[int]] = [[] for _ in energy.problem.nodes]
        self._groups_at: list[list[int]] = []
        for t, (producer, consumers) in enumerate(energy.ends):
            for c in consumers:
                self._reads[c].append(t)
            if producer >= 0:
                self._writes[producer].append(t)
            ends = [*consumers, producer] if producer >= 0 else consumers
            self._groups_at.append(sorted({self._group[i] for i in ends}))
        self._labels: list[int] = [int(i) for i in labels]
        self._integer_readers = [
            sum(self._labels[c] == INTEGER for c in consumers) for _, consumers in energy.ends
        ]
        self.ns = energy.total_ns(labels)
        self.error = energy.total_error(labels)
        self._moves = list(self._all_moves())
        self._moves_of: list[list[int]] = [[] for _ in energy.members]
        for m, move in enumerate(self._moves):
            self._moves_of[move.group].append(m)
        self.by_ns = np.zeros(len(self._moves), dtype=np.int64)
        self.by_error = np.full(len(self._moves), np.inf)
        self._refresh(range(len(energy.members)))

    @property
    def labels(self) -> Labels:
        """A copy of the current labelling."""
        return np.array(self._labels, dtype=np.int8)

    def neighbours(self, move: int) -> list[int]:
        """Later moves of other groups that share a tensor with ``move``."""
        found: set[int] = set()
        for t in self._moves[move].tensors:
            if len(self._groups_at[t]) > 32:  # a mask read by every layer couples nothing closely
                continue
            for g in self._groups_at[t]:
                if g != self._moves[move].group:
                    found.update(m for m in self._moves_of[g] if m > move)
        return sorted(found)

    def apply(self, move: int) -> Assignment:
        """Do a move; returns the assignment that undoes it."""
        return self.assign(self._moves[move].change)

    def assign(self, change: Assignment) -> Assignment:
        """Set sites to labels; returns the assignment that undoes it."""
        undo, touched, delta_ns, delta_error = self._set(change)
        self.ns += delta_ns
        self.error += delta_error
        groups = {self._group[i] for i, _ in change}
        for t in touched:
            groups.update(self._groups_at[t])
        self._refresh(sorted(groups))
        return undo

    def price(self, change: Assignment) -> tuple[int, float]:
        """What an assignment would change: nanoseconds and error."""
        undo, _, delta_ns, delta_error = self._set(change)
        self._set(undo)
        return delta_ns, delta_error

    def pair(self, first: int, second: int) -> Assignment:
        """Two moves as one assignment."""
        return (*self._moves[first].change, *self._moves[second].change)

    def disjoint(self, first: int, second: int) -> bool:
        """Whether two moves change different groups."""
        return self._moves[first].group != self._moves[second].group

    def _set(self, change: Assignment) -> tuple[Assignment, set[int], int, float]:
        touched: set[int] = set()
        for i, _ in change:
            touched.update(self._reads[i])
            touched.update(self._writes[i])
        ns, error = self._conversions(touched)
        ns, error = -ns, -error
        undo: list[tuple[int, int]] = []
        for i, label in change:
            old = self._labels[i]
            undo.append((i, old))
            ns += self._latency[i][label] - self._latency[i][old]
            error += self._error[i][label] - self._error[i][old]
            step = (label == INTEGER) - (old == INTEGER)
            if step:
                for t in self._reads[i]:
                    self._integer_readers[t] += step
            self._labels[i] = label
        after_ns, after_error = self._conversions(touched)
        undo.reverse()
        return undo, touched, ns + after_ns, error + after_error

    def _conversions(self, tensors: Iterable[int]) -> tuple[int, float]:
        total_ns, total_error = 0, 0.0
        for t in tensors:
            ns, error = self._conversion(t)
            total_ns += ns
            total_error += error
        return total_ns, total_error

    def _conversion(self, t: int) -> tuple[int, float]:
        producer, consumers = self.energy.ends[t]
        readers = self._integer_readers[t]
        if producer >= 0 and self._labels[producer] == INTEGER and not self._writes_float[producer]:
            return self._dequantize[t] if self._float_read[t] or readers < len(consumers) else _FREE
        return self._quantize[t] if readers else _FREE

    def _all_moves(self) -> Iterable[_Move]:
        latency = self._latency
        for g, members in enumerate(self.energy.members):
            tensors = tuple(
                sorted({t for i in members for t in (*self._reads[i], *self._writes[i])})
            )
            options: set[tuple[tuple[int, int], ...]] = set()
            if all(latency[i][INTEGER] != NONE for i in members):
                options.add(tuple((i, INTEGER) for i in members))
            for wanted, other in ((PLAIN, DYNAMIC), (DYNAMIC, PLAIN)):
                change = tuple(
                    (i, wanted if latency[i][wanted] != NONE else other) for i in members
                )
                if all(latency[i][label] != NONE for i, label in change):
                    options.add(change)
            for option in sorted(options):
                yield _Move(option, g, tensors)

    def _refresh(self, groups: Iterable[int]) -> None:
        for g in groups:
            for m in self._moves_of[g]:
                change = self._moves[m].change
                if all(self._labels[i] == label for i, label in change):
                    self.by_ns[m], self.by_error[m] = 0, np.inf
                else:
                    self.by_ns[m], self.by_error[m] = self.price(change)


def fill(
    energy: Energy, inside: Labels, outside: Labels | None, limit: float, *, on_error: bool
) -> Labels:
    """The best labelling found that keeps a limit, between two hull points around it.

    Args:
        energy: of the problem.
        inside: hull point that keeps the limit.
        outside: its neighbour on the hull that does not, or None.
        limit: on the error when ``on_error``, else on nanoseconds; the other one is minimised.
        on_error: which of the two is limited.
    """
    starts = [Flips(energy, inside)]
    if outside is not None:
        regions = Flips(energy, inside)
        _take_regions(regions, outside, limit, on_error)
        starts.append(regions)
        back = Flips(energy, outside)
        if _repair(back, limit, on_error):
            starts.append(back)
    results: list[tuple[float, float, int, Labels]] = []
    for flips in starts:
        for by_ratio in (True, False):
            search = Flips(energy, flips.labels)
            _improve(search, limit, on_error, by_ratio)
            objective, constraint = _sums(energy, search.labels, on_error)
            if constraint <= limit:
                results.append((objective, constraint, len(results), search.labels))
    return min(results)[3] if results else inside


def _sums(energy: Energy, labels: Labels, on_error: bool) -> tuple[float, float]:
    ns, error = float(energy.total_ns(labels)), energy.total_error(labels)
    return (ns, error) if on_error else (error, ns)


def _views(
    flips: Flips, on_error: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float, float]:
    """Changes of objective and of constraint for each move, constraint now, objective's noise."""
    ns = flips.by_ns.astype(np.float64)
    ns[np.isinf(flips.by_error)] = np.inf
    if on_error:
        return ns, flips.by_error, flips.error, 0.5
    return flips.by_error, ns, float(flips.ns), _NOISE * max(flips.error, _NOISE)


def _take_regions(flips: Flips, other: Labels, limit: float, on_error: bool) -> None:
    """Turn connected regions where ``other`` differs to its labels, the most rewarding first."""
    for _ in range(2):
        priced = []
        for region in _regions(flips.energy, flips.labels, other):
            change = [(i, int(other[i])) for i in region]
            ns, error = flips.price(change)
            gain, price = (-ns, error) if on_error else (-error, ns)
            if gain > 0:
                priced.append((-gain / max(price, _TINY), region[0], change))
        for _, _, change in sorted(priced, key=lambda row: row[:2]):
            undo = flips.assign(change)
            if (flips.error if on_error else flips.ns) > limit:
                flips.assign(undo)


def _regions(energy: Energy, here: Labels, there: Labels) -> list[list[int]]:
    """Sites that differ, in pieces connected by tensors and ties."""
    differs = here != there
    parent = {int(i): int(i) for i in np.flatnonzero(differs)}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    links = [[*c, p] if p >= 0 else c for p, c in energy.ends] + energy.members
    for link in links:
        inside = [i for i in link if differs[i]]
        for other in inside[1:]:
            low, high = sorted((root(inside[0]), root(other)))
            parent[high] = low
    regions: dict[int, list[int]] = {}
    for i in sorted(parent):
        regions.setdefault(root(i), []).append(i)
    return list(regions.values())


def _repair(flips: Flips, limit: float, on_error: bool) -> bool:
    """Flip sites until the limit is kept, paying as little as possible; False when stuck."""
    for _ in range(4 * len(flips.by_ns) + 1):
        objective, constraint, now, _ = _views(flips, on_error)
        excess = now - limit
        if excess <= 0:
            return True
        helps = np.flatnonzero(constraint < 0)
        if not helps.size:
            return False
        useful = np.maximum(np.minimum(-constraint[helps], excess), _TINY)
        flips.apply(int(helps[np.argmin(objective[helps] / useful)]))
    return False


def _improve(flips: Flips, limit: float, on_error: bool, by_ratio: bool) -> None:
    """Flip single sites, then pairs, while the objective falls and the limit is kept."""
    for _ in range(_PAIR_ROUNDS):
        _singles(flips, limit, on_error, by_ratio)
        if not (_swap(flips, limit, on_error) or _neighbours(flips, limit, on_error)):
            return


def _singles(flips: Flips, limit: float, on_error: bool, by_ratio: bool) -> None:
    for _ in range(4 * len(flips.by_ns) + 1):
        objective, constraint, now, noise = _views(flips, on_error)
        allowed = np.flatnonzero((objective < -noise) & (now + constraint <= limit))
        if not allowed.size:
            return
        score = objective[allowed]
        if by_ratio:
            score = score / np.maximum(constraint[allowed], _TINY)
        flips.apply(int(allowed[np.argmin(score)]))


def _swap(flips: Flips, limit: float, on_error: bool) -> bool:
    """One move that helps the objective with one that makes room for it; True when found."""
    objective, constraint, now, noise = _views(flips, on_error)
    wins = np.flatnonzero(objective < -noise)
    rooms = np.flatnonzero((constraint < 0) & np.isfinite(objective))
    if not wins.size or not rooms.size:
        return False
    wins = wins[np.argsort(objective[wins], kind="stable")[:_PAIR_CANDIDATES]]
    price = np.maximum(objective[rooms], 0.0) / np.maximum(-constraint[rooms], _TINY)
    rooms = rooms[np.argsort(price, kind="stable")[:_PAIR_CANDIDATES]]
    both = objective[wins][:, None] + objective[rooms][None, :]
    fits = now + constraint[wins][:, None] + constraint[rooms][None, :] <= limit
    both[~fits | (both >= -noise)] = 0.0
    # The sum is exact only for moves that share no tensor, so the real change is looked at.
    for flat in np.argsort(both, axis=None, kind="stable")[:64]:
        i, j = np.unravel_index(flat, both.shape)
        if both[i, j] >= 0.0:
            return False
        first, second = int(wins[i]), int(rooms[j])
        if flips.disjoint(first, second) and _try(
            flips, flips.pair(first, second), limit, on_error
        ):
            return True
    return False


def _neighbours(flips: Flips, limit: float, on_error: bool) -> bool:
    """Two adjacent sites together (each alone may only add conversions); True when found."""
    for first in range(len(flips.by_ns)):
        if np.isinf(flips.by_error[first]):
            continue
        for second in flips.neighbours(first):
            if np.isinf(flips.by_error[second]):
                continue
            if _try(flips, flips.pair(first, second), limit, on_error):
                return True
    return False


def _try(flips: Flips, change: Assignment, limit: float, on_error: bool) -> bool:
    ns, error = flips.price(change)
    gain, price = (ns, error) if on_error else (error, ns)
    now = flips.error if on_error else flips.ns
    noise = 0.5 if on_error else _NOISE * max(flips.error, _NOISE)
    if gain < -noise and now + price <= limit:
        flips.assign(change)
        return True
    return False
