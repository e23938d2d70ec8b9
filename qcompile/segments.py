"""Where a graph can be cut so that each part's weights are few and little lives between the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["cut_points"]


def cut_points(
    reads: Sequence[Sequence[str]],
    writes: Sequence[Sequence[str]],
    sizes: Mapping[str, int],
    limit: int,
    outputs: Sequence[str] = (),
) -> list[int]:
    """Positions behind which a part ends, the last of them the end of the graph.

    A part's constants have at most ``limit`` bytes together, unless one node alone has more. Among the
    cuts that a limit leaves, the one with the fewest living tensors is taken, the later of equal ones:
    in a stack of blocks that is the residual stream between two blocks.

    Args:
        reads: names that each node reads, in order.
        writes: names that each node writes.
        sizes: bytes of each constant.
        limit: bytes.
        outputs: names that live to the end.

    >>> cut_points([["x", "v"], ["y", "w"], ["y", "z"]], [["y"], ["z"], ["o"]], {"v": 4, "w": 4}, 4)
    [1, 3]
    """
    count = len(reads)
    alive = _alive(reads, writes, sizes, outputs)
    found: list[int] = []
    start = 0
    while start < count:
        end, held, seen = start, 0, set[str]()
        while end < count:
            new = {n for n in reads[end] if n in sizes and n not in seen}
            more = sum(sizes[n] for n in new)
            if end > start and held + more > limit:
                break
            held += more
            seen |= new
            end += 1
        if end < count:
            first = start + max(1, (end - start) // 2)
            end = min(range(first, end + 1), key=lambda i: (alive[i], -i))
        found.append(end)
        start = end
    return found


def _alive(
    reads: Sequence[Sequence[str]],
    writes: Sequence[Sequence[str]],
    sizes: Mapping[str, int],
    outputs: Sequence[str],
) -> list[int]:
    """At each position, how many tensors were written before it and are read from it on."""
    count = len(reads)
    last = {name: i for i, names in enumerate(reads) for name in names if name not in sizes}
    last |= dict.fromkeys(outputs, count)
    change = [0] * (count + 2)
    for i, names in enumerate(writes):
        for name in names:
            if last.get(name, -1) > i:
                change[i + 1] += 1
                change[last[name] + 1] -= 1
    alive, total = [], 0
    for i in range(count + 1):
        total += change[i]
        alive.append(total)
    return alive
