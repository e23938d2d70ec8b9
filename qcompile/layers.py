"""The layers of a report: what each was asked to be, what the runtime executes, and why."""

from __future__ import annotations

from typing import Any

from qcompile.build import Build
from qcompile.ir.graph import origin, origins
from qcompile.ir.plan import FLOAT
from qcompile.job import Job
from qcompile.trace import mac_counts

__all__ = ["describe_layers"]


def describe_layers(job: Job, build: Build) -> tuple[list[dict[str, Any]], float | None]:
    """One row for each layer of the plan in graph order, and the share of MACs run in integers."""
    feed = job.data.calibration.load(0)
    counts = mac_counts(job.prepared.model, feed, job.work, job.options.custom_ops)
    by_origin = {origin(node): count for node, count in counts.items()}
    seen = _lowered(build)
    compute = {site.origin for site in job.prepared.sites if site.role == "compute"}
    rows: list[dict[str, Any]] = []
    for layer in build.plan.layers:
        found = seen.get(layer.origin, [])
        rows.append(
            {
                "origin": layer.origin,
                "op_type": layer.op_type,
                "requested": layer.precision,
                "realised": layer.precision if any(map(_integer, found)) else FLOAT,
                "executed_as": found,
                "reason": layer.reason,
                "pinned": layer.pinned,
                "sensitivity": layer.sensitivity,
                "float_ns": layer.float_ns,
                "int_ns": layer.int_ns,
                "macs": by_origin.get(layer.origin, 0),
                "compute": layer.origin in compute,
            }
        )
    total = sum(counts.values())
    integer = sum(r["macs"] for r in rows if r["realised"] != FLOAT)
    return rows, (integer / total if total else None)


def _lowered(build: Build) -> dict[str, list[str]]:
    """Origin id -> operators that stand for it in the lowered model."""
    found: dict[str, list[str]] = {}
    for node in build.lowered.graph:
        for name in origins(node):
            found.setdefault(name, []).append(node.op_type)
    return found


def _integer(op_type: str) -> bool:
    return op_type.startswith(("QLinear", "QGemm", "MatMulInteger", "DynamicQuantize", "ConvInteger"))
