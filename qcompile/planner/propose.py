"""Proposes mixed plans from sensitivities and costs: minimum cuts, met as measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcompile.build import Builder
from qcompile.ir.graph import origin
from qcompile.ir.plan import FLOAT, PrecisionPlan
from qcompile.job import Job
from qcompile.planner.gated import gate
from qcompile.planner.gated_session import GatedSession
from qcompile.planner.graph_problem import Latencies, plan_of_labels, problem_from_graph
from qcompile.planner.race import Candidate, Race
from qcompile.planner.replan import solve_measured
from qcompile.planner.sensitivity import measure
from qcompile.planner.units import full_plan, units
from qcompile.reporter import Reporter
from qcompile.trace import mac_counts

__all__ = ["Proposer"]

SAMPLES = 4
SECONDS = {"fast": 10.0, "default": 30.0, "max": 300.0}
STEPS_DB = (3.0, 8.0, 15.0)
"""Accuracies to aim at beyond the best integer candidate's, in dB."""


class Proposer:
    """Mixed plans for one model; the gated session and the measurements are made once.

    Attributes:
        costs: measured costs, None until they were needed.
    """

    def __init__(self, job: Job, builder: Builder, race: Race, start: PrecisionPlan) -> None:
        self._job, self._builder, self._race, self._start = job, builder, race, start
        self.costs: Any = None

    def propose(
        self, known: list[Candidate], needed_db: float, reporter: Reporter
    ) -> list[Candidate]:
        """Plans beside those known, judged for accuracy and not yet timed."""
        options = self._job.options
        seconds = options.search_time or SECONDS[options.effort]
        best = max((c.sqnr_db for c in known if c.sqnr_db is not None), default=None)
        if best is None or best > 40:
            return []
        goals = [best + step for step in STEPS_DB]
        if needed_db > best:
            goals.insert(0, needed_db)
        quantized, _ = self._builder.portable(full_plan(self._job.prepared.sites))
        session = GatedSession(
            gate(self._job.prepared.model, quantized, self._job.prepared.target),
            self._race.feeds[:SAMPLES],
            threads=options.threads,
            custom_ops=options.custom_ops,
        )
        found = measure(
            session,
            search_time=seconds / 2,
            progress=reporter.advance,
        )
        parts = units(self._job.prepared.sites)
        problem = problem_from_graph(
            parts,
            self._latencies(),
            found.filled(parts),
            pins={c.origin: c.precision for c in self._start.layers if c.pinned},
        )
        made: list[Candidate] = []
        seen: set[tuple[str, ...]] = set()
        for goal in goals:
            trial, _ = solve_measured(
                problem,
                session.evaluate_plan,
                10 ** (-goal / 10),
                tries=5,
                search_time=seconds / 2 / len(goals),
            )
            if trial is None:
                continue
            key = tuple(f"{k}={v}" for k, v in sorted(trial.point.labels.items()))
            if key in seen or all(v == FLOAT for v in trial.point.labels.values()):
                continue
            seen.add(key)
            plan = plan_of_labels(self._job.prepared.sites, parts, problem, trial.point.labels)
            made.append(self._race.accuracy(f"cut for {goal:.0f} dB", self._pinned(plan)))
        return made

    def _pinned(self, plan: PrecisionPlan) -> PrecisionPlan:
        pins = {c.origin: c.precision for c in self._start.layers if c.pinned}
        return plan.pin(pins, "pinned by the user") if pins else plan

    def _latencies(self) -> Latencies:
        """From MACs and bytes, where nothing was measured."""
        job = self._job
        counts = mac_counts(
            job.prepared.model, self._race.feeds[0], job.work, job.options.custom_ops
        )
        by_origin: Mapping[str, int] = {origin(n): c for n, c in counts.items()}
        names = [s.origin for s in job.prepared.sites]
        float_ns = {n: 1000 + by_origin.get(n, 0) // 40 for n in names}
        int_ns = {n: 1000 + by_origin.get(n, 0) // 120 for n in names}
        return Latencies(float_ns, int_ns)
