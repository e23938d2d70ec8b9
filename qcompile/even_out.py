"""The stage that evens out channels: applies chosen factors where the whole model gains by them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qcompile.backends.ort import open_session
from qcompile.build import Builder
from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.ir.manager import CompileState, PassManager, PassRecord
from qcompile.ir.notes import Note
from qcompile.ir.plan import INT8, PrecisionPlan
from qcompile.ir.save import save_model
from qcompile.job import Job
from qcompile.lock import Lock
from qcompile.passes.fold_scales import FoldScales
from qcompile.passes.quantizable import classify
from qcompile.passes.scale_regions import Region, find_regions
from qcompile.planner.race import Race, open_race
from qcompile.ranges import Ranges
from qcompile.scaling import Factors, choose_factors, recalibrated, region_kind

__all__ = ["Evened", "apply_factors", "even_out", "function_error"]

GAIN_DB = 0.2
"""What factors must gain at the output to be kept."""

FUNCTION = 1e-4
"""Largest relative difference of the float outputs that is still the same function."""

NAMES = ("fold-scales", "smooth-quant")
Progress = Callable[[float, float | None], None]
Make = Callable[[Job, Ranges], Builder]


Evened = tuple[Job, Ranges]
"""The job with its float model, which may be scaled, and the ranges of its tensors."""


def even_out(
    job: Job,
    ranges: Ranges,
    plan: PrecisionPlan,
    lock: Lock | None,
    make: Make,
    progress: Progress,
) -> Evened:
    """Scale channels where it raises the SQNR at the output on selection samples.

    Args:
        job: the prepared model and its data.
        ranges: of the prepared model.
        plan: what is integer when both are compared.
        lock: its factors are applied as they are.
        make: a builder of a job's model.
        progress: told how far it is.
    """
    if lock is not None:
        return (apply_factors(job, lock.factors) if lock.factors else job), ranges
    asked = [name for name in NAMES if job.options.uses(name)]
    prepared = job.prepared
    able = prepared.target.precision == INT8 and not prepared.given and not job.data.random
    able = able and not ranges.foreign and job.base is None
    if not (asked and able) or job.options.effort == "fast" or ranges.calibration is None:
        return job, ranges
    start = time.perf_counter()
    regions, refused = find_regions(prepared.model.graph)
    factors = choose_factors(job, [r for r in regions if region_kind(r) in asked], progress)
    spent = time.perf_counter() - start
    records = list(prepared.records)
    stage = _Stage(job, plan, make, {r.name: r for r in regions})
    now = (job, ranges)
    for name in asked:
        start = time.perf_counter()
        now, changed, verdict = stage.keep(now, name, factors)
        notes = [*verdict, *factors.notes.get(name, [])]
        if name == asked[-1]:
            notes += [Note(where, f"not scaled: {why}") for where, why in refused]
        spent += time.perf_counter() - start
        records.append(PassRecord(name, changed, spent, tuple(notes)))
        spent = 0.0
    scaled, ranges = now
    return replace(scaled, prepared=replace(scaled.prepared, records=tuple(records))), ranges


@dataclass
class _Stage:
    """Compares the whole model with and without factors."""

    job: Job
    plan: PrecisionPlan
    make: Make
    regions: Mapping[str, Region]
    known_db: float | None = None
    race: Race | None = None

    def keep(self, now: Evened, name: str, factors: Factors) -> tuple[Evened, int, list[Note]]:
        """``now`` with the factors of one technique, if that is better; how many, and the verdict."""
        chosen = factors.exponents.get(name, {})
        if not chosen:
            return now, 0, []
        scaled = apply_factors(self.job, {**now[0].prepared.factors, **chosen})
        try:
            drift = function_error(self.job, scaled)
            if not drift <= FUNCTION:
                return now, 0, [_undone(f"the float function moves by {drift:.1e}")]
            tensors = frozenset(
                v.name or "" for region in chosen for v in self.regions[region].tensors
            )
            trial = (scaled, recalibrated(scaled, now[1], tensors))
            before = self.known_db if self.known_db is not None else self._db(now, "before")
            after = self._db(trial, name)
        except (CalibrationError, ModelError) as e:
            return now, 0, [_undone(str(e))]
        self.known_db = before
        if before is None or after is None:
            return now, 0, [_undone("the model has no float output to compare")]
        figures = f"{after:.1f} dB at the output with all that can be integer, {before:.1f} without"
        if after < before + GAIN_DB:
            return now, 0, [_undone(figures)]
        self.known_db = after
        text = f"{len(chosen)} tensors scaled: {figures}; float outputs differ by {drift:.1e}"
        return trial, len(chosen), [Note("", text, changed=True)]

    def _db(self, one: Evened, name: str) -> float | None:
        folder = self.job.work / f"even-{name}"
        folder.mkdir(exist_ok=True)
        job, ranges = one
        builder = replace(self.make(job, ranges), work=folder, _made={})
        self.race = (
            open_race(job, builder) if self.race is None else replace(self.race, builder=builder)
        )
        return self.race.accuracy(name, self.plan).sqnr_db


def _undone(why: str) -> Note:
    return Note("", f"undone, it does not lower the error: {why}")


def apply_factors(job: Job, exponents: Mapping[str, tuple[int, ...]]) -> Job:
    """The job with its unscaled model's channels divided by 2^exponents."""
    prepared = job.prepared
    state = CompileState(prepared.model.clone(), prepared.target)
    PassManager((FoldScales(exponents),)).run(state)
    sites = tuple(classify(state))
    return replace(
        job, prepared=replace(prepared, model=state.model, sites=sites, factors=exponents)
    )


def function_error(job: Job, scaled: Job) -> float:
    """Largest difference of the float outputs of two prepared models, relative to each one's peak."""
    feed = job.data.calibration.load(0)
    found = []
    for name, one in (("float_before", job), ("float_after", scaled)):
        path = job.work / f"{name}.onnx"
        save_model(one.prepared.model, path)
        session = open_session(path, threads=job.options.threads, custom_ops=job.options.custom_ops)
        found.append(session.run({p.name: feed[p.name] for p in session.inputs}))
    largest = 0.0
    for name, exact in found[0].items():
        if not isinstance(exact, np.ndarray) or exact.dtype.kind != "f" or not exact.size:
            continue
        peak = float(np.abs(exact).max())
        difference = float(np.abs(found[1][name] - exact).max())
        largest = max(largest, difference / max(peak, 1e-30))
    return largest
