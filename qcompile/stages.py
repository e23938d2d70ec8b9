"""The stages of a compile: what runs now, and how long each took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qcompile.reporter import Reporter
from qcompile.stopwatch import Stopwatch

__all__ = ["Stages"]


class Stages(Stopwatch):
    """Times the stages, in order, and tells the reporter which one runs.

    Attributes:
        parts: the same within the stage "plan".
    """

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter
        self.parts = Stopwatch()

    def rows(self) -> list[dict[str, Any]]:
        """The stages as the report has them, to the millisecond; the open one until now."""
        parts = [{"name": k, "seconds": round(v, 3)} for k, v in self.parts.until_now().items()]
        return [
            {"name": k, "seconds": round(v, 3)}
            | ({"parts": parts} if k == "plan" and parts else {})
            for k, v in self.until_now().items()
        ]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block as the stage ``name``."""
        self.reporter.stage(name)
        with super().__call__(name):
            yield
