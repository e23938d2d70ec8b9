"""Writes the artifact of a target whose runtime is not here: the Q/DQ model and what finishes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.artifact import LOCK, MODEL, PORTABLE, file_sha256, write_manifest
from qcompile.backends.ort import AS_WRITTEN, open_session
from qcompile.backends.trt_calibration import write_calibration_cache
from qcompile.environment import describe_machine, describe_versions
from qcompile.ir.graph import origin
from qcompile.ir.plan import FLOAT
from qcompile.ir.save import save_model
from qcompile.job import Job
from qcompile.learned_file import LEARNED, write_learned
from qcompile.lock import Lock
from qcompile.oldest_runtime import oldest_runtime
from qcompile.outcome import GATE_NOT_MET, settle
from qcompile.planner.by_groups import Tried
from qcompile.ranges import Ranges
from qcompile.report import REPORT_VERSION, CompileReport, notes_as_data, passes_as_data
from qcompile.report_data.details import Built, describe_details
from qcompile.report_page.page import write_page
from qcompile.reuse import byte_inputs
from qcompile.trace import mac_counts
from qcompile.verdict import DELIVERED, INCONCLUSIVE, NOT_DELIVERED, NOT_MEASURED, to_jsonable
from qcompile.write import describe_model, save_samples, write_deploy, write_preview

if TYPE_CHECKING:
    from qcompile.portable_flow import Portable

__all__ = ["provider_options", "trtexec_line", "write_portable"]

SAMPLES = 4
"""Stored samples in deploy/."""

FLOOR_DB = 10.0
"""What the device must reach where neither --min-sqnr nor the gate says more."""


def write_portable(
    folder: Path,
    job: Job,
    ranges: Ranges,
    made: Portable,
    key: Mapping[str, Any],
    seconds: Mapping[str, float],
    output: Path,
) -> tuple[CompileReport, int]:
    """Fill ``folder``; returns the report and the exit code.

    A model that was refused is kept as ``rejected/model.qdq.onnx``.
    """
    layers, share = _layers(job, made)
    outcome = settle(made.gate, job, layers, foreign=ranges.foreign)
    target, build = job.prepared.target, made.build
    must_know = "realised" in job.options.require or job.options.strict
    unknown = target.backend == "trt" and made.engine.build is None
    if must_know and unknown and outcome.verdict != NOT_DELIVERED:
        text = f"NOT DELIVERED: {made.engine.note}"
        outcome = replace(outcome, verdict=NOT_DELIVERED, exit_code=GATE_NOT_MET, headline=text)
    handed_over = outcome.verdict in (DELIVERED, INCONCLUSIVE, NOT_MEASURED)
    place = folder if handed_over else folder / "rejected"
    place.mkdir(exist_ok=True)
    # What ONNX Runtime executes itself is no intermediate form.
    name = MODEL if target.backend == "ort" else PORTABLE
    save_model(build.portable, place / name)
    hashes = {name: file_sha256(place / name)}
    (folder / "plan.json").write_text(build.plan.to_json(), encoding="utf-8", newline="\n")
    ranges.save(folder / "ranges.npz")
    digest, learned = "", build.learned
    if learned.weights or learned.bias_shifts:
        write_learned(folder / LEARNED, learned, job.prepared.model)
        digest = file_sha256(folder / LEARNED)
    factors = job.prepared.factors
    lock = Lock(byte_inputs(dict(key)), ranges.chosen, build.plan, hashes, digest, factors)
    (folder / LOCK).write_text(lock.to_json(), encoding="utf-8", newline="\n")
    script = "run.py" if target.backend == "ort" else "device.py"
    if handed_over and target.backend == "ort":
        write_deploy(folder / "deploy", place / MODEL, list(job.data.held)[:SAMPLES])
    elif handed_over:
        _write_deploy(folder / "deploy", job, made, ranges)
    write_preview(folder, job)
    oldest = oldest_runtime(build.portable)
    data = {
        "version": REPORT_VERSION,
        "verdict": outcome.verdict,
        "delivered_form": "quantized" if target.ops else "float",
        "oldest_onnxruntime": {"version": oldest.text, "because": list(oldest.because)},
        "exit_code": outcome.exit_code,
        "headline": outcome.headline,
        "warnings": list(outcome.warnings),
        "next": f"on the device: python3 {output.name}/deploy/{script}"
        if handed_over
        else outcome.advice,
        "output": str(output),
        "model": describe_model(job),
        "target": {"name": target.name, "device": target.device} | {"notes": list(target.notes)},
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
            ],
        },
        "plan": {
            "how": f"{made.tried[-1].name}; {made.engine.note}",
            "candidates": [_candidate(t, t is made.tried[-1]) for t in made.tried],
            "front": [],
        },
        "layers": layers,
        "integer_mac_share": share,
        "gate": made.gate.to_dict(),
        "passes": passes_as_data((*job.prepared.records, *build.records)),
        "notes": notes_as_data((*job.prepared.notes, *learned.notes, *build.notes)),
        "engine": _engine(made),
        "stages": [{"name": k, "seconds": round(v, 3)} for k, v in seconds.items()],
        "machine": describe_machine(),
        "versions": describe_versions(),
        "seed": job.options.seed,
    }
    built = Built(build.portable, build.path, AS_WRITTEN, profiled=False)
    data |= describe_details(job, ranges, built, made.gate, layers)
    report = CompileReport(to_jsonable(data))
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8", newline="\n")
    write_page(report.data, folder / "report.html")
    write_manifest(
        folder,
        {
            "qcompile": describe_versions().get("qcompile", ""),
            "verdict": outcome.verdict,
            "target": target.name,
            "device": target.device,
            "inputs": dict(key),
            "machine": describe_machine(),
            "seed": job.options.seed,
        },
    )
    return report, outcome.exit_code


def _candidate(tried: Tried, chosen: bool) -> dict[str, Any]:
    db = "" if tried.sqnr_db is None else f", {tried.sqnr_db:.1f} dB"
    return {
        "name": tried.name,
        "text": f"{tried.name}: not timed here{db}",
        "ms": None,
        "speedup": None,
        "sqnr_db": tried.sqnr_db,
        "refused": "",
        "chosen": chosen,
    }


def _layers(job: Job, made: Portable) -> tuple[list[dict[str, Any]], float | None]:
    """One row a layer; without a build what was asked for stands for what is realised."""
    feed = job.data.calibration.load(0)
    counts = mac_counts(job.prepared.model, feed, job.work, job.options.custom_ops)
    by_origin = {origin(node): count for node, count in counts.items()}
    compute = {site.origin for site in job.prepared.sites if site.role == "compute"}
    engine = made.engine
    rows: list[dict[str, Any]] = [
        {
            "origin": layer.origin,
            "op_type": layer.op_type,
            "requested": layer.precision,
            "realised": engine.realised.get(layer.origin, layer.precision),
            "executed_as": engine.executed_as.get(layer.origin, []),
            "reason": engine.reasons.get(layer.origin, layer.reason),
            "pinned": layer.pinned,
            "sensitivity": layer.sensitivity,
            "float_ns": layer.float_ns,
            "int_ns": layer.int_ns,
            "macs": by_origin.get(layer.origin, 0),
            "compute": layer.origin in compute,
        }
        for layer in made.build.plan.layers
    ]
    total = sum(counts.values())
    integer = sum(r["macs"] for r in rows if r["realised"] != FLOAT)
    return rows, (integer / total if total else None)


def _engine(made: Portable) -> dict[str, Any]:
    build = made.engine.build
    return {
        "note": made.engine.note,
        "refused": made.engine.refused,
        "library": None if build is None else build.library,
        "capability": None if build is None else build.capability,
        "warnings": [] if build is None else list(build.warnings),
        "profile": {k: [list(s) for s in v] for k, v in made.profile.items()},
        "kernels": []
        if build is None
        else [
            {"name": k.name, "kind": k.kind, "reads": [*k.inputs, *k.constants]}
            | {"writes": list(k.outputs), "nodes": list(k.nodes)}
            for k in build.layers
        ],
    }


def _write_deploy(folder: Path, job: Job, made: Portable, ranges: Ranges) -> None:
    """What finishes the artifact on the device, and what it is compared with."""
    folder.mkdir()
    shutil.copyfile(Path(__file__).parent / "deploy" / "device.py", folder / "device.py")
    save_model(job.prepared.model, folder / "float.onnx")
    if made.baseline is not None:
        save_model(made.baseline, folder / f"{job.prepared.target.rests[0]}.onnx")
    feeds = list(job.data.held)[:SAMPLES]
    session = open_session(made.build.path, config=AS_WRITTEN)
    exact = job.open_reference()
    save_samples(folder / "sample_in.npz", feeds)
    save_samples(folder / "sample_out.npz", [session.run(feed) for feed in feeds])
    save_samples(folder / "float_out.npz", [exact.run(feed) for feed in feeds])
    options = job.options
    spec = {
        "model": describe_model(job)["name"],
        "precision": _word(job),
        "min_sqnr": FLOOR_DB if options.min_sqnr is None else options.min_sqnr,
        "min_speedup": options.min_speedup,
        "shapes": {k: [list(s) for s in v] for k, v in made.profile.items()},
    }
    (folder / "device_spec.json").write_text(
        json.dumps(spec, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n"
    )
    peaks = {n: float(np.max(np.abs([r.low, r.high]))) for n, r in ranges.chosen.items()}
    peaks = {n: peak for n, peak in peaks.items() if np.isfinite(peak)}
    (folder / "calibration.cache").write_text(
        write_calibration_cache(peaks), encoding="utf-8", newline="\n"
    )
    (folder / "provider_options.json").write_text(
        json.dumps(provider_options(job, made), indent=1) + "\n", encoding="utf-8", newline="\n"
    )
    (folder / "trtexec.txt").write_text(
        trtexec_line(job, made) + "\n", encoding="utf-8", newline="\n"
    )


def _word(job: Job) -> str:
    target = job.prepared.target
    return target.precision if target.ops else target.rests[0]


def trtexec_line(job: Job, made: Portable) -> str:
    """The exact line that builds the engine with the vendor's own tool."""
    parts = ["trtexec --onnx=model.qdq.onnx --stronglyTyped --saveEngine=model.engine"]
    for index, word in enumerate(("minShapes", "optShapes", "maxShapes")):
        shapes = _shapes(job, made, index)
        if shapes:
            parts.append(f"--{word}={shapes}")
    return " ".join(parts)


def provider_options(job: Job, made: Portable) -> dict[str, Any]:
    """What ONNX Runtime's TensorRT provider is to be given for ``model.qdq.onnx``.

    Session options keep ONNX Runtime's own Q/DQ rules away from the graph before the provider sees it.
    """
    options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "engines"}
    options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": "engines"}
    for index, word in enumerate(("min", "opt", "max")):
        shapes = _shapes(job, made, index)
        if shapes:
            options[f"trt_profile_{word}_shapes"] = shapes
    providers = [["TensorrtExecutionProvider", options], ["CUDAExecutionProvider", {}]]
    return {"providers": providers, "session_options": dict(AS_WRITTEN)}


def _shapes(job: Job, made: Portable, index: int) -> str:
    """Least (0), typical (1) or largest (2) shapes of the dynamic inputs, as TensorRT's tools write them."""
    dynamic = {
        spec.name
        for spec in job.prepared.inputs
        if spec.shape is None or any(not isinstance(d, int) for d in spec.shape)
    }
    return ",".join(
        f"{name}:{_dims(found[index])}" for name, found in made.profile.items() if name in dynamic
    )


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
