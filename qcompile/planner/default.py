"""The plan without measurements: every compute site int8, and what lies between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import onnx_ir as oir

from qcompile.ir.affine import TensorRange
from qcompile.ir.manager import CompileState
from qcompile.ir.plan import FLOAT, LayerChoice, PrecisionPlan
from qcompile.ir.target import Target
from qcompile.passes.integer_region import pairs
from qcompile.passes.quantizable import Site, classify

__all__ = ["default_plan", "without_ends"]

MIXED = 16.0
"""Ranges this many times apart leave the smaller less than 4 of 8 bits under one scale."""


def default_plan(
    state: CompileState, refused: Mapping[str, str] = MappingProxyType({})
) -> PrecisionPlan:
    """The target's 8-bit form for every compute site that can have it, and for regions between them.

    An elementwise or passthrough node is integer only where all its inputs come from integer nodes
    (or the target's float kernels write integers as well) and at least one integer node reads its
    result: elsewhere it would cost a Q/DQ and save nothing.

    Args:
        state: model, target, and ranges where they are known.
        refused: origin id -> why the node must be float though the target could run it.
    """
    sites = [_told(site, refused) for site in classify(state)]
    owners = pairs(sites)
    form = state.target.precision
    able = {s.node: s for s in sites if not s.reason and s.node not in owners}
    mixed = {s.node: why for s in able.values() if (why := _mixed_ranges(s, state.ranges))}
    for node in mixed:
        del able[node]
    refusals = {**mixed, **_shrink(able, owners, state.target)}
    layers = []
    for site in sites:
        precision, reason = FLOAT, site.reason
        owner = owners.get(site.node)
        if owner is not None and owner.node in able:
            precision, reason = form, f"taken into the requantization of '{owner.origin}'"
        elif owner is not None:
            reason = f"'{owner.origin}' before it is float"
        elif site.node in able:
            precision, reason = form, _why(site)
        elif not reason:
            reason = refusals[site.node]
        fixed = site.node in mixed
        layers.append(LayerChoice(site.origin, site.op_type, precision, reason, pinned=fixed))
    return PrecisionPlan(tuple(layers))


def without_ends(plan: PrecisionPlan, state: CompileState) -> PrecisionPlan:
    """The plan without nodes between layers of which nothing integer is left around them.

    Args:
        plan: one in which layers went back to float.
        state: the model and target that it is for.
    """
    sites = classify(state)
    owners = pairs(sites)
    integer = {c.origin for c in plan.layers if c.precision != FLOAT}
    able = {
        s.node: s for s in sites if s.origin in integer and not s.reason and s.node not in owners
    }
    names = {node: site.origin for node, site in able.items()}
    for node, reason in _shrink(able, owners, state.target).items():
        plan = plan.with_choice([names[node]], FLOAT, reason)
    return plan


def _told(site: Site, refused: Mapping[str, str]) -> Site:
    reason = "" if site.reason else refused.get(site.origin, "")
    return replace(site, reason=reason) if reason else site


def _mixed_ranges(site: Site, ranges: Mapping[str, TensorRange]) -> str:
    """Why a Concat must not be integer: boxes beside scores, which one scale would round to nothing.

    No measurement at the output would tell, since the large values are all that it sees.
    """
    if site.op_type != "Concat":
        return ""
    widths = {
        name: float(np.max(found.high) - np.min(found.low))
        for name in site.activation_names
        if (found := ranges.get(name)) is not None
    }
    wide = {name: width for name, width in widths.items() if width > 0}
    if len(wide) < 2:
        return ""
    least, most = min(wide, key=wide.__getitem__), max(wide, key=wide.__getitem__)
    if wide[most] <= MIXED * wide[least]:
        return ""
    return (
        f"kept apart: '{most}' is {wide[most] / wide[least]:.0f} times as wide as '{least}', and its "
        "result has one scale"
    )


def _why(site: Site) -> str:
    if site.role == "compute":
        return "the target has an integer kernel"
    if site.row is not None and site.row.beside:
        return "reads its residual as integers in the kernel before it"
    return "between integer nodes"


def _shrink(
    able: dict[oir.Node, Site], owners: dict[oir.Node, Site], target: Target
) -> dict[oir.Node, str]:
    """Remove from ``able`` what is not contiguous, until nothing changes; node -> why it went.

    Starting from all nodes finds the largest region in which the rule holds (a chain of elementwise
    nodes between two Convs stays whole); a node removed can only take neighbours with it.
    """
    refusals: dict[oir.Node, str] = {}
    waiting = [site for site in able.values() if site.role != "compute"]
    while waiting:
        kept = []
        for site in waiting:
            why = _broken(site, able, owners, target)
            if why:
                refusals[site.node] = why
                del able[site.node]
            else:
                kept.append(site)
        if len(kept) == len(waiting):
            break
        waiting = kept
    return refusals


def _broken(
    site: Site, able: dict[oir.Node, Site], owners: dict[oir.Node, Site], target: Target
) -> str:
    if site.row is not None and site.row.beside:
        return _unaccompanied(site, able)
    for value in site.activations.values():
        both = any(use.node not in able for use in value.uses())
        if target.quantizes_anywhere and site.role == "elementwise" and both:
            return f"its input '{value.name}' is read in float as well"
        if not target.quantizes_anywhere and not _written_by_integer(value, able, owners):
            return f"its input '{value.name}' is float"
    if not any(_read_by_integer(value, able, owners) for value in site.outputs):
        return "nothing integer reads its result"
    return ""


def _unaccompanied(site: Site, able: dict[oir.Node, Site]) -> str:
    """A residual is worth reading as integers where the kernel that it joins is an integer one."""
    carried = [v for i, v in enumerate(site.node.inputs) if i not in site.activations]
    producers = [v.producer() for v in carried if v is not None]
    return "" if any(p in able for p in producers) else "the layer that it would join is float"


def _written_by_integer(
    value: oir.Value, able: dict[oir.Node, Site], owners: dict[oir.Node, Site]
) -> bool:
    producer = value.producer()
    if producer is None:
        return False
    owner = owners.get(producer)
    return (producer if owner is None else owner.node) in able


def _read_by_integer(
    value: oir.Value, able: dict[oir.Node, Site], owners: dict[oir.Node, Site]
) -> bool:
    for use in value.uses():
        site = able.get(use.node)
        if site is not None and site.activations.get(use.idx) is value:
            return True
        owner = owners.get(use.node)
        if owner is not None and owner.node in able and value in owner.outputs:
            return any(_read_by_integer(out, able, owners) for out in use.node.outputs)
    return False
