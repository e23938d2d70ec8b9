"""The flow for targets whose runtime is not here: the Q/DQ model is the artifact, the device finishes it.

Accuracy is that of the Q/DQ graph as written, run by ONNX Runtime without its own quantization rules.
Speed is not measured: ``deploy/device.py`` does that on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as oir

from qcompile.artifact import LOCK, new_artifact
from qcompile.backends.ort import AS_WRITTEN, open_session
from qcompile.backends.trt import Profile
from qcompile.build import Builder
from qcompile.compare import OutputComparison, compare_outputs
from qcompile.engine_check import EngineCheck, check_engine, shape_profile
from qcompile.float_peaks import float_peaks
from qcompile.gate import judge
from qcompile.ir.manager import PassRecord
from qcompile.ir.plan import FLOAT, PrecisionPlan
from qcompile.ir.save import save_model
from qcompile.job import Job, start_plan
from qcompile.lock import Lock
from qcompile.passes.cast_half import CastHalf
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.planner.by_groups import Tried, accurate_plan
from qcompile.planner.search import needed_db
from qcompile.portable_write import write_portable
from qcompile.ranges import Ranges
from qcompile.reporter import Reporter
from qcompile.result import CompileResult
from qcompile.verdict import DELIVERED, FAIL, NOT_DELIVERED, NOT_MEASURED, Check, GateResult

__all__ = ["Portable", "compile_portable"]


class Stages(Protocol):
    """Times the stages."""

    reporter: Reporter
    seconds: dict[str, float]

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Time a block."""


@dataclass(frozen=True)
class Portable:
    """A Q/DQ model and all that is known about it.

    Attributes:
        plan: what it realises.
        model: the graph.
        path: its file.
        records: log of the QUANTIZE passes.
        tried: the plans that were compared, the last one taken.
        profile: shapes of the samples.
        engine: what the device's library makes of it.
        gate: accuracy and what else could be checked.
        baseline: the half-precision model that users would deploy otherwise, None with a float32 rest.
    """

    plan: PrecisionPlan
    model: oir.Model
    path: Path
    records: tuple[PassRecord, ...]
    tried: tuple[Tried, ...]
    profile: Profile
    engine: EngineCheck
    gate: GateResult
    baseline: oir.Model | None


def compile_portable(
    job: Job,
    ranges: Ranges,
    lock: Lock | None,
    key: Mapping[str, Any],
    stages: Stages,
    output: Path,
    keep: object,
) -> CompileResult:
    """Plan for accuracy, check legality as far as it goes, write the artifact for the device."""
    options, target = job.options, job.prepared.target
    half = target.half_rest and options.rest != "fp32"
    if half and lock is None:
        with stages("calibrate"):
            peaks = float_peaks(
                job.prepared.model, job.data.selection(), job.work, options.custom_ops
            )
            ranges = replace(ranges, chosen={**peaks, **ranges.chosen})
    builder = Builder(
        job.prepared.model,
        target,
        ranges.chosen,
        job.work,
        frozenset(options.disable),
        given=job.prepared.given,
        quantize_passes=(InsertQDQ(), CastHalf()) if half else (InsertQDQ(),),
    )
    with stages("plan"):
        start = start_plan(job, ranges.chosen, lock)
        tried = _plans(job, builder, start, replay=lock is not None)
        plan = tried[-1].plan
        model, records = builder.portable(plan)
        path = job.work / "portable.onnx"
        save_model(model, path)
    with stages("check engine"):
        feeds = [*job.data.calibration, *job.data.held]
        profile = shape_profile([{k: v.shape for k, v in feed.items()} for feed in feeds])
        engine = check_engine(path, model, plan, target, profile)
    with stages("gate"):
        gate = _judge(job, path, engine)
    baseline = None if not half else builder.portable(_all_float(plan))[0]
    made = Portable(plan, model, path, records, tuple(tried), profile, engine, gate, baseline)
    with stages("write"), new_artifact(output, options.force) as folder:
        report, code = write_portable(folder, job, ranges, made, key, stages.seconds, output)
        if lock is not None:
            lock.check_outputs(report.data["hashes"], options.lock or Path(LOCK))
    return CompileResult(report, output, code, keep=keep)


def _all_float(plan: PrecisionPlan) -> PrecisionPlan:
    return PrecisionPlan(tuple(replace(c, precision=FLOAT, pinned=False) for c in plan.layers))


def _plans(job: Job, builder: Builder, start: PrecisionPlan, *, replay: bool) -> list[Tried]:
    feeds = job.data.selection()
    options: dict[str, Any] = {
        "threads": job.options.threads,
        "custom_ops": job.options.custom_ops,
    }
    session = job.open_reference()
    wanted = [session.run(feed) for feed in feeds]
    path = job.work / "tried.onnx"

    def measure(plan: PrecisionPlan) -> float | None:
        save_model(builder.portable(plan)[0], path)
        tried = open_session(path, config=AS_WRITTEN, **options)
        compared: dict[str, OutputComparison] = {}
        for i, feed in enumerate(feeds):
            compare_outputs(compared, str(i), None, wanted[i], tried.run(feed))
        results = [c.result() for c in compared.values()]
        return min(
            (r.sqnr_db for r in results if r.sqnr_db is not None and not r.zero), default=None
        )

    if replay:
        return [Tried("replayed from the lock", start, measure(start))]
    compute = frozenset(s.origin for s in job.prepared.sites if s.role == "compute")
    return accurate_plan(start, compute, needed_db(job), measure)


def _judge(job: Job, path: Path, engine: EngineCheck) -> GateResult:
    """Everything but speed; a verdict that nothing spoils is "not measured"."""
    data, options = job.data, job.options
    found = judge(
        job.float_path,
        path,
        list(data.held),
        replace(job.limits(), max_latency_ms=None),
        metric=data.metric,
        names=data.held.names,
        slices=options.slices,
        extremes=data.extremes(),
        threads=options.threads,
        speed=False,
        custom_ops=options.custom_ops,
        config=AS_WRITTEN,
        reference=job.reference,
    )
    checks = [*found.checks]
    verdict, headline = found.verdict, found.headline
    if engine.refused:
        checks.append(Check("builds", FAIL, engine.refused))
        verdict, headline = NOT_DELIVERED, f"NOT DELIVERED: {engine.refused}"
    elif verdict == DELIVERED:
        verdict = NOT_MEASURED
        headline = f"NOT MEASURED: no GPU with {_library(job)} here; {_accuracy(found)}"
    notes = found.notes if engine.build is not None else (*found.notes, engine.note)
    # The Q/DQ file's size says nothing about the engine's.
    return replace(
        found,
        verdict=verdict,
        headline=headline,
        checks=tuple(checks),
        notes=notes,
        artifact_bytes=None,
    )


def _library(job: Job) -> str:
    return {"trt": "TensorRT"}.get(job.prepared.target.backend, job.prepared.target.backend)


def _accuracy(found: GateResult) -> str:
    if found.score is not None:
        return f"as ONNX Runtime computes the Q/DQ graph: {found.score.text}"
    if found.sqnr_db is None:
        return "the Q/DQ graph runs in ONNX Runtime"
    return f"SQNR {found.sqnr_db:.1f} dB as ONNX Runtime computes the Q/DQ graph"
