"""Numbers as a report shows them: five significant digits, so that thousands of them stay small."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

__all__ = ["rounded", "rounded_all"]


def rounded(value: Any) -> float | None:
    """Five significant digits; None for what is not finite.

    >>> rounded(0.123456789), rounded(float("nan"))
    (0.12346, None)
    """
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def rounded_all(values: Iterable[Any]) -> list[float | None]:
    """Each value ``rounded``."""
    return [rounded(v) for v in values]
