"""The two-label optimum against every labelling, and the semantics of conversions."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.ir.errors import OptionError
from qcompile.planner.energy import DYNAMIC, INTEGER, PLAIN, Energy, Labels
from qcompile.planner.problem import PlanNode, PlanTensor, Problem
from tests.planner.problems import chain, labellings, random_problem


@given(st.randoms(use_true_random=False), st.integers(1, 6), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=120, deadline=None)
def test_optimum_is_exact(
    rng: random.Random, sites: int, latency_weight: int, error_weight: int
) -> None:
    energy = Energy(random_problem(rng, sites))

    def cost(labels: Labels) -> int:
        return latency_weight * energy.total_ns(labels) + error_weight * energy.total_units(labels)

    assert cost(energy.solve(latency_weight, error_weight)) == min(map(cost, labellings(energy)))


@given(st.randoms(use_true_random=False), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_ties_keep_the_fewest_integer_sites(rng: random.Random, sites: int) -> None:
    energy = Energy(random_problem(rng, sites, dynamic=False))
    found = energy.solve(1, 0)
    best = energy.total_ns(found)
    optimal = [x == INTEGER for x in labellings(energy) if energy.total_ns(x) == best]
    assert ((found == INTEGER) == np.logical_and.reduce(optimal)).all()


def site(name: str, float_ns: int = 10, int_ns: int | None = 1, **more: Any) -> PlanNode:
    return PlanNode(name, "Conv", float_ns, int_ns, **more)


def test_conversion_is_paid_once_for_many_consumers() -> None:
    problem = Problem(
        (site("a"), site("b"), site("c")),
        (PlanTensor("x", None, ("a", "b", "c"), quantize_ns=25),),
    )
    energy = Energy(problem)
    assert energy.total_ns(np.array([INTEGER] * 3, dtype=np.int8)) == 3 + 25
    assert energy.solve(1, 0).tolist() == [INTEGER] * 3  # 28 against 30; three Q would be 78


def test_dequantize_is_paid_only_when_a_reader_is_float() -> None:
    problem = Problem(
        (site("a"), site("b"), site("c", int_ns=None)),
        (PlanTensor("y", "a", ("b", "c"), quantize_ns=4, dequantize_ns=7),),
    )
    energy = Energy(problem)
    assert energy.total_ns(np.array([INTEGER, INTEGER, PLAIN], dtype=np.int8)) == 1 + 1 + 10 + 7
    assert energy.total_ns(np.array([PLAIN, INTEGER, PLAIN], dtype=np.int8)) == 10 + 1 + 10 + 4
    assert energy.total_ns(np.array([PLAIN, PLAIN, PLAIN], dtype=np.int8)) == 30


def test_write_error_is_paid_once_when_float_readers_see_what_integers_wrote() -> None:
    problem = Problem(
        (site("a"), site("b"), site("c"), site("d")),
        (PlanTensor("y", "a", ("b", "c", "d"), write_error=0.5),),
    )
    energy = Energy(problem)
    errors = [
        energy.total_error(np.array(labels, dtype=np.int8))
        for labels in (
            [INTEGER] * 4,
            [INTEGER, INTEGER, PLAIN, PLAIN],
            [PLAIN, INTEGER, PLAIN, PLAIN],
        )
    ]
    assert errors == [0.0, 0.5, 0.0]


def test_kernel_that_writes_float_needs_no_dequantize_but_a_quantize() -> None:
    problem = Problem(
        (site("a", float_output=True), site("b")),
        (PlanTensor("y", "a", ("b",), quantize_ns=4, dequantize_ns=7, float_read=True),),
    )
    energy = Energy(problem)
    assert energy.total_ns(np.array([INTEGER, PLAIN], dtype=np.int8)) == 1 + 10
    assert energy.total_ns(np.array([INTEGER, INTEGER], dtype=np.int8)) == 1 + 1 + 4


def test_dynamic_form_has_float_edges() -> None:
    energy = Energy(
        chain(site("a", int_ns=8, dynamic_ns=3), site("b", int_ns=None), quantize=2, dequantize=2)
    )
    assert energy.solve(1, 0).tolist() == [DYNAMIC, PLAIN]
    assert energy.total_ns(energy.solve(1, 0)) == 3 + 10


def test_pinned_and_forbidden_labels_are_kept() -> None:
    problem = chain(
        site("a", pinned="float"), site("b", 1, 90, pinned="int8"), site("c", forbidden={"int8"})
    )
    assert Energy(problem).solve(1, 0).tolist() == [PLAIN, INTEGER, PLAIN]


def test_tied_sites_agree() -> None:
    nodes = (site("a"), site("b", 1, 5), site("c", 1, 100))
    free = Energy(Problem(nodes)).solve(1, 0)
    tied = Energy(Problem(nodes, ties=(("a", "b"),))).solve(1, 0)
    assert free.tolist() == [INTEGER, PLAIN, PLAIN]
    assert tied.tolist() == [INTEGER, INTEGER, PLAIN]


def test_tied_sites_without_a_common_label_are_refused() -> None:
    nodes = (site("a", pinned="int8"), site("b", int_ns=None))
    with pytest.raises(OptionError, match="'a', 'b' share one precision"):
        Energy(Problem(nodes, ties=(("a", "b"),)))


def test_labels_that_a_site_cannot_take_are_refused() -> None:
    energy = Energy(Problem((site("a", int_ns=None),)))
    with pytest.raises(OptionError, match="'a' may not be 'int8'"):
        energy.total_ns(np.array([INTEGER], dtype=np.int8))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (site("a", int_ns=None, pinned="int8"), "pinned to 'int8'"),
        (site("a", forbidden={"int8", "float"}), "every label forbidden"),
        (site("a", sensitivity=float("nan")), "nan"),
        (site("a", float_ns=-1), "-1"),
    ],
)
def test_bad_sites_are_refused(node: PlanNode, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Problem((node,))


def test_bad_names_are_refused() -> None:
    with pytest.raises(OptionError, match="'a' twice"):
        Problem((site("a"), site("a")))
    with pytest.raises(OptionError, match="names node 'z'"):
        Problem((site("a"),), (PlanTensor("x", None, ("z",)),))
    with pytest.raises(OptionError, match="tie names node 'z'"):
        Problem((site("a"),), ties=(("a", "z"),))
    with pytest.raises(OptionError, match="conversion costs"):
        Problem((site("a"),), (PlanTensor("x", None, ("a",), quantize_ns=-1),))


def test_an_exploding_site_does_not_eat_the_resolution_of_the_others() -> None:
    energy = Energy(Problem((site("a", sensitivity=1e9), site("b", sensitivity=1e-6))))
    assert energy.total_units(np.array([PLAIN, INTEGER], dtype=np.int8)) > 0


def test_same_problem_same_labels() -> None:
    first = Energy(random_problem(random.Random(3), 40))
    second = Energy(random_problem(random.Random(3), 40))
    assert (first.solve(3, 7) == second.solve(3, 7)).all()
