"""The flow for targets whose runtime is not here: the Q/DQ model is the artifact, the device finishes it.

Accuracy is that of the Q/DQ graph as written, run by ONNX Runtime without its own quantization rules.
Speed is not measured: ``deploy/device.py`` does that on the device. A half-precision model for ONNX
Runtime itself is timed where one of its GPU providers starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as oir

from qcompile.attempts import ATTEMPTS
from qcompile.backends.ort import AS_WRITTEN, CPU, gpu_provider
from qcompile.backends.trt import Profile
from qcompile.build import Build
from qcompile.engine_check import EngineCheck, check_engine
from qcompile.finish import deliver
from qcompile.float_peaks import float_peaks
from qcompile.gate import judge
from qcompile.ir.affine import TensorRange
from qcompile.ir.manager import CompileState
from qcompile.ir.plan import FLOAT, PrecisionPlan
from qcompile.ir.save import save_model
from qcompile.job import Job, start_plan
from qcompile.learned import find_learned
from qcompile.learning import Learned
from qcompile.lock import Lock
from qcompile.needed import needed
from qcompile.planner.attention import find_attention, kept_short, kept_whole
from qcompile.planner.by_groups import Tried
from qcompile.planner.default import without_ends
from qcompile.planner.portable_plans import DevicePlans
from qcompile.planner.vectors import kept_wide, weight_products
from qcompile.portable_build import PortableBuilder, portable_passes
from qcompile.portable_write import write_portable
from qcompile.range_choice import choose_ranges
from qcompile.ranges import Ranges
from qcompile.result import CompileResult
from qcompile.stages import Stages
from qcompile.trace import shapes_seen
from qcompile.verdict import DELIVERED, FAIL, NOT_DELIVERED, NOT_MEASURED, Check, GateResult

__all__ = [
    "Portable",
    "compile_portable",
    "engine_of",
    "job_peaks",
    "more_needed",
    "portable_builder",
    "with_engine",
]

STEP_DB = 4.0
"""How much more accurate than a plan that failed at the gate the next one is to be."""


@dataclass(frozen=True)
class Portable:
    """A Q/DQ model and all that is known about it.

    Attributes:
        build: what the plan became; its file is a form of it that runs here.
        tried: the plans that were compared, the last one taken.
        profile: shapes of the samples.
        engine: what the device's library makes of it.
        gate: accuracy and what else could be checked.
        baseline: the half-precision model that users would deploy otherwise, None where this is one.
    """

    build: Build
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
    target = job.prepared.target
    rest = target.rests[0]
    peaks: dict[str, TensorRange] = {}
    if rest == "fp16" and lock is None:
        with stages("calibrate"):
            peaks = job_peaks(job)
    start = start_plan(job, ranges.chosen, lock)
    if lock is None:
        start = _fusible(job, start)
    with stages("learn"):
        learned = Learned()
        if target.ops:
            learned = find_learned(job, ranges.chosen, start, lock, stages.reporter.advance, output)
    with stages("plan"):
        builder = replace(portable_builder(job, ranges, rest), learned=learned, peaks=peaks)
        if target.ops:
            ranges, builder = choose_ranges(job, ranges, builder, start, stages.reporter.advance)
    plans = DevicePlans(job, builder, start, replay=lock is not None)
    profile, asked = job.data.profile(), needed(job)
    for left in reversed(range(ATTEMPTS[job.options.effort])):
        with stages("plan"):
            builder = plans.reach(asked)
            build = builder.build(plans.tried[-1].plan)
        with stages("check engine"):
            engine = engine_of(job, build, profile)
        with stages("gate"):
            gate = _judge(job, build.path, engine)
        more = more_needed(gate, plans)
        if more is None or left == 0:
            break
        asked = asked.raised_to(more)
    ranges = replace(ranges, chosen=builder.known_ranges())
    baseline = None
    if rest != "fp32" and target.ops:
        baseline = builder.portable(_all_float(build.plan))[0]
    made = Portable(build, tuple(plans.tried), profile, engine, gate, baseline)
    return deliver(
        job,
        lock,
        stages,
        output,
        keep,
        lambda folder: write_portable(folder, job, ranges, made, key, stages, output),
    )


def more_needed(gate: GateResult, plans: DevicePlans) -> float | None:
    """The SQNR to plan for where this plan failed on accuracy and another may not; else None."""
    now = plans.tried[-1]
    short = any(check.name in ("accuracy", "metric", "steps") for check in gate.failed)
    mixed = any(c.precision != FLOAT and not c.pinned for c in now.plan.layers)
    if plans.replay or not short or not mixed or now.sqnr_db is None:
        return None
    return now.sqnr_db + STEP_DB


def job_peaks(job: Job) -> dict[str, TensorRange]:
    """Largest values of all tensors, which tell what fits float16."""
    return float_peaks(job.prepared.model, job.data.selection(), job.work, job.options.custom_ops)


def portable_builder(job: Job, ranges: Ranges, rest: str = "fp32") -> PortableBuilder:
    """A builder of the job's model, with nothing learned."""
    return PortableBuilder(
        job.prepared.model,
        job.prepared.target,
        ranges.chosen,
        job.work,
        frozenset(job.options.disable),
        given=job.prepared.given,
        quantize_passes=portable_passes(rest, job.prepared.target.precision),
    )


def engine_of(job: Job, build: Build, profile: Profile) -> EngineCheck:
    """What the target's own library makes of a build."""
    target = job.prepared.target
    if target.backend == "ort":
        return EngineCheck(None, "", {}, {}, {}, "opened by ONNX Runtime")
    path = job.work / "engine.onnx"
    save_model(build.portable, path)
    return check_engine(path, build.portable, build.plan, target, profile)


def _all_float(plan: PrecisionPlan) -> PrecisionPlan:
    return PrecisionPlan(tuple(replace(c, precision=FLOAT, pinned=False) for c in plan.layers))


def _fusible(job: Job, plan: PrecisionPlan) -> PrecisionPlan:
    """The plan in which every attention can become one kernel, and no product is one of a small vector."""
    target, model = job.prepared.target, job.prepared.model
    if target.backend != "trt" or not target.ops:
        return plan
    attentions = find_attention(model.graph)
    products = weight_products(model.graph, target.vector_ops)
    feed = max(job.data.calibration, key=lambda f: sum(a.size for a in f.values()))
    names = [*(one.weights for one in attentions), *(one.output for one in products.values())]
    shapes = shapes_seen(model, names, feed, job.work, job.options.custom_ops)
    if not job.options.shapes:  # more rows than the samples have may be asked for
        plan = kept_wide(plan, products, shapes, target.vector_weights)
    limit = target.longest_attention
    if limit:
        plan = kept_short(plan, attentions, shapes, limit)
    return without_ends(kept_whole(plan, attentions), CompileState(model, target))


def _judge(job: Job, path: Path, engine: EngineCheck) -> GateResult:
    """Everything but speed; a verdict that nothing spoils is "not measured"."""
    data, options = job.data, job.options
    provider = gpu_provider() if job.prepared.target.backend == "ort" else None
    found = judge(
        job.float_path,
        path,
        list(data.held),
        job.limits() if provider else replace(job.limits(), max_latency_ms=None),
        metric=data.metric,
        names=data.held.names,
        slices=options.slices,
        extremes=data.extremes(),
        threads=options.threads,
        speed=provider is not None,
        budget_s=options.gate_time,
        provider=provider or CPU,
        custom_ops=options.custom_ops,
        config=AS_WRITTEN,
        reference=job.reference,
        rollout=job.rollout,
    )
    return with_engine(job, found, engine, timed=provider is not None)


def with_engine(
    job: Job, found: GateResult, engine: EngineCheck, *, timed: bool = False
) -> GateResult:
    """A verdict on the Q/DQ graph with what the engine's builder says; ``timed``: it ran as deployed."""
    checks = [*found.checks]
    verdict, headline = found.verdict, found.headline
    if engine.refused:
        checks.append(Check("builds", FAIL, engine.refused))
        verdict, headline = NOT_DELIVERED, f"NOT DELIVERED: {engine.refused}"
    elif verdict == DELIVERED and not timed:
        verdict = NOT_MEASURED
        headline = f"NOT MEASURED: no {_library(job)} here; {_accuracy(found)}"
    known = engine.build is not None or job.prepared.target.backend == "ort"
    notes = found.notes if known else (*found.notes, engine.note)
    # The Q/DQ file's size says nothing about the engine's.
    return replace(
        found,
        verdict=verdict,
        headline=headline,
        checks=tuple(checks),
        notes=notes,
        artifact_bytes=found.artifact_bytes if job.prepared.target.backend == "ort" else None,
    )


def _library(job: Job) -> str:
    return {"trt": "GPU with TensorRT", "ort": "GPU provider of ONNX Runtime"}[
        job.prepared.target.backend
    ]


def _accuracy(found: GateResult) -> str:
    if found.score is not None:
        return f"as ONNX Runtime computes the Q/DQ graph: {found.score.text}"
    if found.sqnr_db is None:
        return "the Q/DQ graph runs in ONNX Runtime"
    return f"SQNR {found.sqnr_db:.1f} dB as ONNX Runtime computes the Q/DQ graph"
