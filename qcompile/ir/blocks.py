"""Weights as runs of small integers, each run with a scale of its own: the arithmetic and the packing.

A matrix ``(out, in)`` is cut along ``in`` into blocks; ``w = scale * (q - zero)`` in each. Integers of
less than a byte lie packed low bits first, as ONNX Runtime's MatMulNBits and GatherBlockQuantized
read them. A 3-bit grid is stored in 4 bits: no kernel reads 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.ir.errors import OptionError

__all__ = [
    "BITS",
    "BlockSpec",
    "BlockWeight",
    "PackedWeight",
    "join_blocks",
    "joined",
    "pack",
    "split_blocks",
    "unpack",
]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BITS = (2, 3, 4, 8)
"""Grids that can be stored."""

_AT_ONCE = 1 << 20
"""Elements turned into floats at once: what lies packed in a file is never unpacked whole."""


@dataclass(frozen=True)
class BlockSpec:
    """What is asked of a matrix.

    Attributes:
        bits: of the grid.
        block: elements along ``in`` that share a scale, a power of two from 16 on.
        symmetric: the zero point is the middle of the range, and is not stored.
        positive: no scale is negative; without, a block's largest element may take the step that the
            range has more below its middle than above.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = False
    positive: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise OptionError(f"{self.bits} bits cannot be stored; use {', '.join(map(str, BITS))}")
        if self.block < 16 or self.block & (self.block - 1):
            raise OptionError(f"a block of {self.block} is no power of two from 16 on")

    @property
    def storage(self) -> int:
        """Bits that each integer takes in the file."""
        return 4 if self.bits == 3 else self.bits

    @property
    def middle(self) -> int:
        """The zero point where none is stored: what the kernels assume."""
        return 1 << (self.storage - 1)

    @property
    def low(self) -> int:
        """Lowest integer."""
        return self.middle - (1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def high(self) -> int:
        """Highest integer."""
        return self.low + (1 << self.bits) - 1

    def __str__(self) -> str:
        return f"int{self.bits}, blocks of {self.block}"


@dataclass(frozen=True)
class BlockWeight:
    """A matrix in integers.

    Attributes:
        spec: the grid.
        width: elements along ``in``; the last block may hold padding beyond it.
        integers: uint8, (out, blocks, block), unpacked.
        scale: float32, (out, blocks); may be negative.
        zero: uint8, (out, blocks); None for a symmetric grid.
    """

    spec: BlockSpec
    width: int
    integers: Bytes
    scale: Floats
    zero: Bytes | None = None

    def values(self) -> Floats:
        """What the kernels compute with, (out, in)."""
        return joined(self.in_runs(), len(self.scale), self.width)

    def in_runs(self) -> Iterator[tuple[slice, Floats]]:
        """The values, some rows at a time."""
        for rows in _runs(len(self.scale), self.width):
            zero = None if self.zero is None else self.zero[rows]
            yield rows, _real(self.spec, self.integers[rows], self.scale[rows], zero, self.width)

    def packed(self) -> Bytes:
        """(out, blocks, bytes of a block)."""
        return pack(self.integers, self.spec.storage)

    def packed_zero(self) -> Bytes | None:
        """(out, bytes), blocks of a row packed together; None for a symmetric grid."""
        return None if self.zero is None else pack(self.zero, self.spec.storage)


@dataclass(frozen=True)
class PackedWeight:
    """A matrix in integers as the kernels read it; its arrays may be views of a mapped file.

    Attributes:
        spec: the grid.
        width: elements along ``in``.
        data: (out, blocks, bytes of a block).
        scale: float32, (out, blocks).
        zeros: (out, bytes), as ``BlockWeight.packed_zero`` has them; None for a symmetric grid.
    """

    spec: BlockSpec
    width: int
    data: Bytes
    scale: Floats
    zeros: Bytes | None = None

    @property
    def integers(self) -> Bytes:
        """(out, blocks, block), unpacked."""
        return unpack(self.data, self.spec.storage, self.spec.block)

    @property
    def zero(self) -> Bytes | None:
        """(out, blocks), unpacked."""
        if self.zeros is None:
            return None
        return unpack(self.zeros, self.spec.storage, self.scale.shape[1])

    def values(self) -> Floats:
        """What the kernels compute with, (out, in)."""
        return joined(self.in_runs(), len(self.scale), self.width)

    def in_runs(self) -> Iterator[tuple[slice, Floats]]:
        """The values, some rows at a time."""
        whole = self.zero
        for rows in _runs(len(self.scale), self.width):
            integers = unpack(self.data[rows], self.spec.storage, self.spec.block)
            zero = None if whole is None else whole[rows]
            yield rows, _real(self.spec, integers, self.scale[rows], zero, self.width)

    def packed(self) -> Bytes:
        """(out, blocks, bytes of a block)."""
        return self.data

    def packed_zero(self) -> Bytes | None:
        """(out, bytes), blocks of a row packed together; None for a symmetric grid."""
        return self.zeros


def joined(runs: Iterable[tuple[slice, Floats]], rows: int, width: int) -> Floats:
    """Runs of rows as one array."""
    found = np.empty((rows, width), np.float32)
    for part, values in runs:
        found[part] = values
    return found


def _runs(rows: int, width: int) -> Iterator[slice]:
    """Rows in runs of about ``_AT_ONCE`` elements."""
    step = max(1, _AT_ONCE // max(1, width))
    return (slice(i, i + step) for i in range(0, rows, step))


def _real(
    spec: BlockSpec, integers: Bytes, scale: Floats, zero: Bytes | None, width: int
) -> Floats:
    middle = spec.middle if zero is None else zero[:, :, None].astype(np.float32)
    return join_blocks((integers.astype(np.float32) - middle) * scale[:, :, None], width)


def split_blocks(matrix: npt.NDArray[np.floating], block: int) -> npt.NDArray[np.floating]:
    """(out, in) as (out, blocks, block), the last block filled with zeros."""
    out, width = matrix.shape
    missing = -width % block
    if missing:
        matrix = np.pad(matrix, ((0, 0), (0, missing)))
    return matrix.reshape(out, -1, block)


def join_blocks(blocks: Floats, width: int) -> Floats:
    """The inverse of ``split_blocks``."""
    return blocks.reshape(len(blocks), -1)[:, :width]


def pack(integers: Bytes, bits: int) -> Bytes:
    """Several integers a byte along the last axis, low bits first; the last byte is filled with zeros.

    >>> pack(np.array([[1, 2, 3]], np.uint8), 4)
    array([[33,  3]], dtype=uint8)
    """
    if bits == 8:
        return integers
    each = 8 // bits
    missing = -integers.shape[-1] % each
    if missing:
        integers = np.pad(integers, [(0, 0)] * (integers.ndim - 1) + [(0, missing)])
    found = integers[..., ::each].copy()
    for i in range(1, each):
        found |= integers[..., i::each] << np.uint8(bits * i)
    return np.asarray(found, np.uint8)


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """The first ``count`` integers along the last axis of what ``pack`` made."""
    if bits == 8:
        return packed[..., :count]
    each, mask = 8 // bits, np.uint8((1 << bits) - 1)
    parts = [(packed >> np.uint8(bits * i)) & mask for i in range(each)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)[..., :count]
