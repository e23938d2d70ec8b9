"""The stages of a compile: what runs now, and how long each took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from qcompile.reporter import Reporter
from qcompile.stopwatch import Stopwatch

__all__ = ["Stages"]


@runtime_checkable
class TellsParts(Protocol):
    """A reporter that shows the parts of a stage too."""

    def part(self, name: str) -> None:
        """A part of the stage begins, or goes on after one inside it; "" between parts."""


class Parts(Stopwatch):
    """Times the parts of a stage, and tells them to a reporter that asks for them."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._tell = reporter.part if isinstance(reporter, TellsParts) else None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block as the part ``name``."""
        with super().__call__(name):
            self._told()
            yield
        self._told()

    def _told(self) -> None:
        if self._tell is not None:
            self._tell(self._open[-1] if self._open else "")


class Stages(Stopwatch):
    """Times the stages, in order, and tells the reporter which one runs.

    Attributes:
        parts: the same within the stage "plan".
    """

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter
        self.parts = Parts(reporter)

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
