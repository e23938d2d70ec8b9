"""Writes the artifact of a target whose runtime is not here: the Q/DQ model and what finishes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.artifact import MODEL, PORTABLE, file_sha256
from qcompile.backends.ort import AS_WRITTEN, open_session
from qcompile.backends.trt_calibration import write_calibration_cache
from qcompile.deploy_files import SAMPLES, save_samples, write_deploy, write_preview
from qcompile.finish import common_data, describe_model, finish, place_for, write_choices
from qcompile.ir.plan import FP8, NVFP4, WEIGHTS
from qcompile.ir.save import save_model
from qcompile.job import Job
from qcompile.layers import integer_share, layer_row, macs_by_origin
from qcompile.needed import FLOOR_DB
from qcompile.outcome import GATE_NOT_MET, settle
from qcompile.planner.by_groups import Tried
from qcompile.ranges import Ranges
from qcompile.report import CompileReport
from qcompile.report_data.details import Built, describe_details
from qcompile.stages import Stages
from qcompile.verdict import NOT_DELIVERED

if TYPE_CHECKING:
    from qcompile.portable_flow import Portable

__all__ = ["provider_options", "trtexec_line", "write_portable"]


def write_portable(
    folder: Path,
    job: Job,
    ranges: Ranges,
    made: Portable,
    key: Mapping[str, Any],
    stages: Stages,
    output: Path,
    more: Mapping[str, Any] | None = None,
) -> tuple[CompileReport, int]:
    """Fill ``folder``; returns the report and the exit code. ``more``: further keys of the report."""
    layers, share = _layers(job, made)
    outcome = settle(made.gate, job, layers, foreign=ranges.foreign)
    target, build = job.prepared.target, made.build
    learned = build.learned
    must_know = "realised" in job.options.require or job.options.strict
    unknown = target.backend == "trt" and made.engine.build is None
    if must_know and unknown and outcome.verdict != NOT_DELIVERED:
        text = f"NOT DELIVERED: {made.engine.note}"
        outcome = replace(outcome, verdict=NOT_DELIVERED, exit_code=GATE_NOT_MET, headline=text)
    place, handed_over = place_for(folder, outcome)
    # What ONNX Runtime executes itself is no intermediate form.
    name = MODEL if target.backend == "ort" else PORTABLE
    save_model(build.portable, place / name)
    hashes = {name: file_sha256(place / name)}
    write_choices(folder, job, ranges, build, hashes, key)
    script = "run.py" if target.backend == "ort" else "device.py"
    if handed_over and target.backend == "ort":
        write_deploy(folder / "deploy", place / MODEL, list(job.data.held)[:SAMPLES])
    elif handed_over:
        _write_device_files(folder / "deploy", job, made, ranges)
    write_preview(folder, job)
    data = common_data(
        job,
        outcome,
        made.gate,
        build.portable,
        output=output,
        key=key,
        records=build.records,
        notes=(*learned.notes, *build.notes),
    )
    data |= {
        "delivered_form": "quantized" if target.ops or target.weights is not None else "float",
        "next": f"on the device: python3 {output.name}/deploy/{script}"
        if handed_over
        else outcome.advice,
        "hashes": hashes,
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
        "engine": _engine(made),
    }
    built = Built(build.portable, build.path, AS_WRITTEN, profiled=False)
    data |= describe_details(job, ranges, built, made.gate, layers)
    data |= more or {}
    return finish(folder, data, stages), outcome.exit_code


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
    macs = macs_by_origin(job)
    compute = {site.origin for site in job.prepared.sites if site.role == "compute"}
    weights = job.prepared.target.weights is not None
    engine = made.engine
    rows = [
        layer_row(
            layer,
            realised=engine.realised.get(layer.origin, layer.precision),
            executed_as=engine.executed_as.get(layer.origin, []),
            macs=macs,
            compute=layer.op_type != "Gather" if weights else layer.origin in compute,
            reason=engine.reasons.get(layer.origin),
        )
        for layer in made.build.plan.layers
    ]
    return rows, integer_share(rows, macs)


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


def _write_device_files(folder: Path, job: Job, made: Portable, ranges: Ranges) -> None:
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
        "kinds": [
            [output.name, group.axis, [c for a, b in group.channels for c in range(a, b + 1)]]
            for output in made.gate.outputs
            for group in output.groups
        ],
        "min_speedup": options.min_speedup,
        "shapes": {k: [list(s) for s in v] for k, v in made.profile.items()},
    }
    (folder / "device_spec.json").write_text(
        json.dumps(spec, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n"
    )
    peaks = {n: float(np.max(np.abs([r.low, r.high]))) for n, r in ranges.chosen.items()}
    peaks = {n: peak for n, peak in peaks.items() if np.isfinite(peak)}
    if job.prepared.target.weights is None:
        (folder / "calibration.cache").write_text(
            write_calibration_cache(peaks), encoding="utf-8", newline="\n"
        )
    if _word(job) not in (FP8, NVFP4, *WEIGHTS):
        text = json.dumps(provider_options(job, made), indent=1) + "\n"
        (folder / "provider_options.json").write_text(text, encoding="utf-8", newline="\n")
    (folder / "trtexec.txt").write_text(
        trtexec_line(job, made) + "\n", encoding="utf-8", newline="\n"
    )


def _word(job: Job) -> str:
    target = job.prepared.target
    return target.precision if target.ops or target.weights is not None else target.rests[0]


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

    The provider of ONNX Runtime 1.31 builds with TensorRT 10 and types no network strongly, so that
    each precision in the graph must be allowed; it has no word for FP8 or INT4. Session options keep ONNX
    Runtime's own Q/DQ rules away from the graph before the provider sees it.
    """
    options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "engines"}
    options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": "engines"}
    target = job.prepared.target
    words = {"int8": "trt_int8_enable", "fp16": "trt_fp16_enable", "bf16": "trt_bf16_enable"}
    for word in (_word(job), target.rests[0]):
        if word in words:
            options[words[word]] = "1"
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
