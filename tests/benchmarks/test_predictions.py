"""Predictions beside measurements: which plans are drawn, what counts as wrong."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qcompile.planner.problem import PlanNode, PlanTensor, Problem


@pytest.fixture(scope="module")
def predictions(root: Path) -> ModuleType:
    path = root / "benchmarks" / "predictions.py"
    spec = importlib.util.spec_from_file_location("predictions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["predictions"] = module
    spec.loader.exec_module(module)
    return module


def chain(count: int) -> Problem:
    nodes = tuple(PlanNode(f"n{i}", "Conv", 100 + i, 40) for i in range(count))
    tensors = tuple(PlanTensor(f"t{i}", f"n{i}", (f"n{i + 1}",), 5, 5) for i in range(count - 1))
    return Problem(nodes, tensors, base_ns=50)


def test_random_plans_have_the_share_asked_for(predictions: ModuleType) -> None:
    problem = chain(12)
    compute = {n.origin for n in problem.nodes}
    for seed in range(10):
        labels = predictions.random_labels(problem, compute, 0.5, random.Random(seed))
        assert 0.5 <= predictions.integer_share(problem, labels) <= 0.8
        again = predictions.random_labels(problem, compute, 0.5, random.Random(seed))
        assert labels == again


def test_a_model_of_one_layer_has_no_mixed_plan(predictions: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no plan found"):
        predictions.random_labels(chain(1), {"n0"}, 0.5, random.Random(0))


def test_points_of_the_front_lie_apart(predictions: ModuleType) -> None:
    front = [(ns, {"n": str(ns)}) for ns in (100, 102, 104, 106, 130, 131, 180)]
    kept = [int(labels["n"]) for labels in predictions.spread(front, 9)]
    assert kept == [100, 106, 130, 180]
    assert [int(labels["n"]) for labels in predictions.spread(front, 2)] == [100, 180]


def test_faults_name_what_was_wrong(predictions: ModuleType) -> None:
    def row(name: str, predicted: float, measured: float) -> object:
        return predictions.Row(name, 0.5, 1.0, 1.0, predicted, measured)

    good = [row("random 0", 1.1, 1.0), row("front 0", 0.5, 0.5), row("front 1", 0.6, 0.55)]
    assert predictions.faults(good) == []
    (off,) = predictions.faults([row("random 0", 1.2, 1.0)])
    assert "+20.0%" in off
    turned = [row("front 0", 0.5, 0.54), row("front 1", 0.54, 0.53)]
    assert "front 0 was predicted faster" in predictions.faults(turned)[0]
    assert "front 1" in predictions.table(turned)
