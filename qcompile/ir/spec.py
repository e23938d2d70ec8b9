"""What is asked of a tensor: dtype, symmetry and granularity. A request; never holds numbers seen.

8-bit floats (E4M3) are requested the same way: symmetric, with 448 as the highest "integer".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "FLOAT8",
    "INTEGER_BITS",
    "PER_TENSOR",
    "Granularity",
    "QDType",
    "QuantSpec",
    "per_axis",
    "per_block",
]

QDType = Literal["uint8", "int8", "uint16", "int16", "uint4", "int4", "int32", "float8e4m3fn"]

FLOAT8: QDType = "float8e4m3fn"
"""The one floating type: four exponent bits, three of mantissa, no infinity."""

_FLOAT8_MAX = 448

INTEGER_BITS: dict[str, tuple[int, bool]] = {
    "uint4": (4, False),
    "int4": (4, True),
    "uint8": (8, False),
    "int8": (8, True),
    "uint16": (16, False),
    "int16": (16, True),
    "int32": (32, True),
}
"""dtype -> (bits, signed)."""


@dataclass(frozen=True)
class Granularity:
    """How many scales a tensor has.

    Examples for a tensor of shape (8, 16): per-tensor -> scale (); axis=0 -> scale (8,);
    axis=0, block=4 -> scale (2, 16), one for every four rows of each column.
    """

    axis: int | None = None
    block: int | None = None


PER_TENSOR = Granularity()


def per_axis(axis: int) -> Granularity:
    """One scale for each index along ``axis`` (per-channel)."""
    return Granularity(axis=axis)


def per_block(axis: int, block: int) -> Granularity:
    """One scale for each run of ``block`` elements along ``axis``."""
    return Granularity(axis=axis, block=block)


@dataclass(frozen=True)
class QuantSpec:
    """A requested quantization.

    Attributes:
        dtype: the integer type stored.
        symmetric: zero point fixed (0 for signed, mid-range for unsigned) instead of free.
        granularity: how many scales.
        narrow: drop the lowest value (-127..127 for int8), so that negation is exact.
        bits: significant bits if fewer than the dtype holds (7-bit weights on CPUs without VNNI).
    """

    dtype: QDType
    symmetric: bool
    granularity: Granularity = PER_TENSOR
    narrow: bool = False
    bits: int | None = None

    @property
    def qmin(self) -> int:
        """Lowest integer (or 8-bit float) used."""
        if self.dtype == FLOAT8:
            return -_FLOAT8_MAX
        bits, signed = INTEGER_BITS[self.dtype]
        bits = self.bits or bits
        if not signed:
            return 0
        return -(1 << (bits - 1)) + (1 if self.narrow else 0)

    @property
    def qmax(self) -> int:
        """Highest integer (or 8-bit float) used."""
        if self.dtype == FLOAT8:
            return _FLOAT8_MAX
        bits, signed = INTEGER_BITS[self.dtype]
        bits = self.bits or bits
        return (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
