"""A limit on stored bytes against every labelling of small problems, and through the whole flow."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qcompile
from qcompile.ir.errors import BudgetError
from qcompile.planner.energy import INTEGER, PLAIN, Energy, Labels
from qcompile.planner.problem import PlanNode, Problem
from qcompile.planner.sizing import solve_sized, stored_bytes
from qcompile.reporter import Silent
from tests.planner.problems import labellings, random_problem


def sized(rng: random.Random, sites: int) -> Problem:
    problem = random_problem(rng, sites)
    nodes = []
    for node in problem.nodes:
        elements = rng.choice((0, 0, 1, 10, 100))
        nodes.append(replace(node, float_bytes=4 * elements, integer_bytes=elements))
    return replace(problem, nodes=tuple(nodes))


def size(problem: Problem, labels: Labels) -> int:
    return sum(
        n.float_bytes if label == PLAIN else n.integer_bytes
        for n, label in zip(problem.nodes, labels, strict=True)
    )


@given(st.randoms(use_true_random=False), st.integers(1, 6), st.floats(0.0, 1.1))
@settings(max_examples=50, deadline=None)
def test_a_plan_within_the_size_is_found_where_one_exists(
    rng: random.Random, sites: int, share: float
) -> None:
    problem = sized(rng, sites)
    limit = round(share * sum(n.float_bytes for n in problem.nodes))
    energy = Energy(problem)
    able = [x for x in labellings(energy) if size(problem, x) <= limit]
    if not able:
        with pytest.raises(BudgetError, match="no plan has weights within"):
            solve_sized(problem, limit)
        return
    found = solve_sized(problem, limit)
    assert stored_bytes(problem, found.labels) <= limit
    best = min(energy.total_ns(x) for x in able)
    assert best <= found.latency_ns <= 1.5 * best + 10  # the price is a heuristic


@given(st.randoms(use_true_random=False), st.integers(1, 6), st.floats(0.1, 1.0))
@settings(max_examples=40, deadline=None)
def test_size_and_error_are_kept_together(rng: random.Random, sites: int, share: float) -> None:
    problem = sized(rng, sites)
    limit = round(0.7 * sum(n.float_bytes for n in problem.nodes))
    error = share * sum(n.sensitivity for n in problem.nodes)
    try:
        found = solve_sized(problem, limit, max_error=error)
    except BudgetError:
        return
    assert stored_bytes(problem, found.labels) <= limit
    assert found.error <= error


def test_the_larger_weights_become_integer_although_float_is_faster() -> None:
    problem = Problem(
        (
            PlanNode("small", "Conv", 10, 20, float_bytes=400, integer_bytes=100),
            PlanNode("large", "Conv", 10, 20, float_bytes=4000, integer_bytes=1000),
        )
    )
    assert solve_sized(problem, None, max_error=1.0).labels == {"small": "float", "large": "float"}
    found = solve_sized(problem, 1500)
    assert found.labels == {"small": "float", "large": "int8"}
    assert found.latency_ns == 30
    with pytest.raises(BudgetError, match=r"the smallest has 0\.001 MB"):
        solve_sized(problem, 1000)


def test_latency_and_size_together_name_what_is_missing() -> None:
    problem = Problem(
        (PlanNode("a", "Conv", 2_000_000, 9_000_000, float_bytes=4000, integer_bytes=1000),)
    )
    with pytest.raises(BudgetError, match=r"the fastest of that size is predicted at 9\.000 ms"):
        solve_sized(problem, 2000, max_latency_ns=5_000_000)
    assert solve_sized(problem, 2000, max_latency_ns=9_500_000).labels == {"a": "int8"}


def test_integer_label_is_the_one_counted() -> None:
    problem = Problem((PlanNode("a", "Conv", 1, 1, float_bytes=4, integer_bytes=1),))
    assert stored_bytes(problem, {"a": "int8"}) == size(problem, np.array([INTEGER], np.int8))


class _Listening(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_size_that_no_plan_has_is_said_with_the_smallest(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        m (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"""
    )
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        weight = rng.normal(size=(64, 64)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    listening = _Listening()
    result = qcompile.compile(
        model,
        calibration=[{"x": rng.normal(size=(1, 64)).astype(np.float32)} for _ in range(12)],
        output=tmp_path / "build",
        max_size="6KB",
        min_speedup=0.01,
        gate_time="0.5s",
        search_time="1s",
        effort="fast",
        threads=1,
        progress=listening,
    )
    assert result.exit_code == 3
    assert "size 0.01 MB (0.01 MB allowed)" in result.report.data["gate"]["headline"]
    said = [text for text in listening.notes if text.startswith("--max-size")]
    assert said and "no plan has weights within 0.00" in said[0]
    assert "the smallest has 0.008 MB" in said[0]
