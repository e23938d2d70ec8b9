"""Models timed in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from qcompile.enough import Enough

__all__ = ["interleave", "warm"]

BLOCK_S = 0.02
"""One model runs this long before the other's turn: long against a timer's tick and the caches'
warming, short against the drift of a shared machine's speed, which so cancels in the ratio."""

SLOW_S = 0.1
"""From this latency on, a block has no untimed first run: caches are warm after a thousandth of it."""

DEAR = 1 / 6
"""Of the budget: what opening all models once may take for them to be opened anew for each group."""

SHARE = 100
"""Runs of each feed that count for percentiles, where feeds differ in shape."""


def interleave(
    names: Sequence[str],
    open_one: Callable[[str], Callable[[int], Any]],
    *,
    feeds: int,
    together: bool,
    budget_s: float,
    enough: Enough,
    progress: Callable[[float], None],
    again_s: float = 0.0,
    paid_s: float = 0.0,
    settle_s: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Any]:
    """Time models in turns, in groups of rounds with freshly opened sessions.

    Two sessions of one and the same model differ by 1 % (where their memory happens to lie), which
    no number of runs averages out: so the groups are the replicates that an interval is made of.
    In a round every model has one block, in an order that reverses from round to round, so that
    what one leaves behind (warm caches, a raised clock) favours nobody.

    Where opening takes more than `DEAR` of the budget, sessions stay open from group to group: the
    intervals then leave out where memory lies. Opened anew, three groups of a language model took
    twenty seconds, of which its runs were five.

    Args:
        names: models; the first is the base of all ratios.
        open_one: name -> a callable that runs one inference of the feed with the given index.
        feeds: how many feeds there are.
        together: a group takes all feeds (they differ in shape), else one, the next one's turn.
        budget_s: stop after this time, whatever is known by then; fewer than three groups, which
            decide nothing, may take four times as long. The first opening of sessions that stay
            open is not counted.
        enough: says when the ratios are known, and which models need no more time.
        progress: told the share of the budget used, after each group.
        again_s: time for timing everything once more in another way, should the budget leave something
            vague; then this stops once it is seen that the budget will not do. Where opening alone takes
            longer, there is no second time, and this one has all of it.
        paid_s: what opening took of models that stood open before; then all stay so.
        settle_s: pause before another model's turn, and the least length of a turn.
        sleep: pauses.
        clock: nanoseconds.

    Returns:
        per name the nanoseconds of each run (of feeds that differ in shape as many of each, or the
        quick ones would be most), how many there were, and the median of each group; ratios base /
        other. A model that was left out on the way has fewer groups than the others. "again": whether a
        second time is worth its opening.
    """
    base = names[0]
    begin = clock()
    all_ns: dict[str, list[int]] = {name: [] for name in names}
    counts = dict.fromkeys(names, 0)
    medians: dict[str, list[float]] = {name: [] for name in names}
    ratios: dict[str, list[float]] = {name: [] for name in names[1:]}
    groups, opened, stay = 0, 0, False
    again = again_s > 0
    active = list(names)
    runs: dict[str, Callable[[int], Any]] = {}
    expected: dict[tuple[str, int], float] = {}
    while True:
        order = active if groups % 2 == 0 else active[::-1]
        if not stay:
            start = clock()
            runs = {name: open_one(name) for name in order}
            opened = clock() - start
            cost_s = opened / 1e9 + paid_s
            stay = paid_s > 0 or cost_s > DEAR * budget_s
            if stay:
                begin, opened = clock(), 0
                if again and cost_s > again_s:
                    budget_s, again = budget_s + again_s, False
        taken = list(range(feeds)) if together else [groups % feeds]
        logs: dict[str, list[float]] = {name: [] for name in active}
        times: dict[str, list[float]] = {name: [] for name in active}
        if not stay:
            expected.clear()
        for feed in taken:
            for name in order:
                if (key := (name, feed if together else 0)) not in expected:
                    expected[key] = warm(runs[name], feed, clock)
            ns = {name: expected[name, feed if together else 0] for name in order}
            turn_s = max(BLOCK_S, settle_s)
            pause = partial(sleep, settle_s) if settle_s else None
            blocks = _rounds(runs, ns, feed, opened / len(taken), turn_s, pause, clock)
            for name in active:
                each = [float(np.median(block)) for block in blocks[name]]
                times[name].append(float(np.median(each)))
                pairs = zip(blocks[base], blocks[name], strict=True)
                logs[name].append(
                    float(np.median([np.log(np.median(a) / np.median(b)) for a, b in pairs]))
                )
                runs_ns = [ns for block in blocks[name] for ns in block]
                counts[name] += len(runs_ns)
                all_ns[name].extend(_equal_share(runs_ns) if together else runs_ns)
        groups += 1
        for name in active:
            medians[name].append(float(np.mean(times[name])))
        for name in active[1:]:
            ratios[name].append(float(np.exp(np.mean(logs[name]))))
        elapsed = (clock() - begin) / 1e9
        progress(min(1.0, elapsed / budget_s))
        behind = enough.behind(ratios)
        active = [name for name in active if name not in behind]
        runs = {name: runs[name] for name in active} if stay else {}
        open_ratios = {name: ratios[name] for name in active[1:]}
        over = elapsed >= budget_s and (groups >= 3 or elapsed >= 4 * budget_s)
        hopeless = again and enough.hopeless(open_ratios, elapsed, budget_s)
        if over or hopeless or (ratios and enough.known(open_ratios)):
            break
    return {
        "runs_ns": all_ns,
        "runs": counts,
        "group_ns": medians,
        "ratios": ratios,
        "groups": groups,
        "seconds": (clock() - begin) / 1e9,
        "again": again,
    }


def _equal_share(runs_ns: Sequence[int]) -> list[int]:
    """``SHARE`` values that are spread as the runs are, however many those were."""
    at = (np.arange(SHARE) + 0.5) / SHARE
    return [round(ns) for ns in np.quantile(runs_ns, at).tolist()]


def _rounds(
    runs: Mapping[str, Callable[[int], Any]],
    expected: Mapping[str, float],
    feed: int,
    opened_ns: float,
    turn_s: float,
    pause: Callable[[], None] | None,
    clock: Callable[[], int],
) -> dict[str, list[list[int]]]:
    """Blocks of runs by name: as many rounds as take about the time that opening took.

    ``expected`` has the nanoseconds of a run by name, in the order of the first round.
    """
    order = list(expected)
    counts = {n: max(1, min(2000, round(turn_s * 1e9 / ns))) for n, ns in expected.items()}
    one_round = sum(counts[name] * expected[name] for name in order)
    blocks: dict[str, list[list[int]]] = {name: [] for name in order}
    last = ""
    for index in range(max(2, min(12, round(max(opened_ns, 1e8) / one_round)))):
        for name in order if index % 2 == 0 else reversed(order):
            run, block = runs[name], []
            if pause is not None and name != last:
                pause()
            last = name
            if expected[name] < SLOW_S * 1e9:
                run(feed)
            for _ in range(counts[name]):
                start = clock()
                run(feed)
                block.append(max(1, clock() - start))
            blocks[name].append(block)
    return blocks


def warm(run: Callable[[int], Any], feed: int, clock: Callable[[], int]) -> float:
    """Nanoseconds of a warm run; runs once, and on for 20 ms if that is quick."""
    run(feed)
    times: list[int] = []
    while sum(times) < 2e7 and len(times) < 100:
        start = clock()
        run(feed)
        times.append(max(1, clock() - start))
    return float(np.median(times))
