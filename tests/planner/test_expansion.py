"""Three precisions on a synthetic target: int16 activations are slower than int8 and more exact."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.ir.errors import OptionError
from qcompile.planner.expansion import (
    Form,
    WideNode,
    WideProblem,
    WideTensor,
    cost_of,
    expand,
    two_label_start,
)

FORMS = {
    "float": Form("float", "float"),
    "int8": Form("int8", "int8"),
    "int16": Form("int16", "int16"),
}


def random_wide(rng: random.Random, sites: int) -> WideProblem:
    nodes = []
    for i in range(sites):
        cost = {
            "float": rng.randint(10, 40),
            "int8": rng.randint(5, 40),
            "int16": rng.randint(5, 40),
        }
        if rng.random() < 0.2:
            del cost["int16"]
        nodes.append(WideNode(f"n{i}", cost))
    tensors = tuple(
        WideTensor(
            f"t{i}",
            None if i < 0 else f"n{i}",
            tuple(f"n{j}" for j in range(i + 1, sites) if rng.random() < 2 / sites),
            {
                pair: rng.randint(0, 9)
                for pair in itertools.permutations(("float", "int8", "int16"), 2)
            },
            float_read=rng.random() < 0.2,
        )
        for i in range(-1, sites)
    )
    return WideProblem(FORMS, tuple(nodes), tensors)


def best_of_all(problem: WideProblem) -> int:
    names = [n.origin for n in problem.nodes]
    return min(
        cost_of(problem, dict(zip(names, labels, strict=True)))
        for labels in itertools.product(*(sorted(n.cost) for n in problem.nodes))
    )


@given(st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_expansion_is_legal_and_never_worse_than_two_labels(rng: random.Random, sites: int) -> None:
    problem = random_wide(rng, sites)
    start = two_label_start(problem)
    labels, cost = expand(problem, start)
    assert cost == cost_of(problem, labels)
    assert best_of_all(problem) <= cost <= cost_of(problem, start)


@given(st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_two_labels_start_at_their_optimum(rng: random.Random, sites: int) -> None:
    problem = random_wide(rng, sites)
    two = WideProblem(
        {k: FORMS[k] for k in ("float", "int8")},
        tuple(
            WideNode(n.origin, {k: v for k, v in n.cost.items() if k != "int16"})
            for n in problem.nodes
        ),
        problem.tensors,
    )
    start = two_label_start(two)
    assert cost_of(two, start) == best_of_all(two)
    assert expand(two, start) == (start, cost_of(two, start))


def test_expansion_is_near_the_optimum() -> None:
    """Seen: 0.4 % above the optimum on average; twice that is allowed."""
    rng = random.Random(1)
    gaps = []
    for _ in range(60):
        problem = random_wide(rng, 6)
        gaps.append(expand(problem, two_label_start(problem))[1] / best_of_all(problem) - 1)
    assert sum(gaps) / len(gaps) < 0.01


def test_sensitive_layer_gets_sixteen_bits_between_eight_bit_neighbours() -> None:
    nodes = (
        WideNode("a", {"float": 100, "int8": 10, "int16": 30}),
        WideNode("b", {"float": 100, "int8": 500, "int16": 30}),
        WideNode("c", {"float": 100, "int8": 10, "int16": 30}),
    )
    convert = dict.fromkeys(itertools.permutations(("float", "int8", "int16"), 2), 5)
    tensors = (
        WideTensor("t0", "a", ("b",), convert),
        WideTensor("t1", "b", ("c",), convert),
    )
    problem = WideProblem(FORMS, nodes, tensors)
    labels, cost = expand(problem, two_label_start(problem))
    assert labels == {"a": "int8", "b": "int16", "c": "int8"}
    assert cost == 10 + 5 + 30 + 5 + 10


def test_missing_conversion_and_label_are_refused() -> None:
    problem = WideProblem(
        FORMS, (WideNode("a", {"float": 1}),), (WideTensor("x", None, ("a",), {}),)
    )
    with pytest.raises(OptionError, match="'a' may not be 'int8'"):
        cost_of(problem, {"a": "int8"})
    with pytest.raises(OptionError, match="'x' has no conversion from float to int8"):
        two_label_start(problem)
