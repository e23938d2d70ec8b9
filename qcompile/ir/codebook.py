"""Weights as 4-bit indices into a table of values, each block scaled by its largest element: NF4.

Dettmers, Pagnoni, Holtzman, Zettlemoyer: QLoRA (2023). The 16 values are quantiles of a normal
distribution; the largest element of a block becomes 1 or -1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.ir.blocks import join_blocks, joined, split_blocks

__all__ = ["NF4", "CodebookWeight", "to_codebook"]

NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""As bitsandbytes has them, to the last digit: ONNX Runtime's kernel holds the same."""


_AT_ONCE = 1 << 20
"""Elements turned into floats at once."""


@dataclass(frozen=True)
class CodebookWeight:
    """A matrix as indices.

    Attributes:
        width: elements along ``in``, a whole number of blocks.
        block: elements that share a scale.
        data: uint8, flat: two codes a byte, the first in the high bits.
        absmax: float32, (out, blocks).
    """

    width: int
    block: int
    data: npt.NDArray[np.uint8]
    absmax: npt.NDArray[np.float32]

    @property
    def rows(self) -> int:
        """Outputs of the layer."""
        return len(self.absmax)

    def values(self) -> npt.NDArray[np.float32]:
        """What the kernel computes with, (out, in)."""
        return joined(self.in_runs(), self.rows, self.width)

    def in_runs(self) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """The values, some rows at a time."""
        data = self.data.reshape(self.rows, -1)
        step = max(1, _AT_ONCE // self.width)
        for start in range(0, self.rows, step):
            rows = slice(start, start + step)
            codes = np.stack((data[rows] >> np.uint8(4), data[rows] & np.uint8(15)), axis=-1)
            blocks = NF4[codes.reshape(len(codes), -1, self.block)]
            yield rows, join_blocks(blocks * self.absmax[rows, :, None], self.width)

    def packed(self) -> npt.NDArray[np.uint8]:
        """Two codes a byte, the first in the high bits, flat."""
        return self.data


def to_codebook(matrix: npt.NDArray[np.float32], block: int) -> CodebookWeight:
    """The nearest table values of a matrix (out, in) whose rows are whole blocks."""
    middles = (NF4[1:] + NF4[:-1]) / 2
    blocks = split_blocks(matrix, block)
    codes = np.empty(blocks.shape, np.uint8)
    absmax = np.empty(blocks.shape[:2], np.float32)
    step = max(1, (1 << 18) // max(1, matrix.shape[1]))
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        largest = np.abs(part).max(-1)
        absmax[start : start + step] = largest
        scaled = part / np.where(largest > 0, largest, 1)[:, :, None]
        codes[start : start + step] = np.searchsorted(middles, scaled)
    flat = codes.reshape(-1, 2)
    data = np.asarray((flat[:, 0] << np.uint8(4)) | flat[:, 1], np.uint8)
    return CodebookWeight(matrix.shape[1], block, data, absmax)
