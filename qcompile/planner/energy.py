"""From a Problem to cut capacities: what a labelling costs, and the best one for given weights.

A labelling costs ``latency_weight * nanoseconds + error_weight * error units``. Source side = int8:

    source -> site   its float form, paid when it is not int8 (float or dynamic, the cheaper)
    site -> sink     its int8 form
    site -> dq -> consumers      DequantizeLinear, paid once if an int8 producer has a float reader
    consumers -> q -> producer   QuantizeLinear, paid once if a float producer has an int8 reader

Every term is submodular, so the minimum cut is the global optimum. Tied sites are one vertex and a
site with one legal side is the source or sink itself: the same cut as with infinite arcs, in
smaller numbers. For the same reason the arcs between consumers and the auxiliary vertex carry the
conversion's cost: no more than that can flow on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.ir.errors import OptionError
from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC
from qcompile.planner.mincut import minimum_cut
from qcompile.planner.problem import LABELS, PlanTensor, Problem

__all__ = ["DYNAMIC", "ERROR_CAP", "INTEGER", "NONE", "PLAIN", "Energy", "Labels"]

Labels = npt.NDArray[np.int8]
"""For each site the index of its label in ``problem.LABELS``."""

PLAIN, INTEGER, DYNAMIC = (LABELS.index(label) for label in (FLOAT, INT8, INT8_DYNAMIC))
NONE = -1
"""Stands in the latency table where a site may not take a label."""

ERROR_CAP = 100.0
"""Errors above (SQNR below -20 dB) count as this in the cut: all are unusable, and one exploding
site must not eat the resolution of the others."""

_BITS = 60
_SOURCE, _SINK = 0, 1


@dataclass(frozen=True)
class _Arcs:
    """Arcs of all conversions: nanoseconds and error that a cut through each pays."""

    tail: npt.NDArray[np.int64]
    head: npt.NDArray[np.int64]
    ns: npt.NDArray[np.int64]
    error: npt.NDArray[np.float64]
    vertices: int


class Energy:
    """The arrays of a problem, made once, and the exact optimum for any weights.

    Attributes:
        latency: (sites, labels) nanoseconds, ``NONE`` where the site may not take the label.
        error: (sites, labels) relative error energy.
        units: the same as integers for the cut.
        write_units: for each tensor its ``write_error`` as an integer.
        unit_error: error energy of one unit.
        most_ns: bound of any labelling's latency.
        most_units: bound of any labelling's error units.
        ends: for each tensor the index of its producer (-1: float from outside) and consumers.
        group: for each site the index of its tied group; groups are numbered by their first site.
        members: the sites of each group.
    """

    def __init__(self, problem: Problem) -> None:
        """Tabulate a problem.

        Raises:
            OptionError: tied sites have no side in common.
        """
        self.problem = problem
        count = len(problem.nodes)
        self.latency = np.full((count, len(LABELS)), NONE, dtype=np.int64)
        self.error = np.zeros((count, len(LABELS)))
        for i, node in enumerate(problem.nodes):
            for label in node.labels():
                self.latency[i, LABELS.index(label)] = node.latency_ns(label)
                self.error[i, LABELS.index(label)] = node.error(label)
        self.writes_float = np.array([n.float_output for n in problem.nodes], dtype=np.bool_)
        index = problem.index
        self.ends: list[tuple[int, list[int]]] = [
            (
                -1 if t.producer is None else index[t.producer],
                sorted({index[c] for c in t.consumers}),
            )
            for t in problem.tensors
        ]
        self.members = _groups(problem)
        self.group = np.zeros(count, dtype=np.int64)
        for g, members in enumerate(self.members):
            self.group[members] = g
        self._vertex = self._vertices()
        self._arcs = self._conversion_arcs()
        self.most_ns = int(self.latency.max(axis=1, initial=0).sum() + self._arcs.ns.sum()) + 1
        capped = np.minimum(self.error, ERROR_CAP)
        top = float(capped.max(axis=1, initial=0.0).sum() + self._arcs.error.sum())
        bits = min(36, _BITS - self.most_ns.bit_length())
        self.unit_error = max(top / (1 << bits), 1e-300) if top else 1.0
        self.units = self._in_units(capped)
        self._arc_units = self._in_units(self._arcs.error)
        most_units = self.units.max(axis=1, initial=0).sum() + self._arc_units.sum()
        self.most_units = int(most_units) + 1
        writes = np.array([t.write_error for t in problem.tensors], dtype=np.float64)
        self.write_units: list[int] = self._in_units(np.minimum(writes, ERROR_CAP)).tolist()

    def _in_units(self, error: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Whole units, at least one for any error, so that the least error is found exactly."""
        # What no plan can pay is not in the unit and may be any number of them.
        whole = np.minimum(np.rint(error / self.unit_error), float(1 << 40))
        return np.maximum(whole, error > 0).astype(np.int64)

    # -- what a labelling costs ------------------------------------------------------------

    def total_ns(self, labels: Labels) -> int:
        """Predicted latency of a labelling, conversions and ``base_ns`` included.

        Raises:
            OptionError: a site has a label that it may not take.
        """
        sites = self.latency[np.arange(len(labels)), labels]
        if (sites == NONE).any():
            bad = int(np.argmax(sites == NONE))
            node = self.problem.nodes[bad]
            raise OptionError(
                f"node '{node.origin}' may not be '{LABELS[int(labels[bad])]}'; "
                f"use one of {', '.join(node.labels())}"
            )
        return (
            int(sites.sum())
            + self.problem.base_ns
            + sum(
                t.dequantize_ns if written else t.quantize_ns
                for _, t, written in self._converted(labels)
            )
        )

    def total_error(self, labels: Labels) -> float:
        """Predicted relative error energy of a labelling: of its sites and of what they write."""
        return float(self.error[np.arange(len(labels)), labels].sum()) + sum(
            t.write_error for _, t, written in self._converted(labels) if written
        )

    def total_units(self, labels: Labels) -> int:
        """``total_error`` in the integer units that the cut sees."""
        return int(self.units[np.arange(len(labels)), labels].sum()) + sum(
            self.write_units[i] for i, _, written in self._converted(labels) if written
        )

    def _converted(self, labels: Labels) -> Iterator[tuple[int, PlanTensor, bool]]:
        """The tensors that need a Q, or (True) that are written in integers and need a DQ."""
        integer = (labels == INTEGER).tolist()
        for i, (producer, consumers) in enumerate(self.ends):
            t = self.problem.tensors[i]
            if producer >= 0 and integer[producer] and not self.writes_float[producer]:
                if t.float_read or not all(integer[c] for c in consumers):
                    yield i, t, True
            elif any(integer[c] for c in consumers):
                yield i, t, False

    def named(self, labels: Labels) -> Mapping[str, str]:
        """The label of each site by origin."""
        return {n.origin: LABELS[int(i)] for n, i in zip(self.problem.nodes, labels, strict=True)}

    def numbered(self, named: Mapping[str, str]) -> Labels:
        """The labelling of a mapping origin -> label; sites that it does not name are float."""
        return np.array(
            [LABELS.index(named.get(n.origin, FLOAT)) for n in self.problem.nodes], dtype=np.int8
        )

    # -- the optimum -------------------------------------------------------------------------

    def solve(self, latency_weight: int, error_weight: int) -> Labels:
        """The labelling of least weighted cost; among equals the one with the fewest int8 sites.

        Args:
            latency_weight: of a nanosecond; at most ``most_units``.
            error_weight: of an error unit; at most ``most_ns``.
        """
        weighted = latency_weight * self.latency + error_weight * self.units
        weighted[self.latency == NONE] = np.iinfo(np.int64).max
        use_dynamic = weighted[:, DYNAMIC] < weighted[:, PLAIN]
        outside = np.minimum(weighted[:, PLAIN], weighted[:, DYNAMIC])
        free = self._vertex[self.group] > _SINK
        gain = np.zeros(len(self.members), dtype=np.int64)
        np.add.at(gain, self.group[free], (outside - weighted[:, INTEGER])[free])
        wins = np.flatnonzero(gain > 0)
        loses = np.flatnonzero(gain < 0)
        arcs = self._arcs
        conversions = latency_weight * arcs.ns + error_weight * self._arc_units
        sources = np.full(len(wins), _SOURCE, dtype=np.int64)
        sinks = np.full(len(loses), _SINK, dtype=np.int64)
        cut = minimum_cut(
            arcs.vertices,
            np.concatenate([arcs.tail, sources, self._vertex[loses]]),
            np.concatenate([arcs.head, self._vertex[wins], sinks]),
            np.concatenate([conversions, gain[wins], -gain[loses]]),
            source=_SOURCE,
            sink=_SINK,
        )
        integer = cut.source_side[self._vertex[self.group]]
        labels = np.where(integer, INTEGER, np.where(use_dynamic, DYNAMIC, PLAIN))
        return labels.astype(np.int8)

    def _vertices(self) -> npt.NDArray[np.int64]:
        """The vertex of each group: its own, or source or sink when only one side is legal."""
        vertex = np.zeros(len(self.members), dtype=np.int64)
        following = _SINK + 1
        for g, members in enumerate(self.members):
            can_integer = all(self.latency[i, INTEGER] != NONE for i in members)
            stuck = [
                i
                for i in members
                if self.latency[i, PLAIN] == NONE and self.latency[i, DYNAMIC] == NONE
            ]
            if stuck and not can_integer:
                names = [self.problem.nodes[i].origin for i in members]
                only = self.problem.nodes[stuck[0]].origin
                raise OptionError(
                    f"nodes {', '.join(repr(n) for n in names)} share one precision, but '{only}' "
                    "may only be int8 and another of them may not; change the plan for one of them"
                )
            if stuck:
                vertex[g] = _SOURCE
            elif not can_integer:
                vertex[g] = _SINK
            else:
                vertex[g] = following
                following += 1
        return vertex

    def _conversion_arcs(self) -> _Arcs:
        arcs: list[tuple[int, int, int, float]] = []
        vertices = max(_SINK, int(max(self._vertex, default=_SINK))) + 1
        for t, (producer, consumers) in zip(self.problem.tensors, self.ends, strict=True):
            readers = sorted({int(self._vertex[self.group[c]]) for c in consumers})
            integers = producer >= 0 and not self.writes_float[producer]
            writer = int(self._vertex[self.group[producer]]) if integers else _SINK
            if integers and (t.dequantize_ns or t.write_error):
                floats = [_SINK] if t.float_read or _SINK in readers else readers
                cost = (t.dequantize_ns, min(t.write_error, ERROR_CAP))
                links = [(writer, reader) for reader in floats]
                if len(floats) > 1:
                    links = [(writer, vertices), *((vertices, reader) for reader in floats)]
                    vertices += 1
                arcs.extend((*link, *cost) for link in links)
            if t.quantize_ns:
                links = [(reader, writer) for reader in readers]
                if len(readers) > 1:
                    links = [(vertices, writer), *((reader, vertices) for reader in readers)]
                    vertices += 1
                arcs.extend((*link, t.quantize_ns, 0.0) for link in links)
        arcs = [arc for arc in arcs if arc[0] != arc[1]]
        tail, head, ns, error = zip(*arcs, strict=True) if arcs else ((), (), (), ())
        return _Arcs(
            np.array(tail, dtype=np.int64),
            np.array(head, dtype=np.int64),
            np.array(ns, dtype=np.int64),
            np.array(error, dtype=np.float64),
            vertices,
        )


def _groups(problem: Problem) -> list[list[int]]:
    """The tied groups as lists of site indices; a site without ties is a group of one."""
    parent = list(range(len(problem.nodes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for tie in problem.ties:
        members = sorted({problem.index[origin] for origin in tie})
        for other in members[1:]:
            low, high = sorted((root(members[0]), root(other)))
            parent[high] = low
    groups: dict[int, list[int]] = {}
    for i in range(len(parent)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())
