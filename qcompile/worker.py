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

from qcompile.backends.ort import Session, open_session
from qcompile.interval import median_interval
from qcompile.ir.errors import QCompileError

BLOCK_S = 0.02
"""One model runs this long before the other's turn: long against a timer's tick and the caches'
warming, short against the drift of a shared machine's speed, which so cancels in the ratio."""

SLOW_S = 0.1
"""From this latency on, a block has no untimed first run: caches are warm after a thousandth of it."""

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
        kinds = {"load": _load, "time": _time}
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
    runs: dict[str, Callable[[int], Any]] = {}
    for name, path in job["models"].items():
        try:
            session = _open(job, path)
            for feed in feeds:
                session.run(feed)
        except QCompileError as e:
            e.model = name  # type: ignore[attr-defined]
            raise
        runs[name] = _runner(session, feeds)
    gc.collect()
    gc.disable()
    found = interleave(
        runs,
        feeds=len(feeds),
        budget_s=job["budget_s"],
        half_width=job["half_width"],
        progress=lambda share: emit({"progress": share, "of": 1.0}),
    )
    # a fast model has 100,000 runs: the parent needs only their percentiles
    for name, each in found.pop("runs_ns").items():
        found["latency_ms"] = found.get("latency_ms", {})
        found["latency_ms"][name] = [float(v) / 1e6 for v in np.percentile(each, (50, 90, 99))]
        found["runs"] = {**found.get("runs", {}), name: len(each)}
    return found


def _runner(session: Session, feeds: Sequence[dict[str, Any]]) -> Callable[[int], Any]:
    run = session.raw.run
    return lambda index: run(None, feeds[index])


def interleave(
    runs: Mapping[str, Callable[[int], Any]],
    *,
    feeds: int,
    budget_s: float,
    half_width: float,
    progress: Callable[[float], None],
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Any]:
    """Time callables in turns; the first is the base of all ratios.

    Each round takes one feed and gives every callable one block, in an order that reverses from
    round to round, so that what one leaves behind (warm caches, a raised clock) favours nobody.

    Args:
        runs: name -> callable that runs one inference of the feed with the given index.
        feeds: how many feeds there are.
        budget_s: stop after this time, whatever is known by then (never before one round).
        half_width: stop when each ratio is known this closely (0.02 is +-2 %).
        progress: told the share of the budget used, after each round.
        clock: nanoseconds.

    Returns:
        per name the nanoseconds of each run and the median of each round; ratios base / other.
    """
    names = list(runs)
    base = names[0]
    begin = clock()
    estimate = {name: _estimate(runs[name], clock) for name in names}
    all_ns: dict[str, list[int]] = {name: [] for name in names}
    medians: dict[str, list[float]] = {name: [] for name in names}
    ratios: dict[str, list[float]] = {name: [] for name in names if name != base}
    rounds = 0
    while True:
        feed = rounds % feeds
        for name in names if rounds % 2 == 0 else reversed(names):
            run, expected = runs[name], estimate[name]
            if expected < SLOW_S * 1e9:
                run(feed)
            block = []
            for _ in range(max(1, min(2000, round(BLOCK_S * 1e9 / expected)))):
                start = clock()
                run(feed)
                block.append(clock() - start)
            all_ns[name].extend(block)
            medians[name].append(float(np.median(block)))
        rounds += 1
        for name, values in ratios.items():
            values.append(medians[base][-1] / max(medians[name][-1], 1.0))
        elapsed = (clock() - begin) / 1e9
        progress(min(1.0, elapsed / budget_s))
        # neighbouring rounds share their disturbances, so a narrow interval of few is luck
        known = (
            rounds >= max(12, feeds)
            and elapsed >= min(0.5, budget_s / 2)
            and all(median_interval(values).half_width <= half_width for values in ratios.values())
        )
        if elapsed >= budget_s or (known and ratios):
            break
    return {
        "runs_ns": all_ns,
        "round_ns": medians,
        "ratios": ratios,
        "rounds": rounds,
        "seconds": (clock() - begin) / 1e9,
    }


def _estimate(run: Callable[[int], Any], clock: Callable[[], int]) -> float:
    """Nanoseconds of one warm run; runs for 50 ms or three times."""
    times: list[int] = []
    while len(times) < 3 or (sum(times) < 5e7 and len(times) < 500):
        start = clock()
        run(0)
        times.append(clock() - start)
        if times[-1] > 5e8:
            break
    return max(1.0, float(np.median(times)))


if __name__ == "__main__":
    sys.exit(main())
