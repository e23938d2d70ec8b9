"""Writes the artifact folder: models, plan, ranges, lock, report, deploy/ and the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.artifact import LOCK, MODEL, PORTABLE, file_sha256, write_manifest
from qcompile.backends.ort import open_session
from qcompile.data.images import save_preview
from qcompile.data.inputs import Feed
from qcompile.environment import describe_machine, describe_versions
from qcompile.ir.plan import FLOAT
from qcompile.ir.save import save_model
from qcompile.job import Job
from qcompile.layers import describe_layers
from qcompile.learned_file import LEARNED, write_learned
from qcompile.lock import Lock
from qcompile.oldest_runtime import oldest_runtime
from qcompile.outcome import settle
from qcompile.planner.costing import describe_costs
from qcompile.planner.race import Candidate
from qcompile.planner.search import Found
from qcompile.ranges import Ranges
from qcompile.report import REPORT_VERSION, CompileReport, notes_as_data, passes_as_data
from qcompile.report_data.details import Built, describe_details
from qcompile.report_page.page import write_page
from qcompile.retrain import moved, moved_texts
from qcompile.reuse import byte_inputs
from qcompile.verdict import DELIVERED, INCONCLUSIVE, NOT_MEASURED, GateResult, to_jsonable

__all__ = ["describe_model", "save_samples", "write_artifact", "write_deploy", "write_preview"]

SAMPLES = 4
"""Stored samples in deploy/."""

ELSEWHERE = ("device.py",)
"""Scripts of artifacts whose runtime is on a device."""


def write_artifact(
    folder: Path,
    job: Job,
    ranges: Ranges,
    found: Found,
    taken: Candidate,
    gate: GateResult,
    key: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    output: Path,
) -> tuple[CompileReport, int]:
    """Fill ``folder``; returns the report and the exit code.

    A model that was not delivered is kept as ``rejected/model.onnx``, for diagnosis, never as the
    artifact itself.
    """
    build = taken.build
    layers, share = describe_layers(job, build)
    outcome = settle(gate, job, layers, foreign=ranges.foreign)
    handed_over = outcome.verdict in (DELIVERED, INCONCLUSIVE, NOT_MEASURED)
    place = folder if handed_over else folder / "rejected"
    place.mkdir(exist_ok=True)
    save_model(build.lowered, place / MODEL)
    save_model(build.portable, place / PORTABLE)
    hashes = {name: file_sha256(place / name) for name in (MODEL, PORTABLE)}
    (folder / "plan.json").write_text(build.plan.to_json(), encoding="utf-8", newline="\n")
    ranges.save(folder / "ranges.npz")
    if found.costs is not None:
        (folder / "costs.json").write_text(found.costs.to_json(), encoding="utf-8", newline="\n")
    digest, learned = "", build.learned
    if learned.weights or learned.bias_shifts:
        write_learned(folder / LEARNED, learned, job.prepared.model)
        digest = file_sha256(folder / LEARNED)
    if found.pareto is not None:
        (folder / "pareto.json").write_text(found.pareto, encoding="utf-8", newline="\n")
    factors = job.prepared.factors
    lock = Lock(byte_inputs(dict(key)), ranges.chosen, build.plan, hashes, digest, factors)
    (folder / LOCK).write_text(lock.to_json(), encoding="utf-8", newline="\n")
    if handed_over:
        write_deploy(folder / "deploy", place / MODEL, list(job.data.held)[:SAMPLES])
    write_preview(folder, job)
    oldest = oldest_runtime(build.lowered)
    in_float = all(layer["requested"] == FLOAT for layer in layers)
    since = (
        None
        if job.base is None
        else moved(job.base, job.prepared, ranges.chosen, layers, gate.to_dict())
    )
    data = {
        "version": REPORT_VERSION,
        "verdict": outcome.verdict,
        "delivered_form": "float" if in_float else "quantized",
        "oldest_onnxruntime": {"version": oldest.text, "because": list(oldest.because)},
        "exit_code": outcome.exit_code,
        "headline": outcome.headline,
        "warnings": list(outcome.warnings),
        "next": f"python {output / 'deploy' / 'run.py'}" if handed_over else outcome.advice,
        "output": str(output),
        "model": describe_model(job),
        "target": {"name": job.prepared.target.name, "device": job.prepared.target.device}
        | {"notes": list(job.prepared.target.notes)},
        "inputs": dict(key),
        "hashes": hashes,
        "techniques": list(job.options.techniques),
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
                | {"sqnr_db": c.sqnr_db, "refused": c.refused, "chosen": c.chosen}
                for c in found.chosen(taken)
            ],
            "front": _front(found),
        },
        "layers": layers,
        "moved": since,
        "integer_mac_share": share,
        "gate": gate.to_dict(),
        "passes": passes_as_data((*job.prepared.records, *build.records)),
        "notes": notes_as_data((*job.prepared.notes, *learned.notes, *build.notes)),
        "stages": list(stages),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "seed": job.options.seed,
    }
    built = Built(build.portable, place / MODEL, costs=found.costs)
    data |= describe_details(job, ranges, built, gate, layers)
    report = CompileReport(to_jsonable(data))
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8", newline="\n")
    write_page(report.data, folder / "report.html")
    write_manifest(
        folder,
        {
            "qcompile": describe_versions().get("qcompile", ""),
            "verdict": outcome.verdict,
            "target": job.prepared.target.name,
            "device": job.prepared.target.device,
            "oldest_onnxruntime": oldest.text,
            "inputs": dict(key),
            "machine": describe_machine(),
            "seed": job.options.seed,
        },
    )
    return report, outcome.exit_code


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


def describe_model(job: Job) -> dict[str, Any]:
    """The user's model in the report."""
    loaded = job.prepared.loaded
    return {
        "name": (job.reference or job.float_path).name,
        "sha256": loaded.sha256,
        "ir_version": loaded.model.ir_version,
        "opset": loaded.model.opset_imports.get("", 0),
        "inputs": [str(spec) for spec in job.prepared.inputs],
        "nodes": sum(1 for _ in loaded.model.graph),
    }


def write_deploy(folder: Path, model: Path, feeds: Sequence[Feed]) -> None:
    """What someone without qcompile needs: a script, and samples with the outputs to expect."""
    folder.mkdir()
    for source in sorted((Path(__file__).parent / "deploy").iterdir()):
        if source.suffix in (".py", ".cc", ".md") and source.name not in ELSEWHERE:
            shutil.copyfile(source, folder / source.name)
    session = open_session(model)
    save_samples(folder / "sample_in.npz", feeds)
    save_samples(folder / "sample_out.npz", [session.run(feed) for feed in feeds])


def save_samples(path: Path, feeds: Sequence[Mapping[str, Any]]) -> None:
    """Arrays as ``sample_tensor`` by number, the tensors' names as JSON beside them."""
    names = list(feeds[0])
    arrays = {
        f"{i}_{j}": np.asarray(feed[name])
        for i, feed in enumerate(feeds)
        for j, name in enumerate(names)
    }
    arrays["names"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
    arrays["count"] = np.array(len(feeds))
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_preview(folder: Path, job: Job) -> None:
    """A picture of the first sample, where images were read."""
    if job.options.preprocess is None:
        return
    feed = job.data.calibration.load(0)
    image = next((a for a in feed.values() if a.ndim == 4), None)
    if image is not None and (image.shape[1] in (1, 3) or image.shape[3] in (1, 3)):
        save_preview(image, folder / "preview.png")
