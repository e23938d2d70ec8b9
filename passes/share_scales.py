"""Choose scale and zero point of every activation that gets a Q/DQ; movers of values share theirs.

MaxPool, Reshape, Transpose and their like write the integers that they read, so their output has
the input's scale and zero point. Tensors that must agree form a group (union-find); the group's
range is the union of its members'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.affine import QParams, TensorRange, solve
from qcompile.ir.errors import CalibrationError
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.passes.integer_region import Region, integer_region

__all__ = ["ShareScales", "choose_scales"]


@dataclass(frozen=True)
class ShareScales:
    """Fills ``state.qparams`` for activations; entries that stand there already are kept."""

    name: str = "share-scales"

    def run(self, state: CompileState) -> PassResult:
        """Choose scales from ``state.ranges``; edits no graph.

        Raises:
            CalibrationError: a tensor that needs a range has none.
        """
        return choose_scales(state, integer_region(state))


def choose_scales(state: CompileState, region: Region) -> PassResult:
    """Fill ``state.qparams`` for the tensors of ``region``.

    Raises:
        CalibrationError: a tensor that needs a range has none, or its range is not finite.
    """
    notes: list[Note] = []
    count = 0
    for group in _groups(region, state.target.concat_shares_scale):
        missing = [v for v in group if (v.name or "") not in state.qparams]
        if not missing:
            continue
        given = [state.qparams[v.name or ""] for v in group if v not in missing]
        qparams = given[0] if given else _solve_group(state, region, group)
        for value in missing:
            state.qparams[value.name or ""] = qparams
            count += 1
        if len(group) > 1:
            names = ", ".join(f"'{v.name}'" for v in group)
            notes.append(Note(group[0].name or "", f"one scale for {names}", changed=True))
    return PassResult(count, tuple(notes))


def _groups(region: Region, concat_shares: bool) -> list[list[oir.Value]]:
    parent: dict[oir.Value, oir.Value] = {v: v for v in region.tensors}

    def find(value: oir.Value) -> oir.Value:
        while parent[value] is not value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

    for site in region.sites.values():
        if site.role == "passthrough" or (site.op_type == "Concat" and concat_shares):
            first, *rest = [*site.activations.values(), *map(region.result, site.outputs)]
            for value in rest:
                parent[find(value)] = find(first)
    groups: dict[oir.Value, list[oir.Value]] = {}
    for value in region.tensors:
        groups.setdefault(find(value), []).append(value)
    return list(groups.values())


def _solve_group(state: CompileState, region: Region, group: list[oir.Value]) -> QParams:
    """From the union of the members' ranges; what a mover writes needs no range of its own."""
    moved = {
        output
        for site in region.sites.values()
        if site.role == "passthrough"
        for output in site.outputs
    }
    ranges: list[TensorRange] = []
    for value in group:
        found = state.ranges.get(value.name or "")
        if found is not None:
            ranges.append(found)
        elif value not in moved:
            raise CalibrationError(
                f"tensor '{value.name}' needs a range and calibration has none; "
                "calibrate again with this model and target (saved ranges may be of another model)"
            )
    if not ranges:
        raise CalibrationError(
            f"none of the tensors that share a scale with '{group[0].name}' has a range"
        )
    low = np.min([np.min(r.low) for r in ranges])
    high = np.max([np.max(r.high) for r in ranges])
    try:
        return solve(
            TensorRange(np.asarray(low), np.asarray(high), ranges[0].method),
            state.target.activation,
        )
    except CalibrationError as e:
        raise CalibrationError(f"tensor '{group[0].name}': {e}") from e
