"""Writes the artifact folder: models, plan, ranges, lock, report, deploy/ and the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompile.artifact import MODEL, PORTABLE, file_sha256
from qcompile.deploy_files import SAMPLES, write_deploy, write_preview
from qcompile.finish import common_data, finish, place_for, write_choices
from qcompile.ir.plan import FLOAT
from qcompile.ir.save import save_model
from qcompile.job import Job
from qcompile.layers import describe_layers
from qcompile.outcome import settle
from qcompile.planner.costing import describe_costs
from qcompile.planner.race import Candidate
from qcompile.planner.search import Found
from qcompile.ranges import Ranges
from qcompile.report import CompileReport
from qcompile.report_data.details import Built, describe_details
from qcompile.retrain import moved, moved_texts
from qcompile.selected import hide
from qcompile.stages import Stages
from qcompile.verdict import GateResult

__all__ = ["write_artifact"]


def write_artifact(
    folder: Path,
    job: Job,
    ranges: Ranges,
    found: Found,
    taken: Candidate,
    gate: GateResult,
    key: Mapping[str, Any],
    stages: Stages,
    output: Path,
) -> tuple[CompileReport, int]:
    """Fill ``folder``; returns the report and the exit code."""
    build = taken.build
    learned = build.learned
    layers, share = describe_layers(job, build)
    outcome = settle(gate, job, layers, foreign=ranges.foreign)
    place, handed_over = place_for(folder, outcome)
    for model in (build.lowered, build.portable):
        hide(model, job.prepared.selected.before)
    save_model(build.lowered, place / MODEL)
    save_model(build.portable, place / PORTABLE)
    hashes = {name: file_sha256(place / name) for name in (MODEL, PORTABLE)}
    write_choices(folder, job, ranges, build, hashes, key)
    if found.costs is not None:
        (folder / "costs.json").write_text(found.costs.to_json(), encoding="utf-8", newline="\n")
    if found.pareto is not None:
        (folder / "pareto.json").write_text(found.pareto, encoding="utf-8", newline="\n")
    if handed_over:
        write_deploy(folder / "deploy", place / MODEL, list(job.data.held)[:SAMPLES])
    write_preview(folder, job)
    in_float = all(layer["requested"] == FLOAT for layer in layers)
    since = (
        None
        if job.base is None
        else moved(job.base, job.prepared, ranges.chosen, layers, gate.to_dict())
    )
    data = common_data(
        job,
        outcome,
        gate,
        build.lowered,
        output=output,
        key=key,
        records=build.records,
        notes=(*learned.notes, *build.notes),
    )
    data |= {
        "delivered_form": "float" if in_float else "quantized",
        "next": f"python {output / 'deploy' / 'run.py'}" if handed_over else outcome.advice,
        "hashes": hashes,
        "calibration": {
            "description": ranges.description,
            "random": job.data.random,
            "findings": [
                *job.prepared.given.findings(),
                *job.data.findings,
                *ranges.findings,
                *learned.findings(),
                *(() if since is None else moved_texts(since)),
            ],
        },
        "plan": {
            "how": found.how,
            "costs": None if found.costs is None else describe_costs(job, found.costs),
            "candidates": [
                {"name": c.name, "text": c.text(), "ms": c.ms, "speedup": c.speedup}
                | {
                    "sqnr_db": c.sqnr_db,
                    "channels_db": c.channels_db,
                    "refused": c.refused,
                    "chosen": c.chosen,
                }
                for c in found.chosen(taken)
            ],
            "front": _front(found),
        },
        "layers": layers,
        "moved": since,
        "integer_mac_share": share,
    }
    built = Built(build.portable, place / MODEL, costs=found.costs)
    data |= describe_details(job, ranges, built, gate, layers)
    return finish(folder, data, stages), outcome.exit_code


def _front(found: Found) -> list[dict[str, Any]]:
    """The predicted plans as points; speed-ups are against the prepared float model."""
    if found.pareto is None or found.costs is None:
        return []
    total = found.costs.totals_ns.get(FLOAT, 0)
    points = json.loads(found.pareto)["points"]
    return [
        {"latency_ns": p["latency_ns"], "sqnr_db": p["sqnr_db"], "found_by": p["found_by"]}
        | {"speedup": total / p["latency_ns"] if p["latency_ns"] else None}
        for p in points
    ]
