"""Proposes mixed plans from sensitivities and costs: minimum cuts, met as measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qcompile.build import Builder
from qcompile.ir.errors import BudgetError, OptionError, PassError
from qcompile.ir.plan import FLOAT, INT8, INT16, PrecisionPlan
from qcompile.job import Job
from qcompile.needed import Needed
from qcompile.planner.costing import cost_models, elsewhere, estimated_costs, job_costs, read_costs
from qcompile.planner.costs import Costs
from qcompile.planner.energy import Energy
from qcompile.planner.gated_session import GatedSession
from qcompile.planner.graph_problem import Latencies, plan_of_labels, problem_from_graph
from qcompile.planner.grouped import Measured, measure_model
from qcompile.planner.problem import LABELS, Problem
from qcompile.planner.race import Candidate, Race
from qcompile.planner.replan import solve_measured
from qcompile.planner.sensitivity import Sensitivity
from qcompile.planner.sizing import solve_sized, stored_bytes
from qcompile.planner.sweep import PlanPoint, pareto, pareto_json
from qcompile.planner.units import full_plan, units
from qcompile.planner.widening import Wider, wide_front, wide_point
from qcompile.reporter import Reporter
from qcompile.selected import hide
from qcompile.sizes import model_bytes
from qcompile.stopwatch import Stopwatch

__all__ = ["Proposer", "Remember"]

Remember = Callable[[Callable[[], Costs]], Costs]
"""Gives costs that were measured before, else calls what measures them."""

SAMPLES = 4
SECONDS = {"fast": 10.0, "default": 30.0, "max": 300.0}
COST_SECONDS = {"fast": 3.0, "default": 8.0, "max": 40.0}
"""Time for measuring costs."""
STEPS_DB = (3.0, 8.0, 15.0)
"""Accuracies to aim at beyond the best integer candidate's, in dB."""
LATENCY_MARGIN = 0.95
"""A plan is aimed a little below --max-latency: predictions are off by some percent."""
MEASURED = 3
"""Plans whose error is measured for the first goal, whatever time that takes."""
ENOUGH_DB = 40.0
"""A candidate this accurate needs no better one."""


class Proposer:
    """Mixed plans for one model; the gated session and the measurements are made once.

    Attributes:
        costs: measured costs, None until they were needed.
    """

    def __init__(
        self,
        job: Job,
        builder: Builder,
        race: Race,
        start: PrecisionPlan,
        needed: Needed,
        reporter: Reporter,
        watch: Stopwatch | None = None,
        remember: Remember = lambda make: make(),
    ) -> None:
        self._job, self._builder, self._race, self._start = job, builder, race, start
        self._needed = needed
        self._reporter, self._watch, self._remember = reporter, watch or Stopwatch(), remember
        self._seconds = job.options.search_time or SECONDS[job.options.effort]
        self._units = units(job.prepared.sites)
        self._session: GatedSession | None = None
        self._problem: Problem | None = None
        self._wider: Wider | None = None
        self._front: list[PlanPoint] | None = None
        self.costs: Costs | None = None

    @property
    def problem(self) -> Problem:
        """Sites, costs and sensitivities; measured when first asked for."""
        if self._problem is None:
            self._problem = self._measured()
        return self._problem

    def front(self) -> str | None:
        """The Pareto front of predicted plans as JSON, None when no problem was measured."""
        return None if self._problem is None else pareto_json(self._points())

    def _points(self) -> list[PlanPoint]:
        """The exact front over two forms; expanded where the target has a third."""
        if self._front is None:
            self._front = (
                pareto(self.problem)
                if self._wider is None
                else wide_front(self.problem, self._wider, search_time=self._seconds / 2)
            )
        return self._front

    def beside(self, candidates: Sequence[Candidate]) -> tuple[Path, ...]:
        """The models whose latencies ``propose`` will need, to be timed with the candidates."""
        known = self._job.options.costs is not None or elsewhere(self._job)
        if known or self._to_beat(candidates) is None or any(c.refused for c in candidates):
            return ()
        return tuple(p for p in cost_models(self._job, self._builder) if p is not None)

    def predict(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates with latencies from the costs alone: equal costs give equal choices."""
        problem = self.problem  # measures what the next lines read
        energy = Energy(problem)
        base = self._float_ns()
        found = []
        for candidate in candidates:
            plan = candidate.build.plan
            labels = {n.origin: plan.precision(n.origin) for n in problem.nodes}
            try:
                if self._wider is not None:
                    ns = wide_point(problem, self._wider, labels).latency_ns
                else:
                    rows = [LABELS.index(label) for label in labels.values()]
                    ns = energy.total_ns(np.array(rows, np.int64))
            except OptionError as e:  # the costs know nothing of a form that the candidate has
                found.append(replace(candidate, refused=candidate.refused or str(e)))
                continue
            found.append(replace(candidate, ms=ns / 1e6, speedup=base / ns))
        return found

    def _to_beat(self, known: Sequence[Candidate]) -> float | None:
        """The limit that the best of them just keeps; None where no plan need be more accurate."""
        reached = [db for c in known if (db := c.reached_db(self._needed)) is not None]
        best = max(reached, default=None)
        if best is None or best > max(ENOUGH_DB, self._needed.whole_db):
            return None
        return best

    def propose(self, known: Sequence[Candidate]) -> list[Candidate]:
        """Plans beside those known, judged for accuracy and not yet timed.

        Goals are limits of whole outputs, with the leeway for kinds of channels that the gate gives.
        """
        room = self._room(known)
        made = self._within_latency(known, room)
        made += self._within_size([*known, *made], room)
        best = self._to_beat([*known, *made])
        if best is None:
            return made
        problem, session = self.problem, self._session
        if session is None:  # gated in groups: no session is every plan, so none can be measured
            return made
        asked = self._needed.whole_db
        first = asked if asked > best else max(asked, best - STEPS_DB[0])
        goals = [first, *(best + step for step in STEPS_DB)]
        seen = {_key(c.build.plan) for c in (*known, *made)}
        measured: dict[tuple[tuple[str, str], ...], float] = {}
        for count, goal in enumerate(goals):
            trial, tried = solve_measured(
                problem,
                session.worst_error,
                10 ** (-goal / 10),
                max_bytes=room,
                tries=5,
                least=MEASURED if count == 0 else 0,
                seen=measured,
                search_time=self._seconds / 2 / len(goals),
            )
            self._reporter.advance(count + 1, len(goals))
            points = [] if trial is None else [(f"cut for {goal:.0f} dB", trial.point)]
            if trial is None and tried and count == 0:
                # the best so far: time ran out, or no plan keeps the limit
                nearest = min(tried, key=lambda t: t.measured)
                points = [(f"cut towards {goal:.0f} dB", nearest.point)]
            limit = 10 ** (-goal / 10) if trial is None else trial.limit
            wide = self._expanded(limit, None if trial is None else trial.point)
            if wide is not None:
                name = f"cut for {goal:.0f} dB expanded to 16 bits (a heuristic)"
                points.append((name, wide))
            for name, point in points:
                plan = self._plan(point.labels)
                if all(v == FLOAT for v in point.labels.values()) or _key(plan) in seen:
                    continue
                seen.add(_key(plan))
                made.append(self._race.accuracy(name, plan))
        return made

    def _expanded(self, max_error: float, exact: PlanPoint | None) -> PlanPoint | None:
        """The fastest plan with 16-bit layers within an error, None where ``exact`` is as fast."""
        if self._wider is None:
            return None
        able = [p for p in self._points() if p.error <= max_error and p.found_by == "expansion"]
        best = min(able, key=lambda p: p.latency_ns, default=None)
        if best is None or (exact is not None and exact.latency_ns <= best.latency_ns):
            return None
        return best

    def _room(self, known: Sequence[Candidate]) -> int | None:
        """Bytes that --max-size leaves for the weights of all sites; None without that limit."""
        limit = self._job.options.max_size
        if limit is None:
            return None
        rest = []
        for candidate in known:
            plan = candidate.build.plan
            labels = {n.origin: plan.precision(n.origin) for n in self.problem.nodes}
            held = model_bytes(candidate.build.path)
            if held is not None:
                rest.append(held - stored_bytes(self.problem, labels))
        # scales and nodes differ a little from plan to plan
        return max(0, limit - max(rest, default=0))

    def _within_size(self, known: Sequence[Candidate], room: int | None) -> list[Candidate]:
        """The fastest plan within --max-size, where no known one is; says where there is none."""
        limit = self._job.options.max_size
        if limit is None or room is None:
            return []
        if any((model_bytes(c.build.path) or 0) <= limit for c in known):
            return []
        try:
            point = solve_sized(self.problem, room)
        except BudgetError as e:
            rest = (limit - room) / 1e6
            self._reporter.note(f"--max-size: beside {rest:.3f} MB of all else, {e}")
            return []
        return [self._race.accuracy(f"cut for {limit / 1e6:.2f} MB", self._plan(point.labels))]

    def _within_latency(self, known: Sequence[Candidate], room: int | None) -> list[Candidate]:
        """The plan of least error that is predicted within --max-latency, unless it is known.

        The limit is one of the clock of today: it is taken as a share of float's latency in the race.
        """
        limit = self._job.options.max_latency
        timed = next((c for c in known if c.ms is not None and c.speedup is not None), None)
        if limit is None or timed is None or timed.ms is None or timed.speedup is None:
            return []
        problem = self.problem  # measures the costs that the next line reads
        share = limit * LATENCY_MARGIN / (timed.ms * timed.speedup)
        try:
            nanoseconds = round(share * self._float_ns())
            point = solve_sized(problem, room, max_latency_ns=nanoseconds)
        except BudgetError as e:
            self._reporter.note(f"--max-latency: {e}")
            return []
        plan = self._plan(point.labels)
        if all(v == FLOAT for v in point.labels.values()) or _key(plan) in {
            _key(c.build.plan) for c in known
        }:
            return []
        return [self._race.accuracy(f"cut for {limit:g} ms", plan)]

    def _plan(self, labels: Mapping[str, str]) -> PrecisionPlan:
        sites = self._job.prepared.sites
        return self._pinned(
            plan_of_labels(sites, self._units, self.problem, labels, wider=self._wider)
        )

    def _measured(self) -> Problem:
        with self._watch("sensitivities"):
            sensitivities = self._sensitivities()
        with self._watch("costs"):
            self.costs = self._costs()
        latencies = self.costs.latencies([name for u in self._units for name in u.origins])
        pins = {c.origin: c.precision for c in self._start.layers if c.pinned}
        if self._job.prepared.target.wide_activation is not None:
            with self._watch("sensitivities"):
                self._wider = self._measured_wide(latencies, pins)
        return problem_from_graph(
            self._units,
            latencies,
            sensitivities,
            pins={origin: label for origin, label in pins.items() if label != INT16},
        )

    def _measured_wide(self, latencies: Latencies, pins: Mapping[str, str]) -> Wider:
        """What the int16 form of each unit costs and disturbs."""
        everything = full_plan(self._job.prepared.sites)
        able = [c.origin for c in everything.layers if c.precision == INT8]
        plan = everything.with_choice(able, INT16, "all that can be")
        found = self._gated(plan).sensitivities.filled(self._units)
        return Wider(
            ns={
                u.origin: sum(latencies.wide_ns.get(name, 0) for name in u.origins)
                for u in self._units
                if u.static and u.origin in latencies.wide_ns
            },
            error={origin: one.reading for origin, one in found.items()},
            write_error={
                v.name or "": found[u.origin].writing / len(u.outputs)
                for u in self._units
                for v in u.outputs
            },
            only=frozenset(origin for origin, label in pins.items() if label == INT16),
        )

    def _sensitivities(self) -> Mapping[str, Sensitivity]:
        found = self._gated(full_plan(self._job.prepared.sites))
        self._session = found.session
        return found.sensitivities.filled(self._units)

    def _gated(self, plan: PrecisionPlan) -> Measured:
        """Sensitivities in the forms of a plan in which everything is integer that can be."""
        options, prepared = self._job.options, self._job.prepared
        quantized, _ = self._builder.portable(plan)
        model = prepared.model
        if prepared.selected.outputs:
            model = model.clone()
            hide(model, prepared.selected.outputs)
            hide(quantized, prepared.selected.outputs)
        return measure_model(
            model,
            quantized,
            prepared.target,
            self._race.feeds[:SAMPLES],
            threads=options.threads,
            memory_limit=options.memory_limit,
            search_time=self._seconds / 2,
            custom_ops=options.custom_ops,
            leeway=10 ** (-self._needed.leeway_db / 10),
            progress=self._reporter.advance,
        )

    def _float_ns(self) -> float:
        if self.costs is None:
            raise PassError("costs are read before they were measured")
        return float(self.costs.original_ns)

    def _pinned(self, plan: PrecisionPlan) -> PrecisionPlan:
        for choice in self._start.layers:
            if choice.pinned:
                plan = plan.pin({choice.origin: choice.precision}, choice.reason)
        return plan

    def _costs(self) -> Costs:
        """From the user's file; estimated for a device that is not here; else measured.

        Raises:
            OptionError: the file cannot be read, or is another model's.
        """
        options = self._job.options
        if options.costs is not None:
            return read_costs(self._job, options.costs)
        if elsewhere(self._job):
            return estimated_costs(self._job, self._race.feeds)
        seconds = COST_SECONDS[options.effort]
        return self._remember(
            lambda: job_costs(
                self._job,
                self._builder,
                self._race.feeds,
                budget_s=seconds,
                clock=self._race.clock,
                progress=lambda share: self._reporter.advance(share, 1.0),
            )
        )


def _key(plan: PrecisionPlan) -> tuple[str, ...]:
    return tuple(layer.precision for layer in plan.layers)
