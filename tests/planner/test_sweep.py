"""Budgets and fronts against every labelling of small problems."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.ir.errors import BudgetError
from qcompile.planner.energy import Energy
from qcompile.planner.problem import PlanNode, Problem
from qcompile.planner.sweep import knee, pareto, pareto_json, solve_budget
from tests.planner.problems import chain, labellings, random_problem


def everything(problem: Problem) -> list[tuple[int, float]]:
    energy = Energy(problem)
    return [(energy.total_ns(x), energy.total_error(x)) for x in labellings(energy)]


@given(st.randoms(use_true_random=False), st.integers(2, 6), st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_error_budget_is_kept_and_nearly_used_best(
    rng: random.Random, sites: int, share: float
) -> None:
    problem = random_problem(rng, sites)
    limit = share * sum(n.sensitivity for n in problem.nodes)
    found = solve_budget(problem, max_error=limit)
    best = min(ns for ns, error in everything(problem) if error <= limit)
    assert found.error <= limit
    assert best <= found.latency_ns <= 1.25 * best + 5  # flips are a heuristic


@given(st.randoms(use_true_random=False), st.integers(2, 6), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_latency_budget_is_kept(rng: random.Random, sites: int, share: float) -> None:
    problem = random_problem(rng, sites)
    plans = everything(problem)
    fastest, slowest = min(plans)[0], max(plans)[0]
    limit = int(fastest + share * (slowest - fastest))
    found = solve_budget(problem, max_latency_ns=limit)
    assert found.latency_ns <= limit
    assert found.error >= min(error for ns, error in plans if ns <= limit) - 1e-12


def test_flips_fill_the_gap_that_the_hull_leaves() -> None:
    """Errors 3 and 2 under a limit of 4.9: the hull has {}, {b}, {a, b}; {a} is off the hull."""
    problem = Problem(
        (
            PlanNode("a", "Conv", 40, 10, sensitivity=3.0),
            PlanNode("b", "Conv", 40, 15, sensitivity=2.0),
        )
    )
    found = solve_budget(problem, max_error=4.9)
    assert found.labels == {"a": "int8", "b": "float"}
    assert (found.latency_ns, found.found_by) == (50, "flips")


def test_pair_flips_cross_a_conversion() -> None:
    """Either site alone only adds conversions; together they pay."""
    a = PlanNode("a", "Conv", 10, 6, sensitivity=0.1)
    b = PlanNode("b", "Conv", 10, 6, sensitivity=0.1)
    tail = PlanNode("c", "Conv", 99, 9, sensitivity=9.0)
    problem = chain(a, b, tail, quantize=3, dequantize=3)
    found = solve_budget(problem, max_error=1.0)
    assert found.labels == {"a": "int8", "b": "int8", "c": "float"}


def test_front_reaches_both_ends_and_nothing_dominates() -> None:
    problem = random_problem(random.Random(5), 8)
    front = pareto(problem)
    plans = everything(problem)
    assert front[0].latency_ns == min(plans)[0]
    assert front[-1].error == min(error for _, error in plans)
    for slow, fast in zip(front[1:], front, strict=False):
        assert slow.latency_ns > fast.latency_ns
        assert slow.error < fast.error
    assert knee(front) in front


def test_front_file_is_deterministic_and_readable() -> None:
    texts = [pareto_json(pareto(random_problem(random.Random(7), 12))) for _ in range(2)]
    assert texts[0] == texts[1]
    points = json.loads(texts[0])["points"]
    assert points == sorted(points, key=lambda p: p["latency_ns"])
    assert all(set(p["sites"]) <= {"int8", "int8-dynamic"} for p in points)


def test_budget_that_no_plan_keeps_names_the_nearest() -> None:
    pinned = PlanNode("a", "Conv", 10, 5, sensitivity=0.5, pinned="int8")
    with pytest.raises(BudgetError, match=r"cause 0\.5"):
        solve_budget(Problem((pinned,)), max_error=0.1)
    with pytest.raises(BudgetError, match=r"predicted at 5\.000 ms"):
        solve_budget(Problem((PlanNode("a", "Conv", 10**7, 5 * 10**6),)), max_latency_ns=10**6)
    free = PlanNode("a", "Conv", 10**7, 5 * 10**6, sensitivity=0.5)
    with pytest.raises(BudgetError, match=r"10\.000 ms; allow more of one"):
        solve_budget(Problem((free,)), max_error=0.1, max_latency_ns=9 * 10**6)


def test_no_budget_takes_the_knee() -> None:
    problem = random_problem(random.Random(9), 10)
    assert solve_budget(problem) == knee(pareto(problem))


def test_empty_problem_has_one_plan() -> None:
    problem = Problem((), base_ns=7)
    assert [p.latency_ns for p in pareto(problem)] == [7]


def test_five_thousand_sites() -> None:
    rng = random.Random(11)
    nodes = [
        PlanNode(
            f"n{i}",
            "Conv",
            rng.randint(10**3, 10**6),
            None if rng.random() < 0.4 else rng.randint(500, 10**6),
            sensitivity=10 ** rng.uniform(-7, -1),
        )
        for i in range(5000)
    ]
    problem = chain(*nodes, quantize=10**4, dequantize=10**4)
    found = solve_budget(problem, max_error=0.01)
    assert found.error <= 0.01
    assert any(label == "int8" for label in found.labels.values())


def test_hull_points_that_are_close_are_not_filled_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many sites: neighbours on the hull differ by less than flips may gain, so none are tried."""
    problem = random_problem(random.Random(3), 400)
    limit = 0.3 * sum(n.sensitivity for n in problem.nodes)
    filled = solve_budget(problem, max_error=limit)
    monkeypatch.setattr("qcompile.planner.sweep._CLOSE", 1.0)
    hull = solve_budget(problem, max_error=limit)
    assert hull.found_by == "hull" and hull.error <= limit
    assert filled.latency_ns <= hull.latency_ns <= 1.01 * filled.latency_ns
