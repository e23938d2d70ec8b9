"""What SQNR an artifact must have: the whole of each output, and each kind of channels in it.

One rule for the gate, for the order of candidates and for the plans that are proposed: an output needs
what was asked for, and its kinds of channels (``channel_groups``) the floor, or what was asked where
that is less. A kind's own limit would be the whole's by another name: boxes of 40 dB beside scores of
30 are what 35 dB of one output means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompile.job import Job

__all__ = ["FLOOR_DB", "Needed", "needed"]

FLOOR_DB = 10.0
"""Least SQNR where nothing else was asked for, and of each kind of channels of an output."""

SLACK_DB = 1.0
"""The gate's samples are others than the selection's: ask for a little more than is needed."""


@dataclass(frozen=True)
class Needed:
    """Least SQNR in dB.

    Attributes:
        whole_db: of each output.
        kind_db: of each kind of channels in an output.
    """

    whole_db: float
    kind_db: float

    @classmethod
    def of(cls, limit_db: float, slack_db: float = 0.0) -> Needed:
        """What a limit asks, and a little more.

        >>> Needed.of(35.0, 1.0)
        Needed(whole_db=36.0, kind_db=11.0)
        """
        return cls(limit_db + slack_db, min(limit_db, FLOOR_DB) + slack_db)

    @property
    def leeway_db(self) -> float:
        """How far a kind may be below the whole."""
        return self.whole_db - self.kind_db

    def reached_db(self, whole_db: float | None, kind_db: float | None) -> float | None:
        """The limit that an output with these figures just keeps; None where there is no float output.

        >>> Needed(36.0, 11.0).reached_db(41.0, 29.5)
        41.0
        >>> Needed(36.0, 11.0).reached_db(41.0, 8.0)
        33.0
        """
        if whole_db is None:
            return None
        return whole_db if kind_db is None else min(whole_db, kind_db + self.leeway_db)

    def kept(self, whole_db: float | None, kind_db: float | None) -> bool:
        """Whether figures keep the rule; an artifact without float outputs does."""
        reached = self.reached_db(whole_db, kind_db)
        return reached is None or reached >= self.whole_db

    def raised_to(self, whole_db: float) -> Needed:
        """The same leeway around another limit."""
        return Needed(whole_db, whole_db - self.leeway_db)


def needed(job: Job) -> Needed:
    """What a plan must have on selection samples to be tried first."""
    limit = job.limits().min_sqnr
    if limit is None and job.data.metric is not None:
        return Needed(0.0, 0.0)
    return Needed.of(FLOOR_DB if limit is None else limit, SLACK_DB)
