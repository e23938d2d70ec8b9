"""Every matrix to integers, one after another: by itself, or with what its layer reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockWeight
from qcompile.ir.codebook import CodebookWeight, to_codebook
from qcompile.job import Job
from qcompile.weights_plan import MatrixChoice

__all__ = ["Rounded", "round_alone", "round_matrices"]

Advance = Callable[[float, float | None], None]


@dataclass(frozen=True)
class Rounded:
    """One matrix in integers.

    Attributes:
        weight: what is stored.
        sqnr_db: of the weights themselves.
        how: the algorithm that was used for this one.
        note: what was out of the ordinary, "" if nothing.
    """

    weight: BlockWeight | CodebookWeight
    sqnr_db: float
    how: str
    note: str = ""


def round_matrices(
    job: Job, choices: Sequence[MatrixChoice], algorithm: str, advance: Advance
) -> dict[str, Rounded]:
    """Initializer name -> integers, for the matrices that are not to stay float."""
    found: dict[str, Rounded] = {}
    for i, choice in enumerate(choices):
        if choice.spec is not None:
            found[choice.matrix.name] = round_alone(choice)
        advance(i + 1, len(choices))
    return found


def round_alone(choice: MatrixChoice, note: str = "") -> Rounded:
    """A matrix to the nearest values, without data."""
    matrix, spec = choice.matrix.array(), choice.spec
    if spec is None:
        raise ValueError(f"'{choice.matrix.name}' stays float")
    if choice.codebook:
        codes = to_codebook(matrix, spec.block)
        return Rounded(codes, weight_sqnr(matrix, codes), "nf4", note)
    weight = (
        fit_blocks(matrix, spec, shrinks=(1.0,)) if spec.bits == 8 else fit_blocks(matrix, spec)
    )
    return Rounded(weight, weight_sqnr(matrix, weight), "rtn", note)


def weight_sqnr(matrix: npt.NDArray[np.float32], weight: BlockWeight | CodebookWeight) -> float:
    """SQNR in dB of the stored values."""
    noise = float(np.square(weight.values() - matrix).sum(dtype=np.float64))
    signal = float(np.square(matrix).sum(dtype=np.float64))
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
