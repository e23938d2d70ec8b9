"""Where the nodes of a graph stand when it is drawn: rows by depth, few crossings, folded into columns.

The steps of Sugiyama, Tagawa and Toda (1981), "Methods for visual understanding of hierarchical
system structures": rows by longest path, a stop in every row that an edge passes, order by medians of
neighbours, then places that are the least-squares best for that order. A deep network is one long
strip, so the rows are folded into columns at places where few edges cross. Nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from qcompile.report_page.places import assign, order_rows

__all__ = ["Layout", "lay_out"]

LONGEST = 48
"""An edge that spans more rows than this is not routed: it is drawn only for a selected node."""

STOPS = 24_000
"""Stops of all edges together, so that a page of 5,000 nodes stays small; longer edges give up first."""

STOP_WIDTH = 10.0
GAP_X, GAP_Y = 18.0, 30.0
GUTTER = 60.0
ASPECT = 1.4
"""Width to height that the folded drawing aims at."""

LEAST_ROWS, MOST_COLUMNS = 6, 64

Edge = tuple[int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Centres of the nodes, a route for each edge (None for those not routed), and the whole size."""

    centres: list[Point]
    routes: list[list[Point] | None]
    width: float
    height: float


@dataclass
class _Rows:
    """Nodes and stops by row; items from ``count`` on are stops."""

    count: int
    row: list[int]
    items: list[list[int]] = field(default_factory=list)
    links: list[Edge] = field(default_factory=list)
    stops: list[list[int] | None] = field(default_factory=list)


def lay_out(sizes: Sequence[tuple[float, float]], edges: Sequence[Edge]) -> Layout:
    """Place nodes of the given widths and heights; edges go from a lower index to a higher one.

    >>> found = lay_out([(10, 10), (10, 10)], [(0, 1)])
    >>> found.centres[0][1] < found.centres[1][1]
    True
    """
    if not sizes:
        return Layout([], [], 0.0, 0.0)
    rows = _rows(len(sizes), edges)
    widths = [w for w, _ in sizes] + [STOP_WIDTH] * (len(rows.row) - len(sizes))
    order_rows(rows.items, rows.links)
    places = assign(rows.items, rows.links, widths, GAP_X, rows.count)
    return _fold(rows, sizes, edges, widths, places)


def _depths(count: int, edges: Sequence[Edge]) -> list[int]:
    """Longest path from a source; what has no producer stands just before its first reader."""
    depth = [0] * count
    into: list[list[int]] = [[] for _ in range(count)]
    out: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        into[b].append(a)
        out[a].append(b)
    for node in range(count):
        depth[node] = max((depth[a] + 1 for a in into[node]), default=0)
    for node in range(count - 1, -1, -1):
        if not into[node] and out[node]:
            depth[node] = min(depth[b] for b in out[node]) - 1
    return depth


def _rows(count: int, edges: Sequence[Edge]) -> _Rows:
    depth = _depths(count, edges)
    spans = sorted(depth[b] - depth[a] - 1 for a, b in edges)
    longest, used = 0, 0
    for span in spans:
        used += span
        if used > STOPS or span > LONGEST:
            break
        longest = span
    rows = _Rows(count, list(depth), [[] for _ in range(max(depth) + 1)])
    for node in range(count):
        rows.items[depth[node]].append(node)
    for a, b in edges:
        if depth[b] - depth[a] - 1 > longest:
            rows.stops.append(None)
            continue
        chain = []
        for level in range(depth[a] + 1, depth[b]):
            chain.append(len(rows.row))
            rows.items[level].append(len(rows.row))
            rows.row.append(level)
        rows.stops.append(chain)
        path = [a, *chain, b]
        rows.links += list(pairwise(path))
    return rows


def _columns(rows: _Rows, high: Sequence[float], reach: Sequence[Point]) -> list[int]:
    """First rows of the columns: as many columns as bring the drawing nearest to its aspect.

    Args:
        rows: what stands in each row.
        high: height of each row.
        reach: left and right end of each row.
    """
    total = len(rows.items)
    crossing = [0] * total
    for a, _ in rows.links:
        crossing[rows.row[a]] += 1
    best, least = [0], math.inf
    for columns in range(1, min(MOST_COLUMNS, max(1, total // LEAST_ROWS)) + 1):
        starts = _breaks(total, columns, crossing)
        width, height = 0.0, 0.0
        for start, end in pairwise([*starts, total]):
            inside = reach[start:end]
            width += max(far for _, far in inside) - min(low for low, _ in inside) + GUTTER
            height = max(height, sum(high[start:end]) + GAP_Y * (end - start))
        off = abs(math.log(width / height / ASPECT))
        if off < least:
            best, least = starts, off
    return best


def _breaks(total: int, columns: int, crossing: Sequence[int]) -> list[int]:
    """Cuts into about equal columns, each where few edges cross."""
    each = total / columns
    starts = [0]
    for k in range(1, columns):
        ideal = round(k * each)
        reach = max(1, int(each * 0.25))
        near = range(max(starts[-1] + 2, ideal - reach), min(total - 1, ideal + reach) + 1)
        if near:
            starts.append(min(near, key=lambda r: (crossing[r - 1], abs(r - ideal), r)))
    return starts


def _fold(
    rows: _Rows,
    sizes: Sequence[tuple[float, float]],
    edges: Sequence[Edge],
    widths: Sequence[float],
    places: Sequence[float],
) -> Layout:
    high = [max([sizes[i][1] for i in line if i < rows.count], default=8.0) for line in rows.items]
    reach = [
        (min(places[i] - widths[i] / 2 for i in line), max(places[i] + widths[i] / 2 for i in line))
        for line in rows.items
    ]
    starts = _columns(rows, high, reach)
    ends = [*starts[1:], len(rows.items)]
    shift, centre_y = [0.0] * len(rows.items), [0.0] * len(rows.items)
    column = [0] * len(rows.items)
    left, height, gutters = 0.0, 0.0, []
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        low = min(low for low, _ in reach[start:end])
        far = max(far for _, far in reach[start:end])
        y = 0.0
        for level in range(start, end):
            shift[level], column[level] = left - low, index
            centre_y[level] = y + high[level] / 2
            y += high[level] + GAP_Y
        height = max(height, y - GAP_Y)
        gutters.append(left + far - low + GUTTER / 2)
        left += far - low + GUTTER
    spots = [(places[i] + shift[r], centre_y[r]) for i, r in enumerate(rows.row)]
    routes: list[list[Point] | None] = []
    for (a, b), stops in zip(edges, rows.stops, strict=True):
        if stops is None:
            routes.append(None)
            continue
        path = [a, *stops, b]
        points: list[Point] = []
        for here, there in pairwise(path):
            points.append(_end(spots[here], sizes, here, 0.5))
            if column[rows.row[here]] != column[rows.row[there]]:
                at = gutters[column[rows.row[here]]]
                low_y = spots[here][1] + high[rows.row[here]] / 2 + GAP_Y / 2
                points += [(spots[here][0], low_y), (at, low_y), (at, -GAP_Y / 2)]
                points.append((spots[there][0], -GAP_Y / 2))
        points.append(_end(spots[b], sizes, b, -0.5))
        routes.append(points)
    return Layout(spots[: rows.count], routes, max(0.0, left - GUTTER), height)


def _end(spot: Point, sizes: Sequence[tuple[float, float]], item: int, side: float) -> Point:
    """The middle of a node's lower (0.5) or upper (-0.5) side; a stop is a point."""
    return spot if item >= len(sizes) else (spot[0], spot[1] + side * sizes[item][1])
