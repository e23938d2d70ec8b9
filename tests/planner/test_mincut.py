"""Cuts against networkx, beyond int32 too."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.planner.mincut import LIMIT, Cut, minimum_cut


def reference(vertices: int, arcs: list[tuple[int, int, int]]) -> tuple[int, list[bool]]:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(vertices))
    for tail, head, capacity in arcs:
        if tail != head:
            before = graph.get_edge_data(tail, head, {"capacity": 0})["capacity"]
            graph.add_edge(tail, head, capacity=before + capacity)
    flow = nx.algorithms.flow.preflow_push(graph, 0, 1)
    reached = {0}
    stack = [0]
    while stack:
        for vertex, arc in flow[stack.pop()].items():
            if vertex not in reached and arc["capacity"] > arc["flow"]:
                reached.add(vertex)
                stack.append(vertex)
    return flow.graph["flow_value"], [v in reached for v in range(vertices)]


def arcs_of(largest: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    vertex = st.integers(0, 6)
    return st.lists(st.tuples(vertex, vertex, st.integers(0, largest)), max_size=24)


def solve(vertices: int, arcs: list[tuple[int, int, int]]) -> Cut:
    table = np.array(arcs, dtype=np.int64).reshape(-1, 3)
    return minimum_cut(vertices, table[:, 0], table[:, 1], table[:, 2], source=0, sink=1)


@given(arcs_of(9))
@settings(max_examples=150, deadline=None)
def test_value_and_smallest_source_side_match_networkx(arcs: list[tuple[int, int, int]]) -> None:
    cut = solve(7, arcs)
    assert (cut.value, cut.source_side.tolist()) == reference(7, arcs)


@given(arcs_of(1 << 56))
@settings(max_examples=150, deadline=None)
def test_capacities_beyond_int32_stay_exact(arcs: list[tuple[int, int, int]]) -> None:
    cut = solve(7, arcs)
    assert (cut.value, cut.source_side.tolist()) == reference(7, arcs)


def test_mixed_magnitudes_stay_exact() -> None:
    """One unit decides beside capacities of 2**50: no rounding to float or int32 survives this."""
    big = 1 << 50
    cut = solve(4, [(0, 2, big + 1), (2, 3, big), (3, 1, big + 1), (2, 1, 2), (0, 3, 1)])
    assert cut.value == big + 2
    assert solve(3, [(0, 2, big), (2, 1, big + 1)]).source_side.tolist() == [True, False, False]


def test_ties_go_to_the_sink_side() -> None:
    assert solve(3, [(0, 2, 5), (2, 1, 5)]).source_side.tolist() == [True, False, False]


def test_no_arcs() -> None:
    cut = solve(3, [])
    assert cut.value == 0
    assert cut.source_side.tolist() == [True, False, False]


@pytest.mark.parametrize("capacity", [-1, LIMIT])
def test_capacities_that_cannot_be_held_are_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacities"):
        solve(2, [(0, 1, capacity)])
