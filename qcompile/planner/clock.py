"""What the planner takes from the clock: of one typical feed, latencies as an idle machine has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qcompile.data.inputs import Feed
from qcompile.measure import SpeedResult

__all__ = ["idle_ns", "typical_feed"]

LOWEST = 0.9
"""Of a median latency, the least that is believed of an idle machine."""


def typical_feed(feeds: Sequence[Feed]) -> Feed:
    """The feed of the middle size: where shapes differ, candidates and costs are the typical one's."""
    sizes = [sum(np.size(value) for value in feed.values()) for feed in feeds]
    return feeds[int(np.argsort(sizes, kind="stable")[(len(feeds) - 1) // 2])]


def idle_ns(found: SpeedResult, paths: Mapping[str, Path]) -> dict[Path, float]:
    """Model file -> nanoseconds, of models that were timed side by side under these names.

    What disturbs a machine only ever adds, so the low end of the base's interval is nearest to what an
    idle one does; but where the time was too short for an interval, that end may be 0. The ratios are
    paired, and so known better than the latencies themselves.
    """
    known = found.models[found.base].interval_ms
    base = max(known.low, LOWEST * known.value) * 1e6
    return {
        path: base if name == found.base else base / found.speedup(name).value
        for name, path in paths.items()
    }
