"""The child process that measures: ``python -m qcompile.worker``, a job on stdin, JSON lines on stdout.

Its own process, so that thread counts, load time and memory are a deployed model's, and so that a
model that crashes the runtime takes only the child with it. Imports little for the same reason.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.backends.ort import CPU, Session, open_session, runtime_version
from qcompile.enough import Enough
from qcompile.ir.errors import QCompileError

BLOCK_S = 0.02
"""One model runs this long before the other's turn: long against a timer's tick and the caches'
warming, short against the drift of a shared machine's speed, which so cancels in the ratio."""

SLOW_S = 0.1
"""From this latency on, a block has no untimed first run: caches are warm after a thousandth of it."""

SHARE = 100
"""Runs of each feed that count for percentiles, where feeds differ in shape."""

Emit = Callable[[Mapping[str, Any]], None]


def main() -> int:
    """Do the job read from stdin; every reply is one JSON line, the last has "result" or "error"."""
    # libraries may print on stdout; the protocol keeps the real one for itself
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def emit(message: Mapping[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    job: dict[str, Any] = json.loads(sys.stdin.readline())
    try:
        kinds = {"load": _load, "time": _time, "serve": _serve}
        emit({"result": kinds[job["kind"]](job, emit)})
    except QCompileError as e:
        emit({"error": str(e), "model": getattr(e, "model", None)})
    except MemoryError:
        emit({"error": "not enough memory", "model": None})
    return 0


def _open(job: Mapping[str, Any], path: str) -> Session:
    return open_session(
        Path(path),
        threads=job["threads"],
        spinning=job["spinning"],
        custom_ops=job["custom_ops"],
        provider=job.get("provider", CPU),
        config=job.get("config"),
    )


def _feeds(paths: Sequence[str]) -> list[dict[str, Any]]:
    feeds = []
    for path in paths:
        with np.load(path, allow_pickle=False) as stored:
            feeds.append({name: stored[name] for name in stored.files})
    return feeds


def _load(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Load time, first inference and memory of one model; then each feed once, with its error."""
    import psutil

    feeds = _feeds(job["feeds"])
    runtime_version()  # imports the runtime, which is no cost of the model
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    start = time.perf_counter()
    session = _open(job, job["model"])
    loaded = time.perf_counter()
    errors: list[str | None] = []
    first_ms, memory = None, process.memory_info().rss - before
    for index, feed in enumerate(feeds):
        begin = time.perf_counter()
        try:
            session.run(feed)
        except QCompileError as e:
            errors.append(str(e))
        else:
            errors.append(None)
            if first_ms is None:
                first_ms = (time.perf_counter() - begin) * 1e3
                memory = process.memory_info().rss - before
        emit({"progress": index + 1, "of": len(feeds)})
    return {
        "load_ms": (loaded - start) * 1e3,
        "first_ms": first_ms,
        "memory_bytes": max(0, memory),
        "errors": errors,
    }


def _time(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Time all models interleaved until every ratio to the first is known closely or time is up."""
    feeds = _feeds(job["feeds"])

    def open_one(name: str) -> Callable[[int], Any]:
        try:
            session = _open(job, job["models"][name])
            own = [session.given(feed) for feed in feeds]
            session.run_raw(own[0])
        except QCompileError as e:
            e.model = name  # type: ignore[attr-defined]
            raise
        run = session.raw.run
        return lambda index: run(None, own[index])

    gc.collect()
    gc.disable()
    found = interleave(
        list(job["models"]),
        open_one,
        feeds=len(feeds),
        together=job["together"],
        budget_s=job["budget_s"],
        enough=Enough(**job["enough"]),
        give_up=job["give_up"],
        progress=lambda share: emit({"progress": share, "of": 1.0}),
    )
    # a fast model has 100,000 runs: the parent needs only their percentiles
    runs = found.pop("runs_ns")
    return {
        **found,
        "latency_ms": {
            name: [float(v) / 1e6 for v in np.percentile(each, (50, 90, 99))]
            for name, each in runs.items()
        },
    }


def _serve(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Energy and throughput of one model: a plain loop, then requests at a rate, if a limit is given."""
    from dataclasses import asdict

    from qcompile.energy_meter import metered
    from qcompile.serve import best_rate

    feeds = _feeds(job["feeds"])
    session = _open(job, job["model"])
    feeds = [session.given(feed) for feed in feeds]

    def run(index: int) -> Any:
        return session.raw.run(None, feeds[index % len(feeds)])

    alone = _warm(run, 0, time.perf_counter_ns) / 1e9
    share = 0.3 if job["limit_ms"] is not None else 1.0
    count = max(1, round(job["seconds"] * share / alone))
    with metered() as energy:
        start = time.perf_counter()
        for index in range(count):
            run(index)
        spent = time.perf_counter() - start
    emit({"progress": share, "of": 1.0})
    tried = []
    if job["limit_ms"] is not None:
        tried = [
            asdict(one)
            for one in best_rate(
                run,
                alone,
                job["seconds"] * (1 - share),
                job["concurrency"],
                job["percentile"],
                job["limit_ms"],
                lambda done: emit({"progress": share + (1 - share) * done, "of": 1.0}),
            )
        ]
    return {"count": count, "seconds": spent, "energy": asdict(energy), "tried": tried}


def interleave(
    names: Sequence[str],
    open_one: Callable[[str], Callable[[int], Any]],
    *,
    feeds: int,
    together: bool,
    budget_s: float,
    enough: Enough,
    progress: Callable[[float], None],
    give_up: bool = False,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Any]:
    """Time models in turns, in groups of rounds with freshly opened sessions.

    Two sessions of one and the same model differ by 1 % (where their memory happens to lie), which
    no number of runs averages out: so the groups are the replicates that an interval is made of.
    In a round every model has one block, in an order that reverses from round to round, so that
    what one leaves behind (warm caches, a raised clock) favours nobody.

    Args:
        names: models; the first is the base of all ratios.
        open_one: name -> a callable that runs one inference of the feed with the given index.
        feeds: how many feeds there are.
        together: a group takes all feeds (they differ in shape), else one, the next one's turn.
        budget_s: stop after this time, whatever is known by then; fewer than three groups, which
            decide nothing, may take four times as long.
        enough: says when the ratios are known, and which models need no more time.
        progress: told the share of the budget used, after each group.
        give_up: stop once it is seen that the budget will not do.
        clock: nanoseconds.

    Returns:
        per name the nanoseconds of each run (of feeds that differ in shape as many of each, or the
        quick ones would be most), how many there were, and the median of each group; ratios base /
        other. A model that was left out on the way has fewer groups than the others.
    """
    base = names[0]
    begin = clock()
    all_ns: dict[str, list[int]] = {name: [] for name in names}
    counts = dict.fromkeys(names, 0)
    medians: dict[str, list[float]] = {name: [] for name in names}
    ratios: dict[str, list[float]] = {name: [] for name in names[1:]}
    groups = 0
    active = list(names)
    while True:
        order = active if groups % 2 == 0 else active[::-1]
        start = clock()
        runs = {name: open_one(name) for name in order}
        opened = clock() - start
        taken = list(range(feeds)) if together else [groups % feeds]
        logs: dict[str, list[float]] = {name: [] for name in active}
        times: dict[str, list[float]] = {name: [] for name in active}
        for feed in taken:
            blocks = _rounds(runs, order, feed, opened / len(taken), clock)
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
        runs.clear()
        groups += 1
        for name in active:
            medians[name].append(float(np.mean(times[name])))
        for name in active[1:]:
            ratios[name].append(float(np.exp(np.mean(logs[name]))))
        elapsed = (clock() - begin) / 1e9
        progress(min(1.0, elapsed / budget_s))
        behind = enough.behind(ratios)
        active = [name for name in active if name not in behind]
        open_ratios = {name: ratios[name] for name in active[1:]}
        over = elapsed >= budget_s and (groups >= 3 or elapsed >= 4 * budget_s)
        hopeless = give_up and enough.hopeless(open_ratios, elapsed, budget_s)
        if over or hopeless or (ratios and enough.known(open_ratios)):
            break
    return {
        "runs_ns": all_ns,
        "runs": counts,
        "group_ns": medians,
        "ratios": ratios,
        "groups": groups,
        "seconds": (clock() - begin) / 1e9,
    }


def _equal_share(runs_ns: Sequence[int]) -> list[int]:
    """``SHARE`` values that are spread as the runs are, however many those were."""
    at = (np.arange(SHARE) + 0.5) / SHARE
    return [round(ns) for ns in np.quantile(runs_ns, at).tolist()]


def _rounds(
    runs: Mapping[str, Callable[[int], Any]],
    order: Sequence[str],
    feed: int,
    opened_ns: float,
    clock: Callable[[], int],
) -> dict[str, list[list[int]]]:
    """Blocks of runs by name: as many rounds as take about the time that opening took."""
    expected = {name: _warm(runs[name], feed, clock) for name in order}
    counts = {n: max(1, min(2000, round(BLOCK_S * 1e9 / ns))) for n, ns in expected.items()}
    one_round = sum(counts[name] * expected[name] for name in order)
    blocks: dict[str, list[list[int]]] = {name: [] for name in order}
    for index in range(max(2, min(12, round(max(opened_ns, 1e8) / one_round)))):
        for name in order if index % 2 == 0 else reversed(order):
            run, block = runs[name], []
            if expected[name] < SLOW_S * 1e9:
                run(feed)
            for _ in range(counts[name]):
                start = clock()
                run(feed)
                block.append(max(1, clock() - start))
            blocks[name].append(block)
    return blocks


def _warm(run: Callable[[int], Any], feed: int, clock: Callable[[], int]) -> float:
    """Nanoseconds of a warm run; runs once, and on for 20 ms if that is quick."""
    run(feed)
    times: list[int] = []
    while sum(times) < 2e7 and len(times) < 100:
        start = clock()
        run(feed)
        times.append(max(1, clock() - start))
    return float(np.median(times))


if __name__ == "__main__":
    sys.exit(main())
