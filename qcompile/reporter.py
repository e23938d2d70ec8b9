"""Who is told what happens while a compile runs."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Reporter", "Silent"]


class Reporter(Protocol):
    """Is told what happens; the command line shows it, Python callers may ignore it."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def advance(self, done: float, total: float | None) -> None:
        """How far the stage is."""

    def note(self, text: str) -> None:
        """Something worth knowing at once."""


class Silent:
    """Tells nobody; the default of the Python API."""

    def stage(self, name: str) -> None:
        """Say nothing."""

    def advance(self, done: float, total: float | None) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
