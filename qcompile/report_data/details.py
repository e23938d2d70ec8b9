"""All that the report page shows beside the verdict, gathered for one compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as oir

from qcompile.ir.errors import QCompileError
from qcompile.ir.graph import origins
from qcompile.job import Job
from qcompile.planner.costs import Costs
from qcompile.ranges import Ranges
from qcompile.report_data.graph_rows import graph_rows, node_names
from qcompile.report_data.layer_errors import layer_errors
from qcompile.report_data.operator_times import Times, operator_times
from qcompile.report_data.tensor_rows import tensor_rows
from qcompile.report_data.weight_rows import weight_rows
from qcompile.report_data.worst_samples import worst_samples
from qcompile.verdict import GateResult

__all__ = ["Built", "add_times", "describe_details"]

T = TypeVar("T")


@dataclass(frozen=True)
class Built:
    """What is described.

    Attributes:
        portable: the Q/DQ model.
        path: the file that the gate judged.
        config: session options under which its outputs count, None for the runtime's own.
        costs: measured costs of the layers, None without.
        profiled: it runs here as it will be deployed, so that its operators' times tell something.
    """

    portable: oir.Model
    path: Path
    config: Mapping[str, str] | None = None
    costs: Costs | None = None
    profiled: bool = True


def describe_details(
    job: Job, ranges: Ranges, built: Built, gate: GateResult, layers: list[dict[str, Any]]
) -> dict[str, Any]:
    """The report's keys ``graph``, ``tensors``, ``weights``, ``operators``, ``samples`` and ``left_out``.

    Rows of ``layers`` are completed in place with costs, time in the artifact and error at their output.
    What cannot be found out is named under ``left_out``; it never fails a compile.
    """
    left_out: list[str] = []

    def attempt(what: str, act: Callable[[], T], otherwise: T) -> T:
        try:
            return act()
        except QCompileError as e:
            left_out.append(f"{what}: {e}")
            return otherwise

    prepared = job.prepared
    names = node_names(prepared.model, prepared.sites)
    graph = graph_rows(prepared.model, names)
    by_layer = {row["origin"]: row for row in graph["nodes"]}
    written = [w for row in graph["nodes"] for w in row["writes"][:1]]
    errors = attempt(
        "error by layer",
        lambda: layer_errors(job, built.portable, written),
        dict[str, float | None](),
    )
    nothing: list[dict[str, Any]] = []
    times: Times | None = attempt(
        "time by operator",
        lambda: operator_times(job, built.path, gate) if built.profiled else None,
        None,
    )
    if times is not None:
        add_times(prepared.model, names, by_layer, times)
    for row in graph["nodes"]:
        row["sqnr_db"] = errors.get(row["writes"][0]) if row["writes"] else None
    if built.costs is not None:
        _add_costs(layers, built.costs)
    return {
        "graph": graph,
        "tensors": tensor_rows(ranges.chosen, ranges.calibration),
        "weights": weight_rows(prepared.sites),
        "operators": None if times is None else times.rows(),
        "samples": attempt(
            "worst samples", lambda: worst_samples(job, built.path, gate, built.config), nothing
        ),
        "left_out": left_out,
    }


def add_times(
    model: oir.Model, names: dict[oir.Node, str], rows: dict[str, dict[str, Any]], times: Times
) -> None:
    """Each node's time in the user's model (of all nodes that it stands for) and in the artifact."""
    for node, name in names.items():
        row = rows.get(name)
        if row is not None:
            every = origins(node) or (name,)
            row["float_ns"] = round(sum(times.before.layers.get(o, 0.0) for o in every))
            row["artifact_ns"] = round(sum(times.after.layers.get(o, 0.0) for o in every))


def _add_costs(layers: list[dict[str, Any]], costs: Costs) -> None:
    for layer in layers:
        cost = costs.layers.get(layer["origin"])
        layer["dynamic_ns"] = None if cost is None else cost.dynamic_ns
        if cost is not None:
            layer["float_ns"] = cost.float_ns if layer["float_ns"] is None else layer["float_ns"]
            layer["int_ns"] = cost.int_ns if layer["int_ns"] is None else layer["int_ns"]
