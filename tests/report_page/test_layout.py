"""Places of nodes: nothing overlaps, edges go down, the same graph gives the same drawing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.report_page.layout import LONGEST, lay_out
from qcompile.report_page.places import assign, order_rows

Size = tuple[float, float]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Size], list[tuple[int, int]]]:
    count = draw(st.integers(1, 40))
    side = st.integers(20, 200)
    sizes = [(float(draw(side)), float(draw(side))) for _ in range(count)]
    ends = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    edges = draw(st.sets(ends.filter(lambda e: e[0] < e[1]), max_size=2 * count))
    return sizes, sorted(edges)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_nodes_do_not_overlap(graph: tuple[list[Size], list[tuple[int, int]]]) -> None:
    sizes, edges = graph
    found = lay_out(sizes, edges)
    spots = list(zip(found.centres, sizes, strict=True))
    for i, ((ax, ay), (aw, ah)) in enumerate(spots):
        assert aw / 2 - 1e-6 <= ax <= found.width - aw / 2 + 1e-6
        assert ah / 2 - 1e-6 <= ay <= found.height - ah / 2 + 1e-6
        for (bx, by), (bw, bh) in spots[i + 1 :]:
            beside = abs(ax - bx) >= (aw + bw) / 2 - 1e-6
            assert beside or abs(ay - by) >= (ah + bh) / 2 - 1e-6
    assert lay_out(sizes, edges) == found


def test_a_chain_is_straight_and_goes_down() -> None:
    found = lay_out([(80.0, 20.0)] * 5, [(i, i + 1) for i in range(4)])
    assert {x for x, _ in found.centres} == {40.0}
    assert all(a[1] < b[1] for a, b in pairwise(found.centres))


def test_a_deep_network_is_folded_into_columns() -> None:
    count = 200
    found = lay_out([(80.0, 20.0)] * count, [(i, i + 1) for i in range(count - 1)])
    assert len({x for x, _ in found.centres}) > 4
    assert 0.8 < found.width / found.height < 4


def test_a_route_leaves_below_and_arrives_above() -> None:
    sizes = [(80.0, 20.0)] * 4
    found = lay_out(sizes, [(0, 1), (1, 2), (2, 3), (0, 3)])
    route = found.routes[3]
    assert route is not None
    assert route[0] == (found.centres[0][0], found.centres[0][1] + 10.0)
    assert route[-1] == (found.centres[3][0], found.centres[3][1] - 10.0)
    # past the nodes between, not through them
    assert all(abs(x - found.centres[1][0]) > 40.0 for x, _ in route[1:-1])


def test_an_edge_past_very_many_rows_has_no_route() -> None:
    count = LONGEST + 10
    chain = [(i, i + 1) for i in range(count - 1)]
    found = lay_out([(80.0, 20.0)] * count, [(0, count - 1), *chain])
    assert found.routes[0] is None
    assert all(route is not None for route in found.routes[1:])


def test_what_has_no_producer_stands_by_its_reader() -> None:
    # 3 is read by 4 alone: it belongs beside 2, not at the top
    found = lay_out([(80.0, 20.0)] * 5, [(0, 1), (1, 2), (2, 4), (3, 4)])
    assert found.centres[3][1] == found.centres[2][1]


def test_no_nodes() -> None:
    assert lay_out([], []).centres == []


def test_sweeps_undo_a_crossing() -> None:
    rows = [[0, 1], [2, 3]]
    order_rows(rows, [(0, 3), (1, 2)])
    assert rows in ([[0, 1], [3, 2]], [[1, 0], [2, 3]])


def test_places_are_the_least_squares_ones() -> None:
    # both want to be above the one node below; they share the way
    rows = [[0, 1], [2]]
    found = assign(rows, [(0, 2), (1, 2)], [10.0, 10.0, 10.0], 2.0, 3)
    assert found[1] - found[0] == pytest.approx(12.0)
    assert (found[0] + found[1]) / 2 == pytest.approx(found[2])
