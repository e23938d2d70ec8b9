"""More than two precisions: label-by-label expansion, a heuristic.

With three or more tensor forms and conversions between them the problem is NP-hard in general
(multiway cut). Starting from the exact optimum over two labels, each step picks a label alpha and
solves exactly which sites switch to it (Boykov, Veksler, Zabih 2001, "Fast approximate energy
minimization via graph cuts"). A conversion that would become cheaper only because its producer
switches is not submodular; it is bounded from above by today's cost, so no step makes the plan worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qcompile.ir.errors import OptionError
from qcompile.ir.plan import FLOAT, INT8
from qcompile.planner.energy import Energy
from qcompile.planner.mincut import minimum_cut
from qcompile.planner.problem import PlanNode, PlanTensor, Problem

__all__ = ["Form", "WideNode", "WideProblem", "WideTensor", "cost_of", "expand", "two_label_start"]

_SOURCE, _SINK = 0, 1


@dataclass(frozen=True)
class Form:
    """A label: which tensor form its kernels read and write ("float", "int8", "int16", ...)."""

    reads: str
    writes: str


@dataclass(frozen=True)
class WideNode:
    """A site with any number of labels.

    Attributes:
        origin: stable origin id.
        cost: label -> weighted integer cost (latency and error together); labels that it cannot
            take are absent.
    """

    origin: str
    cost: Mapping[str, int]


@dataclass(frozen=True)
class WideTensor:
    """A tensor between sites.

    Attributes:
        name: of the tensor.
        producer: origin of its site; None writes float.
        consumers: origins of the sites that read it.
        convert: (written form, read form) -> weighted cost, paid once for each form that is read.
        float_read: something outside the plan reads it in float.
    """

    name: str
    producer: str | None
    consumers: tuple[str, ...]
    convert: Mapping[tuple[str, str], int]
    float_read: bool = False


@dataclass(frozen=True)
class WideProblem:
    """Sites with labels from ``forms``, in graph order."""

    forms: Mapping[str, Form]
    nodes: tuple[WideNode, ...]
    tensors: tuple[WideTensor, ...]


@dataclass
class _Arcs:
    """Capacities under construction; vertex 0 is the source (switch), 1 the sink (keep)."""

    vertices: int
    tail: list[int] = field(default_factory=list)
    head: list[int] = field(default_factory=list)
    cost: list[int] = field(default_factory=list)

    def pay(self, tail: int, head: int, cost: int) -> None:
        """Pay ``cost`` when ``tail`` switches and ``head`` keeps."""
        if cost and tail not in (head, _SINK):
            self.tail.append(tail)
            self.head.append(head)
            self.cost.append(cost)

    def pay_any_keeps(self, tail: int, heads: Sequence[int], cost: int) -> None:
        """Pay once when ``tail`` switches and any of ``heads`` keeps."""
        if cost and heads:
            middle = self._fresh()
            self.pay(tail, middle, cost)
            for head in heads:
                self.pay(middle, head, cost)

    def pay_any_switches(self, tails: Sequence[int], head: int, cost: int) -> None:
        """Pay once when any of ``tails`` switches and ``head`` keeps."""
        if cost and tails:
            middle = self._fresh()
            self.pay(middle, head, cost)
            for tail in tails:
                self.pay(tail, middle, cost)

    def _fresh(self) -> int:
        self.vertices += 1
        return self.vertices - 1


def cost_of(problem: WideProblem, labels: Mapping[str, str]) -> int:
    """Weighted cost of a labelling (origin -> label).

    Raises:
        OptionError: a site or a conversion that the labelling needs does not exist.
    """
    total = 0
    for node in problem.nodes:
        label = labels[node.origin]
        if label not in node.cost:
            raise OptionError(
                f"node '{node.origin}' may not be '{label}'; use {', '.join(node.cost)}"
            )
        total += node.cost[label]
    for t in problem.tensors:
        written = FLOAT if t.producer is None else problem.forms[labels[t.producer]].writes
        read = {problem.forms[labels[c]].reads for c in t.consumers} | (
            {FLOAT} if t.float_read else set()
        )
        total += sum(_convert(t, written, form) for form in read)
    return total


def two_label_start(problem: WideProblem, first: str = FLOAT, second: str = INT8) -> dict[str, str]:
    """The exact optimum over two labels; sites that have only one of them take that one."""
    nodes = []
    for n in problem.nodes:
        forbidden = frozenset({FLOAT}) if first not in n.cost else frozenset()
        if first not in n.cost and second not in n.cost:
            raise OptionError(f"node '{n.origin}' can be neither '{first}' nor '{second}'")
        nodes.append(
            PlanNode(n.origin, "", n.cost.get(first, 0), n.cost.get(second), forbidden=forbidden)
        )
    float_form, int_form = problem.forms[first].reads, problem.forms[second].reads
    tensors = tuple(
        PlanTensor(
            t.name,
            t.producer,
            t.consumers,
            _convert(t, float_form, int_form) if t.consumers else 0,
            _convert(t, int_form, float_form) if t.consumers or t.float_read else 0,
            float_read=t.float_read,
        )
        for t in problem.tensors
    )
    energy = Energy(Problem(tuple(nodes), tensors))
    named = energy.named(energy.solve(1, 0))
    return {origin: second if label == INT8 else first for origin, label in named.items()}


def expand(
    problem: WideProblem, start: Mapping[str, str], *, rounds: int = 8
) -> tuple[dict[str, str], int]:
    """Labels after expansion from ``start`` and their cost, which is at most ``start``'s.

    Args:
        problem: sites, labels, conversions.
        start: a complete legal labelling, usually ``two_label_start``.
        rounds: each tries every label once; stops earlier when none helps.
    """
    labels = dict(start)
    best = cost_of(problem, labels)
    for _ in range(rounds):
        before = best
        for alpha in sorted(problem.forms):
            moved = _step(problem, labels, alpha)
            cost = cost_of(problem, moved)
            if cost < best:
                labels, best = moved, cost
        if best == before:
            break
    return labels, best


def _convert(t: WideTensor, written: str, read: str) -> int:
    if written == read:
        return 0
    cost = t.convert.get((written, read))
    if cost is None:
        raise OptionError(
            f"tensor '{t.name}' has no conversion from {written} to {read}; give its cost"
        )
    return cost


def _step(problem: WideProblem, labels: Mapping[str, str], alpha: str) -> dict[str, str]:
    """The best switch of any set of sites to ``alpha``."""
    vertex: dict[str, int] = {}
    arcs = _Arcs(2)
    for node in problem.nodes:
        if alpha not in node.cost or labels[node.origin] == alpha:
            vertex[node.origin] = _SINK  # keeping alpha is keeping
            continue
        vertex[node.origin] = arcs.vertices
        arcs.vertices += 1
        arcs.pay(_SOURCE, vertex[node.origin], node.cost[labels[node.origin]])
        arcs.pay(vertex[node.origin], _SINK, node.cost[alpha])
    for t in problem.tensors:
        _tensor_arcs(arcs, problem.forms, t, (labels, vertex), alpha)
    ends = (np.array(part, dtype=np.int64) for part in (arcs.tail, arcs.head, arcs.cost))
    cut = minimum_cut(arcs.vertices, *ends, source=_SOURCE, sink=_SINK)
    return {
        origin: alpha if vertex[origin] != _SINK and cut.source_side[vertex[origin]] else label
        for origin, label in labels.items()
    }


def _tensor_arcs(
    arcs: _Arcs,
    forms: Mapping[str, Form],
    t: WideTensor,
    now_at: tuple[Mapping[str, str], Mapping[str, int]],
    alpha: str,
) -> None:
    labels, vertex = now_at
    producer = _SINK if t.producer is None else vertex[t.producer]
    now = FLOAT if t.producer is None else forms[labels[t.producer]].writes
    then = now if producer == _SINK else forms[alpha].writes
    readers: dict[str, list[int]] = {}
    for c in t.consumers:
        readers.setdefault(forms[labels[c]].reads, []).append(vertex[c])
    if t.float_read:
        readers.setdefault(FLOAT, []).append(_SINK)
    target = forms[alpha].reads
    for form, keepers in sorted(readers.items()):
        if form == target:  # read whether its readers switch or not
            arcs.pay(_SOURCE, producer, _convert(t, now, form))
            arcs.pay(producer, _SINK, _convert(t, then, form))
            continue
        cost_now = _convert(t, now, form)
        more = max(0, _convert(t, then, form) - cost_now)
        arcs.pay_any_keeps(_SOURCE, keepers, cost_now)
        arcs.pay_any_keeps(producer, keepers, more)
    if target not in readers and t.consumers:
        switchers = [vertex[c] for c in t.consumers]
        cost_now, cost_then = _convert(t, now, target), _convert(t, then, target)
        arcs.pay_any_switches(switchers, _SINK, cost_then)
        arcs.pay_any_switches(switchers, producer, max(0, cost_now - cost_then))
