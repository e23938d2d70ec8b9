"""Predicted latency against measured, for mixed plans that the costs were not fitted to.

    python benchmarks/predictions.py model.onnx --data samples/ [--threads 1] [--plans 3] [--json out.json]

Costs are measured on the float, the fully int8 and the fully dynamic model. Then random mixed plans
are made (seeded): compute layers are drawn until their share of the float time is reached, the others
stay float, and what lies between follows the cheapest way. These plans, and points of the predicted
Pareto front that lie at least 5 % apart, are built and timed interleaved with float. What is compared
is the latency relative to float's of the same run, so that a machine that became faster or slower
since the costs were measured does not matter.

Exit code 1: a prediction is off by more than 15 %, or two Pareto points changed their order.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qcompile.backends.tables import get_target
from qcompile.build import Builder
from qcompile.enough import Enough
from qcompile.environment import describe_machine, describe_versions
from qcompile.ir.plan import FLOAT, INT8, PrecisionPlan
from qcompile.job import Job, gather
from qcompile.measure import measure_many
from qcompile.options import Options, make_options
from qcompile.planner.clock import typical_feed
from qcompile.planner.costing import job_costs
from qcompile.planner.costs import Costs
from qcompile.planner.energy import Energy
from qcompile.planner.graph_problem import plan_of_labels, problem_from_graph
from qcompile.planner.grouped import measure_model
from qcompile.planner.problem import Problem
from qcompile.planner.sensitivity import Sensitivity
from qcompile.planner.sweep import pareto
from qcompile.planner.units import Unit, full_plan, units
from qcompile.prepare import prepare
from qcompile.ranges import find_ranges

WITHIN = 0.15
APART = 0.05
SHARES = (0.2, 0.8)
"""Share of the float time that is integer in a random plan."""
TRIES = 20


@dataclass(frozen=True)
class Row:
    """One plan.

    Attributes:
        name: how it was made.
        integer_share: of the float time of all layers.
        predicted_ms: by the costs.
        measured_ms: median by the clock.
        predicted: latency relative to float.
        measured: the same by the clock, paired.
    """

    name: str
    integer_share: float
    predicted_ms: float
    measured_ms: float
    predicted: float
    measured: float

    @property
    def off(self) -> float:
        """How much the prediction is above what was measured, as a share."""
        return self.predicted / self.measured - 1


def random_labels(
    problem: Problem, compute: Collection[str], share: float, rng: random.Random
) -> dict[str, str]:
    """Compute layers int8 at random until ``share`` of the float time is integer.

    What lies between them takes the cheapest label, and counts with them.

    Raises:
        SystemExit: the model has no plan with a share in `SHARES`.
    """
    able = [n.origin for n in problem.nodes if n.origin in compute and n.int_ns is not None]
    for _ in range(TRIES):
        pins = dict.fromkeys(able, FLOAT)
        for origin in rng.sample(able, len(able)):
            labels = cheapest(problem, {**pins, origin: INT8})
            if integer_share(problem, labels) > SHARES[1]:
                continue
            pins[origin] = INT8
            if integer_share(problem, labels) >= share:
                return labels
        labels = cheapest(problem, pins)
        if SHARES[0] <= integer_share(problem, labels) <= SHARES[1]:
            return labels
    raise SystemExit(f"no plan found with {SHARES[0]:.0%} to {SHARES[1]:.0%} of the time integer")


def cheapest(problem: Problem, pins: Mapping[str, str]) -> dict[str, str]:
    """The labels of least latency with some of them given."""
    nodes = tuple(replace(n, pinned=pins.get(n.origin, n.pinned)) for n in problem.nodes)
    energy = Energy(replace(problem, nodes=nodes))
    return dict(energy.named(energy.solve(1, 0)))


def integer_share(problem: Problem, labels: Mapping[str, str]) -> float:
    """Share of the layers' float time that is not float in a plan."""
    total = sum(n.float_ns for n in problem.nodes) or 1
    return sum(n.float_ns for n in problem.nodes if labels[n.origin] != FLOAT) / total


def spread(found: Sequence[tuple[int, dict[str, str]]], most: int) -> list[dict[str, str]]:
    """At most so many labellings of a front, each at least 5 % slower than the one before."""
    kept: list[tuple[int, dict[str, str]]] = []
    for ns, labels in found:
        if not kept or ns >= (1 + APART) * kept[-1][0]:
            kept.append((ns, labels))
    step = max(1.0, (len(kept) - 1) / max(1, most - 1))
    picked = {round(i * step) for i in range(most)}
    return [labels for i, (_, labels) in enumerate(kept) if i in picked]


def front_labels(
    job: Job, builder: Builder, costs: Costs, found: Sequence[Unit], most: int, seconds: float
) -> tuple[Problem, list[dict[str, str]]]:
    """The problem with measured sensitivities, and points of its front."""
    quantized, _ = builder.portable(full_plan(job.prepared.sites))
    model = measure_model(
        job.prepared.model,
        quantized,
        job.prepared.target,
        job.data.selection()[:2],
        threads=job.options.threads,
        search_time=seconds,
        progress=lambda done, of: None,
    )
    problem = plain_problem(job, costs, found, model.sensitivities.filled(found))
    points = [(p.latency_ns, dict(p.labels)) for p in pareto(problem)]
    return problem, spread(points, most)


def plain_problem(
    job: Job, costs: Costs, found: Sequence[Unit], sensitivities: Mapping[str, Sensitivity]
) -> Problem:
    """What the planner is given."""
    known = costs.latencies([name for unit in found for name in unit.origins])
    return problem_from_graph(found, known, sensitivities)


def rows_of(
    job: Job,
    builder: Builder,
    costs: Costs,
    problem: Problem,
    named: Mapping[str, Mapping[str, str]],
    seconds: float,
) -> list[Row]:
    """Build the plans, time them beside float."""
    found = units(job.prepared.sites)
    energy = Energy(problem)
    paths = {"float": job.float_path}
    for name, labels in named.items():
        plan: PrecisionPlan = plan_of_labels(job.prepared.sites, found, problem, labels)
        paths[name] = builder.build(plan).path
    timed = measure_many(
        paths,
        [typical_feed(job.data.selection())],
        threads=job.options.threads,
        budget_s=seconds * len(paths),
        enough=Enough(half_width=0.01),
    )
    base = costs.original_ns
    rows = []
    for name, labels in named.items():
        ns = energy.total_ns(energy.numbered(labels))
        speed = timed.models[name]
        rows.append(
            Row(
                name,
                integer_share(problem, labels),
                ns / 1e6,
                speed.p50_ms,
                ns / base,
                1 / timed.speedup(name).value,
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| plan | integer time | predicted ms | measured ms | predicted/float | measured/float | off |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.name} | {r.integer_share:.0%} | {r.predicted_ms:.3f} | {r.measured_ms:.3f} "
            f"| {r.predicted:.3f} | {r.measured:.3f} | {r.off:+.1%} |"
        )
    return "\n".join(lines)


def faults(rows: Sequence[Row]) -> list[str]:
    """What was predicted wrongly, in words."""
    found = [f"{r.name} is off by {r.off:+.1%}" for r in rows if abs(r.off) > WITHIN]
    front = [r for r in rows if r.name.startswith("front")]
    for i, a in enumerate(front):
        for b in front[i + 1 :]:
            if b.predicted >= (1 + APART) * a.predicted and b.measured < a.measured:
                found.append(f"{a.name} was predicted faster than {b.name}, and is slower")
    return found


def prepared_job(model: Path, options: Options, work: Path) -> Job:
    """Model and data as a compile has them."""
    prepared = prepare(model, get_target(options.target, options.device), options)
    return Job(prepared, gather(prepared, options), options, model, work)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True, help="as qcompile --calibration takes it")
    parser.add_argument("--threads", type=int, default=1, help="[1]")
    parser.add_argument("--plans", type=int, default=3, help="random mixed plans [3]")
    parser.add_argument("--front", type=int, default=4, help="points of the Pareto front [4]")
    parser.add_argument("--seed", type=int, default=0, help="of the plans [0]")
    parser.add_argument("--costs", type=Path, help="use this costs.json instead of measuring")
    parser.add_argument("--cost-seconds", type=float, default=8.0, help="for measuring costs [8]")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing each plan [2]")
    parser.add_argument("--search-seconds", type=float, default=20.0, help="of sensitivities [20]")
    parser.add_argument("--json", type=Path, help="write the rows, the machine and the versions")
    args = parser.parse_args()
    options = make_options(calibration=args.data, samples=16, threads=args.threads)
    with tempfile.TemporaryDirectory(prefix="predictions-", ignore_cleanup_errors=True) as scratch:
        job = prepared_job(args.model, options, Path(scratch))
        ranges = find_ranges(job, None, lambda done, of: None)
        builder = Builder(job.prepared.model, job.prepared.target, ranges.chosen, job.work)
        costs = job_costs(job, builder, job.data.selection(), budget_s=args.cost_seconds)
        if args.costs is not None:
            costs = Costs.from_json(args.costs.read_text(encoding="utf-8"))
        found = units(job.prepared.sites)
        problem = plain_problem(job, costs, found, {})
        compute = {u.origin for u in found if u.site.role == "compute"}
        rng = random.Random(args.seed)
        low, high = SHARES
        named = {
            f"random {i}": random_labels(
                problem,
                compute,
                low + (high - low) * (i + rng.random()) / args.plans,
                rng,
            )
            for i in range(args.plans)
        }
        if args.front:
            problem, points = front_labels(
                job, builder, costs, found, args.front, args.search_seconds
            )
            named |= {f"front {i}": labels for i, labels in enumerate(points)}
        rows = rows_of(job, builder, costs, problem, named, args.seconds)
    print(f"{args.model.name}, {args.threads} thread(s); {costs.text()}")
    print(table(rows))
    wrong = faults(rows)
    for line in wrong:
        print(line)
    if args.json is not None:
        content = {
            "model": args.model.name,
            "rows": [asdict(r) for r in rows],
            "faults": wrong,
            "machine": describe_machine(),
            "versions": describe_versions(),
        }
        text = json.dumps(content, indent=1) + "\n"
        args.json.write_text(text, encoding="utf-8", newline="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
