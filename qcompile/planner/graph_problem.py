"""From a prepared graph, costs and sensitivities to a Problem, and from its labels back to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as oir

from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC, INT16, LayerChoice, PrecisionPlan
from qcompile.passes.quantizable import Site
from qcompile.planner.problem import PlanNode, PlanTensor, Problem
from qcompile.planner.sensitivity import Sensitivity
from qcompile.planner.units import Unit
from qcompile.planner.widening import Wider

__all__ = ["Latencies", "plan_of_labels", "problem_from_graph"]


@dataclass(frozen=True)
class Latencies:
    """Nanoseconds as the planner needs them, by origin id and by tensor name; absent means 0.

    Attributes:
        float_ns: float form of each node (what a fusion took in costs nothing).
        int_ns: int8 form.
        dynamic_ns: int8-dynamic form; absent means that it is not offered.
        wide_ns: int16 form; absent means that it is not offered.
        quantize_ns: QuantizeLinear of a tensor.
        dequantize_ns: DequantizeLinear of a tensor.
        base_ns: everything outside the plan.
    """

    float_ns: Mapping[str, int]
    int_ns: Mapping[str, int]
    dynamic_ns: Mapping[str, int] = field(default_factory=dict)
    wide_ns: Mapping[str, int] = field(default_factory=dict)
    quantize_ns: Mapping[str, int] = field(default_factory=dict)
    dequantize_ns: Mapping[str, int] = field(default_factory=dict)
    base_ns: int = 0


def problem_from_graph(
    units: Sequence[Unit],
    latencies: Latencies,
    sensitivities: Mapping[str, Sensitivity],
    *,
    pins: Mapping[str, str] | None = None,
    forbidden: Mapping[str, frozenset[str]] | None = None,
) -> Problem:
    """The planner's problem for the units of a graph.

    Args:
        units: of the prepared float model.
        latencies: a unit costs what its anchor and the activations that it takes in cost.
        sensitivities: origin -> sensitivity (``Sensitivities.filled``); absent means no error.
        pins: origin -> label that the user gave.
        forbidden: origin -> labels that it must not take (an int8 form that the runtime refused).
    """
    pins, forbidden = pins or {}, forbidden or {}
    nodes = [
        _node(unit, latencies, sensitivities, pins, forbidden.get(unit.origin, frozenset()))
        for unit in units
    ]
    return Problem(
        tuple(nodes), _tensors(units, latencies, sensitivities), base_ns=latencies.base_ns
    )


def _node(
    unit: Unit,
    latencies: Latencies,
    sensitivities: Mapping[str, Sensitivity],
    pins: Mapping[str, str],
    forbidden: frozenset[str],
) -> PlanNode:
    names = unit.origins
    known = sensitivities.get(unit.origin, Sensitivity())
    dynamic = latencies.dynamic_ns.get(unit.origin) if unit.dynamic else None
    pinned = pins.get(unit.origin)
    stored = unit.stored
    return PlanNode(
        origin=unit.origin,
        op_type=unit.site.op_type,
        float_ns=sum(latencies.float_ns.get(name, 0) for name in names),
        int_ns=sum(latencies.int_ns.get(name, 0) for name in names) if unit.static else None,
        dynamic_ns=dynamic,
        sensitivity=known.reading,
        sensitivity_dynamic=known.dynamic,
        forbidden=forbidden - {pinned} if pinned else forbidden,
        pinned=pinned,
        float_bytes=stored[0],
        integer_bytes=stored[1],
    )


def _tensors(
    units: Sequence[Unit], latencies: Latencies, sensitivities: Mapping[str, Sensitivity]
) -> tuple[PlanTensor, ...]:
    """Every tensor that a unit reads or writes, in graph order of its first mention."""
    producers: dict[oir.Value, Unit] = {v: unit for unit in units for v in unit.outputs}
    readers: dict[oir.Value, list[str]] = {}
    integer_uses: set[tuple[oir.Node, int]] = set()
    for unit in units:
        if unit.static:
            integer_uses.update((unit.site.node, index) for index in unit.site.activations)
            for value in dict.fromkeys(unit.site.activations.values()):
                readers.setdefault(value, []).append(unit.origin)
    found = []
    for value in dict.fromkeys([*readers, *producers]):
        name = value.name or ""
        producer = producers.get(value)
        writes = producer is not None and producer.static
        # A kernel that can write float too (MatMulIntegerToFloat) needs no DQ and rounds nothing.
        rounds = producer is not None and writes and producer.writes_always
        error = 0.0
        if rounds and producer is not None:
            known = sensitivities.get(producer.origin, Sensitivity())
            error = known.writing / len(producer.outputs)
        found.append(
            PlanTensor(
                name=name,
                producer=producer.origin if producer is not None and writes else None,
                consumers=tuple(readers.get(value, ())),
                quantize_ns=latencies.quantize_ns.get(name, 0),
                dequantize_ns=latencies.dequantize_ns.get(name, 0) if rounds else 0,
                write_error=error,
                float_read=value.is_graph_output()
                or any((use.node, use.idx) not in integer_uses for use in value.uses()),
            )
        )
    return tuple(found)


def plan_of_labels(
    sites: Sequence[Site],
    units: Sequence[Unit],
    problem: Problem,
    labels: Mapping[str, str],
    reasons: Mapping[str, str] | None = None,
    wider: Wider | None = None,
) -> PrecisionPlan:
    """The plan file's form of ``labels``: every site in graph order, with reason and numbers.

    Args:
        sites: all sites of the graph, those that can only be float too.
        units: its units.
        problem: what was solved.
        labels: origin of unit -> label.
        reasons: origin -> why, in place of the one made from the numbers.
        wider: what the int16 form costs, where labels say it.
    """
    owners = {site.node: unit for unit in units for site in (unit.site, *unit.absorbed)}
    layers = []
    for site in sites:
        unit = owners.get(site.node)
        if unit is None:
            layers.append(LayerChoice(site.origin, site.op_type, FLOAT, site.reason))
            continue
        label = labels.get(unit.origin, FLOAT)
        if site.node is not unit.site.node:
            why = f"follows '{unit.origin}'"
            layers.append(LayerChoice(site.origin, site.op_type, label, why))
            continue
        node = problem.nodes[problem.index[unit.origin]]
        if label == INT16 and wider is not None:
            ns, error = wider.ns.get(unit.origin), wider.error.get(unit.origin, 0.0)
            why = (
                "pinned by the user"
                if unit.origin in wider.only
                else f"int8 alone causes error {node.sensitivity:.2g}, 16-bit activations "
                f"{error:.2g}: found by expansion, a heuristic"
            )
            pinned = unit.origin in wider.only
            layers.append(
                LayerChoice(site.origin, site.op_type, label, why, error, node.float_ns, ns, pinned)
            )
            continue
        layers.append(
            LayerChoice(
                site.origin,
                site.op_type,
                label,
                (reasons or {}).get(unit.origin) or _reason(node, label, site),
                node.sensitivity_dynamic if label == INT8_DYNAMIC else node.sensitivity,
                node.float_ns,
                node.dynamic_ns if label == INT8_DYNAMIC else node.int_ns,
                node.pinned is not None,
            )
        )
    return PrecisionPlan(tuple(layers))


def _reason(node: PlanNode, label: str, site: Site) -> str:
    if node.pinned is not None:
        return "pinned by the user"
    if label == FLOAT:
        if node.int_ns is None and node.dynamic_ns is None:
            return site.reason or "no integer form"
        fastest = min(ns for ns in (node.int_ns, node.dynamic_ns) if ns is not None)
        if fastest >= node.float_ns:
            return f"float is as fast: {_us(node.float_ns)} against {_us(fastest)}"
        return (
            f"int8 would save {_us(node.float_ns - fastest)} before conversions "
            f"and cost error {node.sensitivity:.2g}"
        )
    saved = node.float_ns - node.latency_ns(label)
    if saved > 0:
        return f"saves {_us(saved)} of {_us(node.float_ns)} for error {node.error(label):.2g}"
    return "between integer nodes: spares conversions" if label == INT8 else "as fast as float"


def _us(ns: int) -> str:
    return f"{ns / 1000:.1f} us"
