"""A third tensor form for the planner: layers whose activations take 16 bits, found by expansion.

Two forms are exact (one minimum cut); three are not. So every plan of the exact front is the start of
an expansion at its own trade-off (`expansion.py`), and what comes out is a second front: a heuristic,
never worse than the plan that it began with at that trade-off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qcompile.ir.errors import OptionError
from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC, INT16
from qcompile.planner.expansion import Form, WideNode, WideProblem, WideTensor, expand
from qcompile.planner.problem import PlanTensor, Problem
from qcompile.planner.sweep import PlanPoint, pareto

__all__ = ["Wider", "wide_front", "wide_point"]

FORMS = {
    FLOAT: Form(FLOAT, FLOAT),
    INT8: Form(INT8, INT8),
    INT8_DYNAMIC: Form(FLOAT, FLOAT),
    INT16: Form(INT16, INT16),
}
_WHOLE = 1 << 40
"""All costs together, as integers: so many steps resolve a trade-off finely and leave room in int64."""


@dataclass(frozen=True)
class Wider:
    """What the int16 form of each site costs beside a problem's two forms.

    Attributes:
        ns: origin -> latency; absent: the site has no such form.
        error: origin -> relative output error energy of the site alone.
        write_error: tensor -> what rounding it to 16 bits adds when its producer is int16 and
            something reads it in float.
        only: sites that the user pinned to it.
    """

    ns: Mapping[str, int]
    error: Mapping[str, float] = field(default_factory=dict)
    write_error: Mapping[str, float] = field(default_factory=dict)
    only: frozenset[str] = frozenset()


def wide_point(problem: Problem, wider: Wider, labels: Mapping[str, str]) -> PlanPoint:
    """Labels with their latency and error.

    Raises:
        OptionError: a site has a label that it may not take.
    """
    ns, error = problem.base_ns, 0.0
    for node in problem.nodes:
        forms = _forms(problem, wider, node.origin)
        label = labels[node.origin]
        if label not in forms:
            raise OptionError(
                f"node '{node.origin}' ({node.op_type}) has no '{label}' form in the costs; "
                f"use one of {', '.join(forms)}"
            )
        ns += forms[label][0]
        error += forms[label][1]
    for tensor in problem.tensors:
        convert = _conversions(problem, tensor, wider)
        for pair in _needed(problem, tensor, labels):
            ns += convert[pair][0]
            error += convert[pair][1]
    return PlanPoint(dict(labels), ns, error, "expansion")


def wide_front(
    problem: Problem,
    wider: Wider,
    *,
    search_time: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[PlanPoint]:
    """The exact two-label front, each of its hull points expanded; fastest first.

    Args:
        problem: sites with their two forms.
        wider: their third.
        search_time: seconds for the expansions; the fastest plans are expanded first.
        clock: seconds, for tests.
    """
    start = clock()
    found: list[PlanPoint] = []
    if problem.ties:
        raise OptionError("tied sites cannot be expanded beyond two labels")
    for point in pareto(problem):
        if wider.only.isdisjoint(n.origin for n in problem.nodes):
            found.append(point)
        if point.ns_per_error is None:
            continue
        if search_time is not None and clock() - start > search_time:
            continue
        weighted = _weighted(problem, wider, point.ns_per_error)
        first = {o: INT16 if o in wider.only else label for o, label in point.labels.items()}
        labels, _ = expand(weighted, first)
        if labels != point.labels:
            found.append(wide_point(problem, wider, labels))
    kept: list[PlanPoint] = []
    for p in sorted(found, key=lambda p: (p.latency_ns, p.error, p.found_by == "expansion")):
        if not kept or p.error < kept[-1].error:
            kept.append(p)
    return kept


def _forms(problem: Problem, wider: Wider, origin: str) -> dict[str, tuple[int, float]]:
    """Label -> (nanoseconds, error) of one site."""
    node = problem.nodes[problem.index[origin]]
    found = {label: (node.latency_ns(label), node.error(label)) for label in node.labels()}
    if origin in wider.ns and (node.pinned is None or origin in wider.only):
        wide = (wider.ns[origin], wider.error.get(origin, 0.0))
        found = {INT16: wide} if origin in wider.only else {**found, INT16: wide}
    return found


def _conversions(
    problem: Problem, tensor: PlanTensor, wider: Wider
) -> dict[tuple[str, str], tuple[int, float]]:
    """(written, read) -> (nanoseconds, error); from one width to the other goes through float."""
    to, back = tensor.quantize_ns, tensor.dequantize_ns
    rounded = {INT8: tensor.write_error, INT16: wider.write_error.get(tensor.name, 0.0)}
    if tensor.producer is not None and _writes_float(problem, tensor.producer):
        # the expansion does not see that its integer readers need a Q; the plan's latency does
        back, rounded = 0, {INT8: 0.0, INT16: 0.0}
    return {
        (FLOAT, INT8): (to, 0.0),
        (FLOAT, INT16): (to, 0.0),
        (INT8, FLOAT): (back, rounded[INT8]),
        (INT16, FLOAT): (back, rounded[INT16]),
        (INT8, INT16): (back + to, rounded[INT8]),
        (INT16, INT8): (back + to, 0.0),
    }


def _needed(
    problem: Problem, tensor: PlanTensor, labels: Mapping[str, str]
) -> list[tuple[str, str]]:
    written = FLOAT
    # a kernel that writes float does so for every reader, integer ones too
    if tensor.producer is not None and not _writes_float(problem, tensor.producer):
        written = FORMS[labels[tensor.producer]].writes
    read = {FORMS[labels[c]].reads for c in tensor.consumers}
    if tensor.float_read:
        read.add(FLOAT)
    return [(written, form) for form in sorted(read) if form != written]


def _writes_float(problem: Problem, origin: str) -> bool:
    return problem.nodes[problem.index[origin]].float_output


def _weighted(problem: Problem, wider: Wider, ns_per_error: float) -> WideProblem:
    """One cost for latency and error, in whole steps."""
    nodes = [(n.origin, _forms(problem, wider, n.origin)) for n in problem.nodes]
    tensors = [(t, _conversions(problem, t, wider)) for t in problem.tensors]

    def worth(pair: tuple[int, float]) -> float:
        return pair[0] + min(ns_per_error * pair[1], 1e30)

    total = sum(max(map(worth, forms.values())) for _, forms in nodes)
    total += sum(max(map(worth, convert.values())) for _, convert in tensors)
    step = _WHOLE / max(total, 1.0)
    return WideProblem(
        FORMS,
        tuple(
            WideNode(origin, {label: round(step * worth(pair)) for label, pair in forms.items()})
            for origin, forms in nodes
        ),
        tuple(
            WideTensor(
                t.name,
                t.producer,
                t.consumers,
                {pair: round(step * worth(cost)) for pair, cost in convert.items()},
                t.float_read,
            )
            for t, convert in tensors
        ),
    )
