"""Time by operator before and after, and of each layer in the artifact as it was built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.job import Job
from qcompile.planner.kernel_times import FormTimes, form_times
from qcompile.verdict import GateResult

__all__ = ["Times", "operator_times"]

BUDGET_S = 0.7
"""Profiled runs of one model."""

SLOW_MS = 100
"""A model that takes longer is profiled fewer times: noise is small beside it."""


@dataclass(frozen=True)
class Times:
    """Both models' times in nanoseconds; each adds up to the latency that the gate measured.

    Attributes:
        before: of the user's model.
        after: of the artifact.
    """

    before: FormTimes
    after: FormTimes

    def rows(self) -> dict[str, Any]:
        """Operators of both models, those that take longest first."""
        return {"before": _rows(self.before), "after": _rows(self.after)}


def operator_times(job: Job, artifact: Path, gate: GateResult) -> Times | None:
    """Profile both models; None where the gate timed nothing.

    Raises:
        ModelError: a model cannot be profiled.
    """
    if gate.speed is None:
        return None
    feed = next(iter(job.data.held))
    slow = gate.speed.models["float"].p50_ms > SLOW_MS
    made = [
        form_times(
            path,
            feed,
            gate.speed.models[name].p50_ms * 1e6,
            threads=job.options.threads,
            budget_s=BUDGET_S,
            least=3 if slow else 5,
            custom_ops=job.options.custom_ops,
        )
        for name, path in (("float", job.mapped_float()), ("artifact", artifact))
    ]
    return Times(*made)


def _rows(times: FormTimes) -> list[dict[str, Any]]:
    found: Mapping[str, tuple[int, float]] = times.operators
    rows = [{"op_type": k, "count": n, "ns": round(ns)} for k, (n, ns) in found.items()]
    rows.append({"op_type": "outside operators", "count": 1, "ns": round(times.base_ns)})
    return sorted(rows, key=lambda row: (-int(str(row["ns"])), str(row["op_type"])))
