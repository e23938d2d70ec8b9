"""Plans for a target whose runtime is not here: as much in 8 bits as keeps the accuracy, then refitted.

All that can be integer is refitted first: what that wins back need not go back to float. Where it does
not suffice, groups of layers do (``by_groups``), and the plan that they leave is refitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from qcompile.ir.manager import CompileState
from qcompile.ir.plan import INT8, PrecisionPlan
from qcompile.job import Job
from qcompile.learning import Learned
from qcompile.needed import Needed
from qcompile.planner.attention import find_attention, kept_whole
from qcompile.planner.by_groups import Tried, accurate_plan
from qcompile.planner.default import without_ends
from qcompile.planner.race import Candidate, Race, open_race
from qcompile.planner.refine import may_refit, refitted
from qcompile.portable_build import PortableBuilder

__all__ = ["DevicePlans"]

EVERYTHING = "all that can be integer"


@dataclass
class DevicePlans:
    """What was tried, each plan followed by its refit.

    Attributes:
        job: model, data, options.
        builder: builds plans, with nothing refitted.
        start: everything integer that can be, with the user's pins.
        replay: ``start`` is taken as it is (``--locked``).
        tried: the last one is to be taken.
    """

    job: Job
    builder: PortableBuilder
    start: PrecisionPlan
    replay: bool = False
    tried: list[Tried] = field(default_factory=list)
    _learned: dict[tuple[str, PrecisionPlan], Learned] = field(default_factory=dict)
    _needed: Needed = field(default_factory=lambda: Needed.of(0.0))
    _race: Race | None = None

    @property
    def race(self) -> Race:
        """Judges plans on selection samples."""
        if self._race is None:
            self._race = open_race(self.job, self.builder)
        return self._race

    def reach(self, needed: Needed) -> PortableBuilder:
        """Try plans until one has what is needed; returns what builds the last of ``tried``."""
        self._needed = needed
        if self.replay:
            found = self.race.accuracy("", self.start).reached_db(needed)
            self.tried = [Tried("replayed from the lock", self.start, found)]
            return self.builder
        if not self.tried:
            self.add(self.race.accuracy(EVERYTHING, self.start))
        if not self.enough():
            _give_up_layers(self, needed)
        return self.taken()

    def add(self, candidate: Candidate) -> None:
        """A plan that was judged, and the same with refitted numbers where they are better."""
        plan = candidate.build.plan
        self.tried.append(Tried(candidate.name, plan, candidate.reached_db(self._needed)))
        if not may_refit(self.job) or self.builder.target.precision != INT8:
            return
        better = refitted(
            self.job,
            self.builder,
            self.race,
            candidate,
            self.builder.rehearsal(plan),
            f"refit{len(self.tried)}",
        )
        if better is not None:
            self.tried.append(Tried(better.name, plan, better.reached_db(self._needed)))
            self._learned[better.name, plan] = better.build.learned

    def enough(self) -> bool:
        """Whether a plan keeps the limit, or there is nothing to compare."""
        return any(t.sqnr_db is None or t.sqnr_db >= self._needed.whole_db for t in self.tried)

    def taken(self) -> PortableBuilder:
        """Put the most accurate of the last plan's forms last; what builds it.

        Where no plan keeps the limit, it is the most accurate of all.
        """
        last = self.tried[-1].plan
        able = [t for t in self.tried if t.plan == last] if self.enough() else self.tried
        best = max(able, key=lambda t: float("inf") if t.sqnr_db is None else t.sqnr_db)
        self.tried = [*(t for t in self.tried if t is not best), best]
        learned = self._learned.get((best.name, best.plan))
        return self.builder if learned is None else replace(self.builder, learned=learned, _made={})


def _give_up_layers(plans: DevicePlans, needed: Needed) -> None:
    """Plans with layers in float, the last of them refitted."""
    job, race = plans.job, plans.race
    compute = frozenset(s.origin for s in job.prepared.sites if s.role == "compute")
    state = CompileState(job.prepared.model, job.prepared.target)
    attentions = find_attention(job.prepared.model.graph)

    def settle(plan: PrecisionPlan) -> PrecisionPlan:
        return without_ends(kept_whole(plan, attentions), state)

    def measure(plan: PrecisionPlan) -> float | None:
        return race.accuracy("", plan).reached_db(needed)

    mixed = accurate_plan(plans.start, compute, needed.whole_db, measure, settle)[1:]
    if mixed:
        plans.tried += mixed[:-1]
        plans.add(race.accuracy(mixed[-1].name, mixed[-1].plan))
