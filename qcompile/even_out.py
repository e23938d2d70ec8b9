"""The stage that evens out channels: applies chosen factors where the whole model gains by them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qcompile.backends.ort import open_session
from qcompile.build import Builder
from qcompile.factors import Exponents, fitting_factors, with_factors
from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.ir.manager import PassRecord
from qcompile.ir.notes import Note
from qcompile.ir.plan import INT8, PrecisionPlan
from qcompile.ir.save import save_model
from qcompile.job import Job
from qcompile.lock import Lock
from qcompile.passes.scale_branches import division_name, find_all
from qcompile.passes.scale_regions import Region
from qcompile.planner.costing import elsewhere
from qcompile.planner.race import Candidate, Race, open_race
from qcompile.ranges import Ranges
from qcompile.retrain import Base
from qcompile.scaling import Factors, choose_factors, recalibrated, region_kind

__all__ = ["Evened", "apply_factors", "even_out", "function_error"]

GAIN_DB = 0.2
"""What factors must gain at the output to be kept."""

BRANCH_DB = 1.0
"""The same where divisions are paid for it."""

BRANCH_WORTH = 0.97
"""Share of a candidate's worth that divisions may cost: the clock knows no more than 3 %, and what they
gain in accuracy a mixed plan would pay for with more (MiniLM: 3 dB for 5 % of its speed, 22 % when layers
go back to float)."""

FUNCTION = 1e-4
"""Largest relative difference of the float outputs that is still the same function."""

BRANCHES = "smooth-branches"
NAMES = ("fold-scales", "smooth-quant", BRANCHES)
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
    able = able and not ranges.foreign and ranges.calibration is not None
    if not (asked and able):
        return job, ranges
    if job.base is not None:
        return _carried(job, job.base, ranges) if job.base.lock.factors else (job, ranges)
    if job.options.effort == "fast":
        return job, ranges
    if prepared.target.portable or job.options.costs is not None or elsewhere(job):
        # what a division costs is asked of the clock, which says nothing of another device
        asked = [name for name in asked if name != BRANCHES]
    start = time.perf_counter()
    regions, refused = find_all(prepared.model.graph)
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
    known: Candidate | None = None
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
            tensors = _tensors(self.regions[region] for region in chosen)
            trial = (scaled, recalibrated(scaled, now[1], tensors))
            before = self.known or self._judged(now, "before")
            after = self._judged(trial, name)
            better = _better(before, after, BRANCH_DB if name == BRANCHES else GAIN_DB)
        except (CalibrationError, ModelError) as e:
            return now, 0, [_undone(str(e))]
        self.known = before
        if before.judged_db is None or after.judged_db is None:
            return now, 0, [_undone("the model has no float output to compare")]
        figures = f"{after.judged_db:.1f} dB at the output with all that can be integer, "
        figures += f"{before.judged_db:.1f} without"
        if not better:
            return now, 0, [_undone(figures)]
        if name == BRANCHES:
            before, after = self._timed(before, after)
            figures += f"; {after.speedup or 0:.2f}x with the divisions, {before.speedup or 0:.2f}x"
            if after.worth() < BRANCH_WORTH * before.worth():
                return now, 0, [_undone(f"{figures}: not worth their time")]
        self.known = after
        text = f"{len(chosen)} tensors scaled: {figures}; float outputs differ by {drift:.1e}"
        divided = _divided([self.regions[region] for region in chosen], chosen)
        return trial, len(chosen), [Note("", text, changed=True), *divided]

    def _timed(self, before: Candidate, after: Candidate) -> tuple[Candidate, Candidate]:
        if self.race is None:
            return before, after
        # told apart to a few percent of their worth, so neither may be known loosely
        one, other = self.race.time([before, after], by_worth=False)
        return one, other

    def _judged(self, one: Evened, name: str) -> Candidate:
        folder = self.job.work / f"even-{name}"
        folder.mkdir(exist_ok=True)
        job, ranges = one
        builder = replace(self.make(job, ranges), work=folder, _made={})
        self.race = (
            open_race(job, builder) if self.race is None else replace(self.race, builder=builder)
        )
        return self.race.accuracy(name, self.plan)


def _better(before: Candidate, after: Candidate, needed_db: float) -> bool:
    if before.judged_db is None or after.judged_db is None:
        return False
    return after.judged_db >= before.judged_db + needed_db


def _tensors(regions: Iterable[Region]) -> frozenset[str]:
    return frozenset(value.name or "" for region in regions for value in region.tensors)


def _divided(regions: Iterable[Region], chosen: Exponents) -> list[Note]:
    """For each tensor whose numbers are no longer the user's model's, by how much they are less."""
    notes = []
    for region in regions:
        ends = f"2^{min(chosen[region.name])} to 2^{max(chosen[region.name])}"
        text = f"its channels are divided by {ends}: ranges and values are those after it"
        names = [value.name or "" for value in region.tensors]
        if region.branch:
            names = [division_name(region.name)]
            text = f"channels of '{region.name}' divided by {ends} for the products that read it"
        notes += [Note(name, text, changed=True) for name in names]
    return notes


def _undone(why: str) -> Note:
    return Note("", f"undone, it does not lower the error: {why}")


def apply_factors(job: Job, exponents: Exponents) -> Job:
    """The job with its unscaled model's channels divided by 2^exponents."""
    return replace(job, prepared=with_factors(job.prepared, exponents))


def _carried(job: Job, base: Base, ranges: Ranges) -> Evened:
    """The earlier compile's factors, as far as they leave this checkpoint's function as it is."""
    start = time.perf_counter()
    prepared = job.prepared
    chosen, notes = fitting_factors(prepared, base.lock.factors)
    now = (job, ranges)
    if chosen:
        scaled = apply_factors(job, chosen)
        drift = function_error(job, scaled)
        if drift <= FUNCTION:
            text = f"{len(chosen)} of {len(base.lock.factors)} tensors scaled as in "
            text += f"{base.path.name}; float outputs differ by {drift:.1e}"
            notes.insert(0, Note("", text, changed=True))
            regions = find_all(prepared.model.graph)[0]
            regions = [region for region in regions if region.name in chosen]
            notes += _divided(regions, chosen)
            now = (scaled, recalibrated(scaled, ranges, _tensors(regions)))
        else:
            notes.insert(0, _undone(f"the float function moves by {drift:.1e}"))
            chosen = {}
    if notes:
        spent = time.perf_counter() - start
        record = PassRecord("fold-scales", len(chosen), spent, tuple(notes))
        records = (*prepared.records, record)
        now = (replace(now[0], prepared=replace(now[0].prepared, records=records)), now[1])
    return now


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
