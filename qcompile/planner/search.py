"""Finds the plan to deliver: candidates are built, timed side by side, scored, and the best is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompile.build import Build, Builder
from qcompile.ir.plan import PrecisionPlan
from qcompile.job import Job
from qcompile.reporter import Reporter

__all__ = ["Candidate", "Found", "search"]


@dataclass(frozen=True)
class Candidate:
    """One plan that was built and judged on selection samples.

    Attributes:
        name: how it came about.
        build: its models.
        ms: median latency, None when not timed.
        speedup: against the user's float model.
        sqnr_db: least SQNR over float outputs on selection samples.
        refused: why it cannot be delivered, "" when it can.
    """

    name: str
    build: Build
    ms: float | None = None
    speedup: float | None = None
    sqnr_db: float | None = None
    refused: str = ""

    def text(self) -> str:
        """One line for people."""
        parts = [self.name]
        if self.speedup is not None:
            parts.append(f"{self.speedup:.2f}x")
        if self.sqnr_db is not None:
            parts.append(f"{self.sqnr_db:.1f} dB")
        if self.refused:
            parts.append(self.refused)
        return ", ".join(parts)


@dataclass(frozen=True)
class Found:
    """The plan chosen and what it was chosen from."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    how: str
    costs: Any = None


def search(
    job: Job, builder: Builder, start: PrecisionPlan, *, replay: bool, reporter: Reporter
) -> Found:
    """The plan as it stands, built."""
    one = Candidate("all that can be integer", builder.build(start))
    return Found(one, (one,), "every layer that can be integer is integer")
