"""Amounts with units, as users write them: every limit needs its unit, so that nothing is guessed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qcompile.ir.errors import OptionError

__all__ = ["Drop", "parse_bytes", "parse_drop", "parse_milliseconds", "parse_seconds"]

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Drop:
    """How much worse a metric may become.

    Attributes:
        value: 0.01 for "1%", 0.005 for "0.5pt".
        relative: share of the float score ("%"), else absolute points of a score in 0..1 ("pt").
    """

    value: float
    relative: bool

    def allowed(self, float_score: float) -> float:
        """Largest allowed worsening, in the metric's own unit, given the float score."""
        return abs(float_score) * self.value if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.value * 100:g}{'%' if self.relative else 'pt'}"


def parse_drop(text: str, option: str = "--max-drop") -> Drop:
    """Read "1%" (relative) or "0.5pt" (percentage points; 0.5pt of a top-1 is 0.005).

    Raises:
        OptionError: no unit, or not a finite number of at least 0.
    """
    found = re.fullmatch(rf"\s*{_NUMBER}\s*(%|pt|pts)\s*", text)
    if not found:
        raise OptionError(
            f"{option} '{text}' has no unit; write 1% (relative to the float score) "
            "or 0.5pt (percentage points)"
        )
    return Drop(float(found[1]) / 100, found[2] == "%")


def parse_bytes(text: str, option: str) -> int:
    """Read "4GB", "300MiB" into bytes.

    Raises:
        OptionError: no unit, or not a positive amount.
    """
    return max(1, round(_amount(text, option, _BYTES, "4GB, 300MB or 512MiB")))


def parse_milliseconds(text: str, option: str) -> float:
    """Read "5ms", "300us" into milliseconds.

    Raises:
        OptionError: no unit, or not a positive amount.
    """
    return _amount(text, option, _SECONDS, "5ms or 300us") * 1e3


def parse_seconds(text: str, option: str) -> float:
    """Read "90s", "5m" into seconds.

    Raises:
        OptionError: no unit, or not a positive amount.
    """
    return _amount(text, option, _SECONDS, "90s or 5m")


def _amount(
    text: str, option: str, units: dict[str, float] | dict[str, int], example: str
) -> float:
    found = re.fullmatch(rf"\s*{_NUMBER}\s*([A-Za-z]+)\s*", text)
    factor = units.get(found[2].lower()) if found else None
    if not found or factor is None:
        raise OptionError(
            f"{option} '{text}' is not an amount with a unit; write for example {example}"
        )
    value = float(found[1]) * factor
    if not (math.isfinite(value) and value > 0):
        raise OptionError(f"{option} '{text}' must be above zero")
    return value
