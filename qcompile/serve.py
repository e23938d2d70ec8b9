"""Requests at a rate, answered by several workers on one session: latency as callers would see it.

Requests arrive at random times whether or not earlier ones are done, and latency counts from the
arrival: a server that falls behind shows it. (A loop that sends the next request when the last is
answered hides just that: G. Tene, "How not to measure latency", 2015.)
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Served", "best_rate", "serve_at"]

STEPS = 7
"""Rates tried by bisection: the best is then known to about 2 %."""


@dataclass(frozen=True)
class Served:
    """What a rate led to.

    Attributes:
        rate: requests a second that arrived.
        served: requests a second that were answered.
        percentile_ms: percentile -> latency from arrival to answer, waiting included.
        kept: whether the limit was kept.
    """

    rate: float
    served: float
    percentile_ms: dict[str, float]
    kept: bool


def serve_at(
    run: Callable[[int], Any],
    rate: float,
    seconds: float,
    concurrency: int,
    *,
    percentile: float = 99.0,
    limit_ms: float = math.inf,
    seed: int = 0,
) -> Served:
    """Let requests arrive at ``rate`` a second for ``seconds``; ``run(i)`` answers the i-th.

    Args:
        run: answers one request; called from ``concurrency`` threads.
        rate: mean arrivals a second, at exponentially distributed distances.
        seconds: how long requests arrive; those waiting at the end are still answered.
        concurrency: requests that are answered at a time.
        percentile: of the limit.
        limit_ms: latency that this percentile may have.
        seed: of the arrival times.
    """
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, max(1, round(rate * seconds)))
    arrivals = np.cumsum(gaps).tolist()
    waiting: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
    latencies: list[float] = []
    start = time.perf_counter()

    def work() -> None:
        while (item := waiting.get()) is not None:
            index, due = item
            run(index)
            latencies.append(time.perf_counter() - due)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(concurrency)]
    for worker in workers:
        worker.start()
    for index, arrival in enumerate(arrivals):
        due = start + arrival
        left = due - time.perf_counter()
        if left > 0:
            time.sleep(left)
        waiting.put((index, due))
    for _ in workers:
        waiting.put(None)
    for worker in workers:
        worker.join()
    whole = time.perf_counter() - start
    found = {f"p{p:g}": float(np.percentile(latencies, p)) * 1e3 for p in (50, 90, 99)}
    found[f"p{percentile:g}"] = float(np.percentile(latencies, percentile)) * 1e3
    kept = found[f"p{percentile:g}"] <= limit_ms
    return Served(rate, len(latencies) / whole, found, kept)


def best_rate(
    run: Callable[[int], Any],
    latency_s: float,
    seconds: float,
    concurrency: int,
    percentile: float,
    limit_ms: float,
    progress: Callable[[float], None] | None = None,
) -> Sequence[Served]:
    """Bisects for the highest rate that keeps the limit; every rate tried, in order.

    Args:
        run: see `serve_at`.
        latency_s: seconds of one request alone, from which the first rates are taken.
        seconds: for all rates together.
        concurrency: requests that are answered at a time.
        percentile: of the limit.
        limit_ms: latency that this percentile may have.
        progress: told the share done.
    """
    low, high = 0.0, 1.1 * concurrency / latency_s
    tried: list[Served] = []
    for step in range(STEPS):
        rate = high / 2 if low == 0.0 and step == 0 else (low + high) / 2
        one = serve_at(
            run,
            rate,
            seconds / STEPS,
            concurrency,
            percentile=percentile,
            limit_ms=limit_ms,
            seed=step,
        )
        tried.append(one)
        low, high = (rate, high) if one.kept else (low, rate)
        if progress is not None:
            progress((step + 1) / STEPS)
    return tried
