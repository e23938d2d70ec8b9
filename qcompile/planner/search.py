"""Finds the plans to hand to the gate, the most promising first.

Every plan here is a real artifact that was run and timed; the additive model of sensitivities and
costs only proposes. What is pinned by the user stays as it is in every proposal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from qcompile.build import Builder
from qcompile.ir.plan import INT8, INT8_DYNAMIC, PrecisionPlan
from qcompile.job import Job
from qcompile.needed import needed
from qcompile.options import Options
from qcompile.planner.costing import elsewhere
from qcompile.planner.costs import Costs
from qcompile.planner.propose import Proposer, Remember
from qcompile.planner.race import Candidate, open_race
from qcompile.planner.refine import refine
from qcompile.planner.units import units
from qcompile.reporter import Reporter
from qcompile.sizes import model_bytes
from qcompile.stopwatch import Stopwatch

__all__ = ["Found", "search"]

SECONDS_EACH = {"fast": 0.5, "default": 1.0, "max": 4.0}
"""Timing of one candidate in the race."""


@dataclass(frozen=True)
class Found:
    """The plans in the order in which the gate should try them.

    Attributes:
        order: what to try, first the best.
        candidates: all that were looked at.
        how: how the first was chosen.
        costs: measured costs behind the proposals, None where none were needed.
        pareto: the front of predicted plans as JSON, None where none was needed.
        spins: whether idle threads may spin while the gate times; False where that left the race vague.
    """

    order: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    how: str
    costs: Costs | None = None
    pareto: str | None = None
    spins: bool = True

    def chosen(self, taken: Candidate) -> tuple[Candidate, ...]:
        """The candidates, with the one that the gate took marked."""
        return tuple(replace(c, chosen=c.build is taken.build) for c in self.candidates)


def search(
    job: Job,
    builder: Builder,
    start: PrecisionPlan,
    *,
    replay: bool,
    reporter: Reporter,
    watch: Stopwatch | None = None,
    remember: Remember = lambda make: make(),
) -> Found:
    """Propose plans, race them, order them.

    Args:
        job: model, data, options.
        builder: builds plans.
        start: everything integer that can be, with the user's pins.
        replay: take ``start`` as it is (``--locked``, ``--from``).
        reporter: is told how far it is.
        watch: is told where the time goes.
        remember: costs that an interrupted compile measured.
    """
    watch = watch or Stopwatch()
    race = open_race(job, builder, SECONDS_EACH[job.options.effort])
    with watch("build and compare"):
        first = race.accuracy("all that can be integer", start)
    if replay and job.base is None:
        return Found((first,), (first,), "replayed from the lock")
    if replay:
        with watch("refit"):
            better = refine(job, builder, race, [first], reporter)
        return Found((*better, first), (first, *better), "carried over with --from")
    if all(layer.pinned for layer in start.layers):
        with watch("refit"):
            better = refine(job, builder, race, [first], reporter)
        return Found((*better, first), (first, *better), "every layer is pinned by the user")
    candidates = [first]
    with watch("build and compare"):
        for name, plan in _variants(job, start):
            candidates.append(race.accuracy(name, plan))
    proposer = Proposer(job, builder, race, start, needed(job), reporter, watch, remember)
    # With given costs nothing depends on a clock: the same costs give the same plan. And what is
    # fast on another kind of CPU cannot be timed on this one.
    by_clock = job.options.costs is None and not elsewhere(job)

    def judged(found: list[Candidate], beside: Sequence[Path] = ()) -> list[Candidate]:
        if not by_clock:
            return proposer.predict(found)
        return race.time(
            found,
            beside,
            lambda share: reporter.advance(share, 1.0),
            by_worth=not _accuracy_is_open(job.options),
            to_beat=max((c.worth() for c in _ordered(candidates, job, strict=True)), default=0.0),
        )

    beside = proposer.beside(candidates) if job.options.effort != "fast" else ()
    with watch("time candidates"):
        candidates = judged(candidates, beside)
    if job.options.effort != "fast" or not _ordered(candidates, job, strict=True):
        with watch("minimum cuts"):
            proposed = proposer.propose(candidates)
        with watch("time candidates"):
            candidates += judged(proposed) if proposed else []
    with watch("refit"):
        candidates += refine(job, builder, race, _ordered(candidates, job), reporter)
    order = _ordered(candidates, job)
    how = _how(order) if order else "nothing that was tried can run"
    return Found(
        order or tuple(candidates[:1]),
        tuple(candidates),
        how,
        proposer.costs,
        proposer.front(),
        race.spins,
    )


def _variants(job: Job, start: PrecisionPlan) -> list[tuple[str, PrecisionPlan]]:
    """Other forms for whole kinds of layers, each a plan of its own."""
    found = []
    known = start.by_origin()
    able = [u for u in units(job.prepared.sites) if u.dynamic and u.origin in known]
    names = [u.origin for u in able if not known[u.origin].pinned]
    recurrent = [u.origin for u in able if u.site.op_type in ("LSTM", "GRU") and u.origin in names]
    products = [n for n in names if n not in recurrent]
    why = "scales found at run time"
    if recurrent:
        start = start.with_choice(recurrent, INT8_DYNAMIC, why)
        found.append(("recurrent layers dynamic", start))
    if products:
        found.append(("products dynamic", start.with_choice(products, INT8_DYNAMIC, why)))
    compute = {s.origin for s in job.prepared.sites if s.role == "compute"}
    others = [c.origin for c in start.layers if c.origin not in compute and c.precision == INT8]
    if products and others:
        lean = start.with_choice(products, INT8_DYNAMIC, why)
        found.append(
            ("products dynamic, the rest float", lean.with_choice(others, "float", "only products"))
        )
    return found


def _ordered(
    candidates: Sequence[Candidate], job: Job, *, strict: bool = False
) -> tuple[Candidate, ...]:
    """Those that keep the limits by worth, then (unless ``strict``) the others by accuracy.

    With a limit on latency and none on accuracy, the most accurate that keeps it comes first.
    """
    able = [c for c in candidates if not c.refused and c.speedup is not None]
    rule = needed(job)
    good = [c for c in able if rule.kept(c.sqnr_db, c.channels_db)]
    fast = [c for c in good if (c.speedup or 0.0) >= job.options.min_speedup]
    fast = [c for c in fast if not any(_excess(c, job.options))]
    by_accuracy = _accuracy_is_open(job.options)
    first = sorted(fast, key=lambda c: (-_db(c) if by_accuracy else 0.0, -c.worth()))
    if strict:
        return tuple(first)
    rest = [c for c in able if c not in first]
    rest.sort(key=lambda c: (c not in good, *_excess(c, job.options), -(c.reached_db(rule) or 0.0)))
    return tuple(first + rest)


def _accuracy_is_open(asked: Options) -> bool:
    """Whether there is a limit on latency and none on accuracy."""
    return asked.max_latency is not None and asked.min_sqnr is None and asked.max_drop is None


def _db(candidate: Candidate) -> float:
    return inf if candidate.judged_db is None else candidate.judged_db


def _excess(candidate: Candidate, options: Options) -> tuple[float, float]:
    """How far a candidate is above --max-latency (ms) and --max-size (bytes), before the gate."""
    late, large = 0.0, 0.0
    if options.max_latency is not None:
        late = max(0.0, (inf if candidate.ms is None else candidate.ms) - options.max_latency)
    if options.max_size is not None:
        large = max(0.0, float((model_bytes(candidate.build.path) or 0) - options.max_size))
    return late, large


def _how(order: Sequence[Candidate]) -> str:
    if len(order) == 1:
        return f"{order[0].name}: nothing else to choose from"
    return f"{order[0].name}: the best of {len(order)} artifacts side by side"
