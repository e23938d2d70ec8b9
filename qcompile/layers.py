"""The layers of a report: what each was asked to be, what the runtime executes, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qcompile.backends.ort_realised import Realisation, Realised, realised
from qcompile.build import Build
from qcompile.ir.errors import ModelError
from qcompile.ir.graph import origin
from qcompile.ir.plan import FLOAT, INT8, TABLE, LayerChoice
from qcompile.job import Job
from qcompile.trace import mac_counts

__all__ = ["describe_layers", "integer_share", "layer_row", "macs_by_origin"]

NOT_RUN = "not run"


def macs_by_origin(job: Job) -> dict[str, int]:
    """Origin id -> multiply-accumulates for the first calibration sample."""
    feed = job.data.calibration.load(0)
    part = None if job.room is None or job.room.fits else job.room.part
    counts = mac_counts(job.prepared.model, feed, job.work, job.options.custom_ops, part=part)
    return {origin(node): count for node, count in counts.items()}


def layer_row(
    layer: LayerChoice,
    *,
    realised: str,
    executed_as: Sequence[str],
    macs: Mapping[str, int],
    compute: bool,
    reason: str | None = None,
) -> dict[str, Any]:
    """A layer as the report has it; ``reason`` replaces the plan's where more is known."""
    return {
        "origin": layer.origin,
        "op_type": layer.op_type,
        "requested": layer.precision,
        "realised": realised,
        "executed_as": list(executed_as),
        "reason": layer.reason if reason is None else reason,
        "pinned": layer.pinned,
        "sensitivity": layer.sensitivity,
        "float_ns": layer.float_ns,
        "int_ns": layer.int_ns,
        "macs": macs.get(layer.origin, 0),
        "compute": compute,
    }


def integer_share(rows: Sequence[Mapping[str, Any]], macs: Mapping[str, int]) -> float | None:
    """Share of all MACs in layers that are not float; None without any MACs."""
    total = sum(macs.values())
    integer = sum(row["macs"] for row in rows if row["realised"] != FLOAT)
    return integer / total if total else None


def describe_layers(job: Job, build: Build) -> tuple[list[dict[str, Any]], float | None]:
    """One row for each layer of the plan in graph order, and the share of MACs run in integers.

    A layer for which no kernel runs (folded into a constant, or into nothing) counts as requested.
    In a model that the runtime refuses no layer is realised.
    """
    macs = macs_by_origin(job)
    feed = job.data.calibration.load(0)
    try:
        seen = realised(build.path, feed, custom_ops=job.options.custom_ops, folder=job.work)
    except ModelError:  # the gate's verdict holds the runtime's words
        seen = None
    compute = {site.origin for site in job.prepared.sites if site.role == "compute"}
    rows: list[dict[str, Any]] = []
    for layer in build.plan.layers:
        found = None if seen is None else seen.layers.get(layer.origin)
        rows.append(
            layer_row(
                layer,
                realised=_precision(layer, seen, found),
                executed_as=() if found is None else found.op_types,
                macs=macs,
                compute=layer.origin in compute,
            )
        )
    return rows, None if seen is None else seen.share(macs)


def _precision(layer: LayerChoice, seen: Realisation | None, found: Realised | None) -> str:
    if seen is None:
        return NOT_RUN
    kept = layer.precision == TABLE and found is not None and found.precision == INT8
    return layer.precision if found is None or kept else found.precision
