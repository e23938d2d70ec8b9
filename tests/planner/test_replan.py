"""The problem of a graph, its plan file, and budgets met as measured."""

from collections.abc import Mapping

import pytest

from qcompile.ir.plan import PrecisionPlan
from qcompile.planner.energy import Energy
from qcompile.planner.graph_problem import Latencies, plan_of_labels, problem_from_graph
from qcompile.planner.problem import PlanNode, Problem
from qcompile.planner.replan import Trial, solve_measured
from qcompile.planner.sensitivity import Sensitivity
from qcompile.planner.sweep import solve_budget
from qcompile.planner.units import units
from tests.planner.gated_models import MIXED, parse, state_of

COSTS = Latencies(
    float_ns={"Conv1": 900, "Relu1": 100, "Conv2": 500, "MatMul1": 400, "Add1": 50},
    int_ns={"Conv1": 300, "Conv2": 200, "MatMul1": 100, "Add1": 60},
    dynamic_ns={"MatMul1": 150},
    quantize_ns={"x": 20, "r1": 30},
    dequantize_ns={"r1": 40, "flat": 70, "y": 10},
    base_ns=1000,
)
SENSE = {"Conv1": Sensitivity(0.1, 0.5, None, 1), "MatMul1": Sensitivity(0.2, 0.0, 0.01, 1)}


def test_problem_of_a_graph() -> None:
    _, sites = state_of(parse(MIXED))
    problem = problem_from_graph(units(sites), COSTS, SENSE)
    nodes = {n.origin: n for n in problem.nodes}
    tensors = {t.name: t for t in problem.tensors}
    assert (nodes["Conv1"].float_ns, nodes["Conv1"].int_ns) == (1000, 300)  # with its Relu
    assert "Relu1" not in nodes
    assert nodes["MatMul1"].labels() == ("float", "int8", "int8-dynamic")
    assert nodes["Conv1"].labels() == ("float", "int8")
    assert "c1" not in tensors
    assert tensors["x"].producer is None
    assert tensors["x"].quantize_ns == 20
    assert tensors["r1"].producer == "Conv1"
    assert set(tensors["r1"].consumers) == {"Conv2", "Add1"}
    assert (tensors["r1"].write_error, tensors["r1"].float_read) == (0.5, False)
    assert tensors["flat"].float_read  # by Softmax
    assert tensors["y"].dequantize_ns == 0  # MatMul can write float
    assert tensors["z"].float_read  # a graph output
    assert tensors["z"].producer == "Split1"
    floats = Energy(problem).total_ns(Energy(problem).numbered({}))
    assert floats == 1000 + 900 + 100 + 500 + 400 + 50


def test_pins_and_forbidden_labels_reach_the_problem() -> None:
    _, sites = state_of(parse(MIXED))
    problem = problem_from_graph(
        units(sites),
        COSTS,
        SENSE,
        pins={"Conv2": "float"},
        forbidden={"Conv1": frozenset({"int8"})},
    )
    found = solve_budget(problem, max_error=10)
    assert found.labels["Conv1"] == found.labels["Conv2"] == "float"
    assert found.labels["MatMul1"] == "int8"


def test_plan_names_every_site_and_reads_back() -> None:
    _, sites = state_of(parse(MIXED))
    every = units(sites)
    problem = problem_from_graph(every, COSTS, SENSE, pins={"Conv2": "float"})
    point = solve_budget(problem, max_error=10)
    plan = plan_of_labels(sites, every, problem, point.labels)
    choices = plan.by_origin()
    assert [c.origin for c in plan.layers] == [s.origin for s in sites]
    assert choices["Relu1"].precision == choices["Conv1"].precision == "int8"
    assert "follows 'Conv1'" in choices["Relu1"].reason
    assert "saves 0.7 us of 1.0 us" in choices["Conv1"].reason
    assert (choices["Conv2"].pinned, choices["Conv2"].reason) == (True, "pinned by the user")
    assert "slower" in choices["Softmax1"].reason
    assert PrecisionPlan.from_json(plan.to_json()) == plan


def halves(count: int) -> Problem:
    return Problem(
        tuple(
            PlanNode(f"n{i}", "Conv", 100 + i, 10, sensitivity=0.01 * 1.3**i) for i in range(count)
        )
    )


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_budget_is_met_as_measured(factor: float) -> None:
    """Errors that are in truth ``factor`` times the sum."""
    problem = halves(12)
    energy = Energy(problem)
    best, trials = solve_measured(
        problem, lambda labels: factor * energy.total_error(energy.numbered(labels)), 0.2
    )
    assert best is not None
    assert best.measured <= 0.2
    ideal = solve_budget(problem, max_error=0.2 / factor)
    assert best.point.latency_ns <= 1.05 * ideal.latency_ns
    assert len(trials) <= 8


def test_fastest_plan_is_taken_when_it_keeps_the_budget() -> None:
    best, trials = solve_measured(halves(5), lambda labels: 0.001, 0.01)
    assert best is not None
    assert len(trials) == 1
    assert set(best.point.labels.values()) == {"int8"}


def test_float_is_left_when_nothing_else_keeps_the_budget() -> None:
    def broken(labels: dict[str, str]) -> float:
        return 5.0 if "int8" in labels.values() else 0.0

    best, trials = solve_measured(halves(5), broken, 0.01, tries=30)
    assert all(t.measured == 5.0 for t in trials if "int8" in t.point.labels.values())
    assert best is None or set(best.point.labels.values()) == {"float"}


def test_pinned_error_above_the_budget_finds_nothing() -> None:
    problem = Problem((PlanNode("a", "Conv", 9, 5, sensitivity=0.5, pinned="int8"),))
    best, trials = solve_measured(problem, lambda labels: 0.5, 0.1, tries=4)
    assert best is None
    assert trials


def test_some_plans_are_measured_whatever_time_they_take() -> None:
    """Every look at the clock is an hour later; what was measured once is not measured again."""
    hours = iter(range(0, 10**6, 3600))
    calls: list[int] = []
    seen: dict[tuple[tuple[str, str], ...], float] = {}

    def measure(labels: Mapping[str, str]) -> float:
        calls.append(1)
        return 2.0 * sum(label == "int8" for label in labels.values())

    def search(least: int) -> tuple[Trial | None, tuple[Trial, ...]]:
        return solve_measured(
            halves(6),
            measure,
            0.5,
            tries=9,
            least=least,
            seen=seen,
            search_time=1.0,
            clock=lambda: next(hours),
        )

    _, tried = search(1)
    assert (len(tried), len(calls)) == (1, 1)
    _, tried = search(3)
    assert len(calls) == len(seen) > 1, "the first one was known"
    assert min(t.measured for t in tried) < tried[0].measured
