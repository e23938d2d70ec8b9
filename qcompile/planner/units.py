"""What the planner decides on: a site with the activation that its kernel takes in, as one unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import constant, origin
from qcompile.ir.plan import FLOAT, INT8, LayerChoice, PrecisionPlan
from qcompile.passes.integer_region import pairs
from qcompile.passes.quantizable import Site

__all__ = ["Unit", "full_plan", "identified", "units"]


@dataclass(frozen=True)
class Unit:
    """One planner node.

    Attributes:
        site: the anchor.
        absorbed: Relu or Clip behind it that its integer kernel takes in; they follow its label.
        readers: origins of units that read what it writes, in integers when they are int8.
        float_readers: something else reads it too (a graph output, a node that stays float).
        weights: constant inputs that the dynamic form rounds; empty where there is none.
    """

    site: Site
    absorbed: tuple[Site, ...]
    readers: tuple[str, ...]
    float_readers: bool
    weights: tuple[int, ...]

    @property
    def origin(self) -> str:
        """Of the anchor."""
        return self.site.origin

    @property
    def static(self) -> bool:
        """Whether there is an int8 form."""
        return not self.site.reason

    @property
    def dynamic(self) -> bool:
        """Whether there is an int8-dynamic form."""
        return bool(self.weights)

    @property
    def writes_always(self) -> bool:
        """Whether its int8 kernel writes integers whoever reads them."""
        return self.site.row is not None and self.site.row.quantized_output

    @property
    def stored(self) -> tuple[int, int]:
        """Bytes of its constants in float and as 8-bit integers; each reader of one bears a share."""
        own = [self.site.weight, *self.site.constants.values()]
        own += [self.site.node.inputs[i] for i in self.weights]
        elements = 0.0
        for value in dict.fromkeys(v for v in own if v is not None):
            array = constant(value)
            elements += 0.0 if array is None else array.size / max(1, len(value.uses()))
        return 4 * round(elements), round(elements)

    @property
    def nodes(self) -> tuple[oir.Node, ...]:
        """Anchor and absorbed nodes, in order."""
        return (self.site.node, *(s.node for s in self.absorbed))

    @property
    def origins(self) -> tuple[str, ...]:
        """Of anchor and absorbed nodes, in order."""
        return (self.origin, *(s.origin for s in self.absorbed))

    @property
    def outputs(self) -> tuple[oir.Value, ...]:
        """What leaves the unit."""
        return tuple(self.nodes[-1].outputs)


def units(sites: Iterable[Site]) -> list[Unit]:
    """The units of a prepared float model's sites, in graph order; those that can only be float left out."""
    sites = list(sites)
    owners = pairs(sites)
    taken: dict[oir.Node, list[Site]] = {}
    for site in sites:
        owner = owners.get(site.node)
        if owner is not None:
            taken.setdefault(owner.node, []).append(site)
    anchors = [s for s in sites if s.node not in owners and (not s.reason or _dynamic_weights(s))]
    reads: dict[tuple[oir.Node, int], str] = {
        (s.node, i): s.origin for s in anchors if not s.reason for i in s.activations
    }
    found = []
    for site in anchors:
        absorbed = tuple(taken.get(site.node, ()))
        last = absorbed[-1].node if absorbed else site.node
        uses = [(use.node, use.idx) for value in last.outputs for use in value.uses()]
        readers = dict.fromkeys(reads[use] for use in uses if use in reads)
        others = any(use not in reads for use in uses)
        graph_output = any(value.is_graph_output() for value in last.outputs)
        weights = _dynamic_weights(site) if not absorbed else ()
        found.append(Unit(site, absorbed, tuple(readers), others or graph_output, weights))
    return found


def full_plan(sites: Iterable[Site]) -> PrecisionPlan:
    """Every site int8 that can be: what is gated, calibrated and costed."""
    return PrecisionPlan(
        tuple(
            LayerChoice(s.origin, s.op_type, FLOAT if s.reason else INT8, s.reason or "it can be")
            for s in sites
        )
    )


def _dynamic_weights(site: Site) -> tuple[int, ...]:
    """Inputs that a dynamic kernel needs as constant integer weights: B of MatMul, W and R of LSTM."""
    if not site.dynamic or site.row is None or site.row.weight is None:
        return ()
    wanted = {"MatMul": (1,), "Gemm": (1,), "LSTM": (1, 2), "GRU": (1, 2)}.get(site.op_type)
    if wanted is None:
        return ()
    ranks = {"LSTM": 3, "GRU": 3}.get(site.op_type, 2)
    for index in wanted:
        array = constant(site.node.inputs[index]) if index < len(site.node.inputs) else None
        if array is None or array.dtype != np.float32 or array.ndim != ranks:
            return ()
    return wanted


def identified(model: oir.Model) -> dict[str, oir.Node]:
    """Origin id -> node, with repeats numbered as ``quantizable`` numbers them; Q and DQ left out."""
    found: dict[str, oir.Node] = {}
    seen: dict[str, int] = {}
    for node in model.graph:
        name = origin(node) or node.name or ""
        seen[name] = seen.get(name, 0) + 1
        found[name if seen[name] == 1 else f"{name}#{seen[name]}"] = node
    return found
