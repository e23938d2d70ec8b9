"""Order within rows, and places: what makes a layered drawing readable."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["assign", "order_rows"]

SWEEPS = 6
ALIGNMENTS = 6

Edge = tuple[int, int]


def order_rows(rows: list[list[int]], links: Sequence[Edge]) -> None:
    """Sort each row in place by the mean position of neighbours, down and up in turns.

    Args:
        rows: items of each row.
        links: between items of neighbouring rows.
    """
    above, below = _neighbours(rows, links)
    position: dict[int, float] = {}
    for line in rows:
        _number(line, position)
    best, kept = _crossings(rows, below, position), [list(line) for line in rows]
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for line in rows if down else reversed(rows):
            near = above if down else below
            keys = {
                i: sum(position[k] for k in near[i]) / len(near[i]) if near[i] else position[i]
                for i in line
            }
            line.sort(key=lambda i: (keys[i], position[i]))
            _number(line, position)
        found = _crossings(rows, below, position)
        if found < best:
            best, kept = found, [list(line) for line in rows]
    for line, order in zip(rows, kept, strict=True):
        line[:] = order


def _number(line: Sequence[int], position: dict[int, float]) -> None:
    for at, item in enumerate(line):
        # centred, so that rows of different lengths agree on where the middle is
        position[item] = at - (len(line) - 1) / 2


def _neighbours(
    rows: Sequence[Sequence[int]], links: Sequence[Edge]
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = {i: [] for line in rows for i in line}
    below: dict[int, list[int]] = {i: [] for line in rows for i in line}
    for a, b in links:
        above[b].append(a)
        below[a].append(b)
    return above, below


def _crossings(
    rows: Sequence[Sequence[int]], below: dict[int, list[int]], position: dict[int, float]
) -> int:
    """Crossings between neighbouring rows: inversions of the lower ends, taken in upper order."""
    total = 0
    for line in rows:
        ends = [p for i in line for p in sorted(position[k] for k in below[i])]
        if len(ends) > 1:
            total += _inversions(ends)[1]
    return total


def _inversions(values: list[float]) -> tuple[list[float], int]:
    if len(values) < 2:
        return values, 0
    middle = len(values) // 2
    left, a = _inversions(values[:middle])
    right, b = _inversions(values[middle:])
    merged: list[float] = []
    count, at = a + b, 0
    for value in right:
        while at < len(left) and left[at] <= value:
            merged.append(left[at])
            at += 1
        count += len(left) - at
        merged.append(value)
    return merged + left[at:], count


def assign(
    rows: Sequence[Sequence[int]],
    links: Sequence[Edge],
    widths: Sequence[float],
    gap: float,
    nodes: int,
) -> list[float]:
    """Centre of each item: near its neighbours' mean, in the rows' order, at least ``gap`` apart.

    Items from ``nodes`` on are stops of edges; links between two of them pull hard, so that long
    edges run straight.
    """
    above, below = _neighbours(rows, links)
    centre = [0.0] * len(widths)
    for line in rows:
        place = -sum(widths[i] + gap for i in line) / 2
        for i in line:
            centre[i] = place + widths[i] / 2
            place += widths[i] + gap
    for sweep in range(ALIGNMENTS):
        down = sweep % 2 == 0
        last = sweep >= ALIGNMENTS - 2
        for line in rows if down else reversed(rows):
            wanted, weights = [], []
            for i in line:
                near = above[i] + below[i] if last else above[i] if down else below[i]
                pull = [(centre[k], 4.0 if i >= nodes and k >= nodes else 1.0) for k in near]
                weight = sum(w for _, w in pull)
                wanted.append(sum(c * w for c, w in pull) / weight if pull else centre[i])
                weights.append(max(weight, 0.1))
            for i, place in zip(line, _apart(line, wanted, weights, widths, gap), strict=True):
                centre[i] = place
    return centre


def _apart(
    line: Sequence[int],
    wanted: Sequence[float],
    weights: Sequence[float],
    widths: Sequence[float],
    gap: float,
) -> list[float]:
    """Least-squares places in this order without overlap: isotonic regression, pooling violators."""
    offsets, offset = [], 0.0
    for index, item in enumerate(line):
        if index:
            offset += (widths[line[index - 1]] + widths[item]) / 2 + gap
        offsets.append(offset)
    blocks: list[list[float]] = []
    for want, weight, at in zip(wanted, weights, offsets, strict=True):
        blocks.append([want - at, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, heavy, count = blocks.pop()
            before = blocks[-1]
            joined = before[1] + heavy
            before[0] = (before[0] * before[1] + value * heavy) / joined
            before[1], before[2] = joined, before[2] + count
    places: list[float] = []
    for value, _, count in blocks:
        places += [value] * int(count)
    return [p + at for p, at in zip(places, offsets, strict=True)]
