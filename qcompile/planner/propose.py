"""Proposes mixed plans from sensitivities and costs: minimum cuts, met as measured."""

from __future__ import annotations

from math import prod

from qcompile.build import Builder
from qcompile.ir.plan import FLOAT, INT8_DYNAMIC, PrecisionPlan
from qcompile.ir.save import save_model
from qcompile.job import Job
from qcompile.planner.costs import Costs, measure_costs
from qcompile.planner.graph_problem import plan_of_labels, problem_from_graph
from qcompile.planner.grouped import measure_model
from qcompile.planner.race import Candidate, Race
from qcompile.planner.replan import solve_measured
from qcompile.planner.units import full_plan, units
from qcompile.reporter import Reporter
from qcompile.trace import shapes_seen

__all__ = ["Proposer"]

SAMPLES = 4
SECONDS = {"fast": 10.0, "default": 30.0, "max": 300.0}
COST_SECONDS = {"fast": 3.0, "default": 8.0, "max": 40.0}
"""Time for measuring costs."""
STEPS_DB = (3.0, 8.0, 15.0)
"""Accuracies to aim at beyond the best integer candidate's, in dB."""


class Proposer:
    """Mixed plans for one model; the gated session and the measurements are made once.

    Attributes:
        costs: measured costs, None until they were needed.
    """

    def __init__(self, job: Job, builder: Builder, race: Race, start: PrecisionPlan) -> None:
        self._job, self._builder, self._race, self._start = job, builder, race, start
        self.costs: Costs | None = None

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
        sites, prepared = self._job.prepared.sites, self._job.prepared
        quantized, _ = self._builder.portable(full_plan(sites))
        found = measure_model(
            prepared.model,
            quantized,
            prepared.target,
            self._race.feeds[:SAMPLES],
            threads=options.threads,
            memory_limit=options.memory_limit,
            search_time=seconds / 2,
            custom_ops=options.custom_ops,
            progress=reporter.advance,
        )
        session = found.session
        if (
            session is None
        ):  # more groups than one: no session is every plan, so nothing is met as measured
            return []
        self.costs = self._costs()
        parts = units(sites)
        problem = problem_from_graph(
            parts,
            self.costs.latencies([s.origin for s in sites]),
            found.sensitivities.filled(parts),
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

    def _costs(self) -> Costs:
        """From the user's file, else measured on the float, fully int8 and fully dynamic models.

        Raises:
            OptionError: the file cannot be read.
        """
        job, options = self._job, self._job.options
        if options.costs is not None:
            return Costs.from_json(options.costs.read_text(encoding="utf-8"))
        everything = full_plan(job.prepared.sites)
        dynamic = [u.origin for u in units(job.prepared.sites) if u.dynamic]
        variant = everything.with_choice(dynamic, INT8_DYNAMIC, "all that can be")
        path = job.work / "prepared.onnx"
        save_model(job.prepared.model, path)
        names = [v.name for n in job.prepared.model.graph for v in (*n.inputs, *n.outputs) if v]
        feed = self._race.feeds[0]
        seen = shapes_seen(
            job.prepared.model, [n for n in names if n], feed, job.work, options.custom_ops
        )
        return measure_costs(
            path,
            self._builder.build(everything).path,
            self._race.feeds,
            dynamic_model=self._builder.build(variant).path if dynamic else None,
            planned=[layer.origin for layer in everything.layers if layer.precision != FLOAT],
            elements={name: prod(shape) for name, shape in seen.items()},
            threads=options.threads,
            budget_s=COST_SECONDS[options.effort],
            custom_ops=options.custom_ops,
        )
