"""When models have been timed for long enough: close where something hangs on it, loose elsewhere.

A ratio of 2.7 against a limit of 1 is decided by an interval of +-10 %; one of 1.03 is not by +-2 %. So
the nearer a ratio is to what it is held against, the closer it must be known; and what lies far behind
the best candidate need not be timed any more at all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qcompile.interval import median_interval

__all__ = ["Enough"]

FEWEST = 3
"""Groups before anything is known."""

BEHIND = 1.25
"""A candidate worth this many times less than the best, after two groups, is timed no further."""

VAGUE = 0.04
"""A ratio that is not even known to +-4 % is disturbed by something."""


@dataclass(frozen=True)
class Enough:
    """How closely ratios of latencies must be known.

    Attributes:
        half_width: where something hangs on it; 0.02 is +-2 %.
        loose: at most, where nothing does; None: as closely as everything else.
        limit: what ratios are held against, None where they are only reported.
        worth: name -> what its ratio counts, for candidates of which the best is wanted.
        to_beat: worth of the best that was timed before.
        beside: names on which nothing hangs; twice ``loose`` does for them.
        margin: how many half-widths a ratio must stay away from what it is held against.
        least: groups before a ratio that is known to ``half_width`` ends it; those that may be known
            less closely need three.
    """

    half_width: float = 0.02
    loose: float | None = None
    limit: float | None = None
    worth: Mapping[str, float] = field(default_factory=dict)
    to_beat: float = 0.0
    beside: Sequence[str] = ()
    margin: float = 6.0
    least: int = 6

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; ``Enough(**...)`` reads it."""
        return asdict(self)

    def known(self, ratios: Mapping[str, Sequence[float]]) -> bool:
        """Whether every ratio is known as closely as is needed.

        Args:
            ratios: name -> base / its latency, one for each group; those still timed.
        """
        needs = self._needs(ratios)
        return all(
            len(values) >= (self.least if needs[name] <= self.half_width else FEWEST)
            and median_interval(values).half_width <= needs[name]
            for name, values in ratios.items()
        )

    def behind(self, ratios: Mapping[str, Sequence[float]]) -> list[str]:
        """Candidates that are clearly not the best, which need no more time."""
        worths = {
            name: weight * statistics.median(ratios[name])
            for name, weight in self.worth.items()
            if len(ratios.get(name, ())) >= FEWEST - 1
        }
        best = max([*worths.values(), self.to_beat])
        return [name for name, worth in worths.items() if worth * BEHIND < best]

    def hopeless(self, ratios: Mapping[str, Sequence[float]], spent: float, budget: float) -> bool:
        """Whether the rest of the time will leave a ratio vague that is needed closer.

        Args:
            ratios: as for ``known``.
            spent: seconds.
            budget: seconds.
        """
        return any(
            _expected(values, spent, budget) > max(need, VAGUE) * (2 if len(values) < FEWEST else 1)
            for (name, values), need in zip(
                ratios.items(), self._needs(ratios).values(), strict=True
            )
        )

    def vague(self, ratios: Mapping[str, Sequence[float]]) -> bool:
        """Whether a ratio is so little known that it should be measured in another way.

        Args:
            ratios: of all models; what has fewer groups than others was left out on the way.
        """
        needs = self._needs(ratios)
        groups = max(map(len, ratios.values()), default=0)
        return any(
            median_interval(values).half_width > max(needs[name], VAGUE)
            for name, values in ratios.items()
            if len(values) == groups
        )

    def _needs(self, ratios: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Half-width for each name."""
        loose = self.half_width if self.loose is None else self.loose
        middle = {name: statistics.median(values) for name, values in ratios.items() if values}
        worths = {n: w * middle[n] for n, w in self.worth.items() if w > 0 and n in middle}
        found = {}
        for name in ratios:
            away = math.inf
            held = self.limit is not None and name not in self.beside
            if held and self.limit and name in middle:
                away = abs(math.log(middle[name] / self.limit))
            if name in worths:
                others = [w for other, w in worths.items() if other != name]
                best = max([*others, self.to_beat])
                if best > 0:
                    away = min(away, abs(math.log(worths[name] / best)))
            need = min(max(away / self.margin, self.half_width), max(loose, self.half_width))
            found[name] = 2 * need if name in self.beside else need
        return found


def _expected(values: Sequence[float], spent: float, budget: float) -> float:
    """The half-width that an interval will have once the time is over, from what is seen so far."""
    groups = len(values)
    if groups < 2 or spent <= 0:
        return 0.0
    spread = statistics.stdev([math.log(v) for v in values])
    last = max(FEWEST, groups, int(groups * budget / spent))
    # of Student's t up to five values; beyond, the least and the largest of so many
    reach = {3: 2.48, 4: 1.59, 5: 1.24}.get(last, 1.3 if last < 9 else 3.0 / math.sqrt(last))
    return reach * spread
