"""Every matrix to integers, one after another: by itself, or with what its layer reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.gptq import gptq
from qcompile.calibrators.hqq import hqq
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.checkpoint import Checkpoint
from qcompile.ir.blocks import BlockWeight
from qcompile.ir.codebook import CodebookWeight, to_codebook
from qcompile.ir.matrices import Matrix
from qcompile.job import Job
from qcompile.stream_weights import groups_of, stream
from qcompile.weights_plan import MatrixChoice

__all__ = ["Rounded", "round_alone", "round_matrices"]

Advance = Callable[[float, float | None], None]

DATA_FREE = ("rtn", "hqq")
"""Algorithms that look at weights alone."""

SAMPLES = 64
"""Samples whose activations are held while layers are rounded one after another."""


@dataclass(frozen=True)
class Rounded:
    """One matrix in integers.

    Attributes:
        weight: what is stored.
        sqnr_db: of the weights themselves.
        how: the algorithm that was used for this one.
        note: what was out of the ordinary, "" if nothing.
        error: energy of the layer's output error over that of its output, None without data.
        damping: share of the mean second moment that was added, None without data.
    """

    weight: BlockWeight | CodebookWeight
    sqnr_db: float
    how: str
    note: str = ""
    error: float | None = None
    damping: float | None = None


def round_matrices(
    job: Job,
    choices: Sequence[MatrixChoice],
    algorithm: str,
    advance: Advance,
    checkpoint: Checkpoint,
) -> dict[str, Rounded]:
    """Initializer name -> integers, for the matrices that are not to stay float."""
    wanted = {c.matrix.name: c for c in choices if c.spec is not None}
    model = job.prepared.model
    groups = groups_of(model, [c.matrix for c in wanted.values() if not c.codebook])
    if algorithm in DATA_FREE:
        groups = []
    streamed = {m.name for group in groups for m in group.matrices}
    found: dict[str, Rounded] = {}
    alone = [c for name, c in wanted.items() if name not in streamed]
    for i, choice in enumerate(alone):
        found[choice.matrix.name] = round_alone(choice, algorithm)
        advance(i + 1, len(wanted))
    if not groups:
        return found

    def act(matrix: Matrix, moments: Callable[[], Any]) -> npt.NDArray[np.float32]:
        done = checkpoint.load(matrix.name)
        if done is None:
            rounded = _with_moments(wanted[matrix.name], moments())
            about = {k: getattr(rounded, k) for k in ("sqnr_db", "how", "note", "error", "damping")}
            if isinstance(rounded.weight, BlockWeight):
                checkpoint.save(matrix.name, rounded.weight, about)
        else:
            rounded = Rounded(done[0], **done[1])
        found[matrix.name] = rounded
        return rounded.weight.values()

    total = len(job.data.calibration)
    picked = np.unique(np.linspace(0, total - 1, min(SAMPLES, total)).astype(int))
    stream(
        model,
        [job.data.calibration.load(int(i)) for i in picked],
        groups,
        {name: r.weight.values() for name, r in found.items()},
        act,
        checkpoint,
        threads=job.options.threads,
        custom_ops=job.options.custom_ops,
        advance=advance,
    )
    return found


def round_alone(choice: MatrixChoice, algorithm: str = "rtn") -> Rounded:
    """A matrix to the nearest values, without data."""
    matrix, spec = choice.matrix.array(), choice.spec
    if spec is None:
        raise ValueError(f"'{choice.matrix.name}' stays float")
    if choice.codebook:
        codes = to_codebook(matrix, spec.block)
        return Rounded(codes, weight_sqnr(matrix, codes), "nf4")
    if spec.bits == 8:  # the full range: nothing is gained by a narrower one
        weight, how = fit_blocks(matrix, spec, shrinks=(1.0,)), "rtn"
    elif algorithm == "hqq":
        weight, how = hqq(matrix, spec), "hqq"
    else:
        weight, how = fit_blocks(matrix, spec), "rtn"
    return Rounded(weight, weight_sqnr(matrix, weight), how)


def _with_moments(choice: MatrixChoice, moments: npt.NDArray[np.float64]) -> Rounded:
    matrix, spec = choice.matrix.array(), choice.spec
    if spec is None:
        raise ValueError(f"'{choice.matrix.name}' stays float")
    made = gptq(matrix, moments, spec)
    return Rounded(
        made.weight,
        weight_sqnr(matrix, made.weight),
        "gptq",
        made.note,
        made.error if np.isfinite(made.error) else None,
        made.damping,
    )


def weight_sqnr(matrix: npt.NDArray[np.float32], weight: BlockWeight | CodebookWeight) -> float:
    """SQNR in dB of the stored values."""
    noise = float(np.square(weight.values() - matrix).sum(dtype=np.float64))
    signal = float(np.square(matrix).sum(dtype=np.float64))
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
