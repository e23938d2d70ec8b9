"""Every matrix to integers, one after another: by itself, or with what its layer reads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qcompile.balance_inputs import balance_group
from qcompile.calibrators.awq import Balance
from qcompile.calibrators.descend import DAMPING, descend
from qcompile.calibrators.exact_grid import exact_blocks
from qcompile.calibrators.gptq import Factored, factored, gptq, output_error
from qcompile.calibrators.hqq import hqq
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.calibrators.toward_float import Inputs, toward_float
from qcompile.checkpoint import Checkpoint, Kept
from qcompile.ir.blocks import BlockWeight
from qcompile.ir.codebook import to_codebook
from qcompile.ir.matrices import Matrix
from qcompile.ir.target import WeightForm
from qcompile.job import Job
from qcompile.options import Options
from qcompile.stream_weights import Group, Values, groups_of, stream
from qcompile.weights_plan import MatrixChoice

__all__ = [
    "Rounded",
    "algorithm_for",
    "round_alone",
    "round_matrices",
    "round_raised",
    "rounds_alone",
    "stored_once",
]

Advance = Callable[[float, float | None], None]

DATA_FREE = ("rtn", "hqq")
"""Algorithms that look at weights alone."""

STORED = ("sqnr_db", "how", "note", "error", "damping", "columns")

SAMPLES = 128
"""Samples whose activations are held while layers are rounded one after another. Of 128 tokens each, in a
block of SmolLM2-135M: on other text layers err 0.1 to 0.3 dB less than with 64, and 256 gain 0.1 dB more."""


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
        columns: what the columns were multiplied with before rounding, None for nothing.
    """

    weight: BlockWeight | Kept
    sqnr_db: float
    how: str
    note: str = ""
    error: float | None = None
    damping: float | None = None
    columns: tuple[float, ...] | None = None

    def values(self) -> npt.NDArray[np.float32]:
        """What the layer computes with, once the column scales are folded, (out, in)."""
        stored = self.weight.values()
        if self.columns is None:
            return stored
        return np.asarray(stored / np.array(self.columns, np.float32), np.float32)


def algorithm_for(options: Options, form: WeightForm, *, random: bool) -> str:
    """How weights are rounded where nothing was asked for; ``random`` data teach nothing."""
    if options.algorithm != "auto":
        return options.algorithm
    plain = random or form.codebook or (options.bits or form.bits) == 8
    return "rtn" if plain else "descent"


def rounds_alone(options: Options, form: WeightForm) -> bool:
    """Whether matrices are rounded one by one, with no data, whatever the data are."""
    return algorithm_for(options, form, random=False) in DATA_FREE


def round_matrices(
    job: Job,
    choices: Sequence[MatrixChoice],
    algorithm: str,
    advance: Advance,
    checkpoint: Checkpoint,
    *,
    toward: bool = False,
) -> dict[str, Rounded]:
    """Initializer name -> integers, for the matrices that are not to stay float.

    Args:
        job: with the prepared model and the samples.
        choices: grids.
        algorithm: "rtn", "hqq", "awq", "gptq", or "descent" (GPTQ, then coordinate descent).
        advance: told how many are done.
        checkpoint: where matrices lie once they are done.
        toward: descent goes toward float's outputs, not toward what rounded inputs give. Of Whisper's
            encoder that made 12 and 16 wrong words of 108 where 8 were, one run each; most of its rows are
            of silence, which may be why.
    """
    wanted = {c.matrix.name: c for c in choices if c.spec is not None}
    model = job.prepared.model
    even = [c.matrix for c in wanted.values() if not c.codebook]
    groups = [] if algorithm in DATA_FREE else groups_of(model, even)
    on_grid = {name for name, c in wanted.items() if c.on_grid}
    groups = [g for g in groups if not on_grid.issuperset(m.name for m in g.matrices)]
    if algorithm != "awq":  # which scales columns for all matrices of a group, or for none
        left = (tuple(m for m in g.matrices if m.name not in on_grid) for g in groups)
        groups = [replace(g, matrices=some) for g, some in zip(groups, left, strict=True)]
    streamed = {m.name for group in groups for m in group.matrices}
    found: dict[str, Rounded] = {}

    def rounded(name: str, make: Callable[[], Rounded]) -> Rounded:
        found[name] = stored_once(checkpoint, name, make)
        return found[name]

    alone = [c for name, c in wanted.items() if name not in streamed]
    for i, choice in enumerate(alone):
        rounded(choice.matrix.name, partial(round_alone, choice, algorithm))
        advance(i + 1, len(wanted))
    if not groups:
        return found

    specs = {name: c.spec for name, c in wanted.items() if c.spec is not None}
    balances: dict[str, Balance | None] = {}
    factors: dict[str, Factored] = {}

    def with_data(group: Group, matrix: Matrix, inputs: Callable[[], Inputs]) -> Rounded:
        moments = inputs().moments
        if algorithm != "awq":
            if group.tensor not in factors and np.isfinite(moments).all():
                factors.clear()
                factors[group.tensor] = factored(moments)
            ready = factors.get(group.tensor)
            return _with_inputs(wanted[matrix.name], inputs(), algorithm == "descent", ready)
        if group.tensor not in balances:
            balances.clear()
            balances[group.tensor] = balance_group(group, specs, even, moments)
        return _balanced(wanted[matrix.name], balances[group.tensor], moments)

    def act(group: Group, matrix: Matrix, inputs: Callable[[], Inputs]) -> Values:
        return rounded(matrix.name, partial(with_data, group, matrix, inputs)).values

    total = len(job.data.calibration)
    picked = np.unique(np.linspace(0, total - 1, min(SAMPLES, total)).astype(int))
    with tempfile.TemporaryDirectory(
        dir=job.work, prefix="live-", ignore_cleanup_errors=True
    ) as spill:
        stream(
            model,
            [job.data.calibration.load(int(i)) for i in picked],
            groups,
            [(wanted[name].matrix, r.weight.values) for name, r in found.items()],
            act,
            threads=job.options.threads,
            custom_ops=job.options.custom_ops,
            spill=Path(spill),
            beside=toward and algorithm == "descent",
            advance=advance,
        )
    return found


def stored_once(disk: Checkpoint, name: str, make: Callable[[], Rounded]) -> Rounded:
    """A matrix from disk; made and stored first where it is not there."""
    kept = disk.load(name)
    if kept is None:
        made = make()
        kept = disk.save(name, made.weight, {k: getattr(made, k) for k in STORED})
    return Rounded(kept[0], **kept[1])


def round_alone(choice: MatrixChoice, algorithm: str = "rtn") -> Rounded:
    """A matrix to the nearest values, without data."""
    matrix, spec = choice.matrix.array(), choice.spec
    if spec is None:
        raise ValueError(f"'{choice.matrix.name}' stays float")
    held = exact_blocks(matrix, spec) if choice.on_grid else None
    if held is not None:
        return Rounded(held, weight_sqnr(matrix, held), "kept", "it lay on this grid already")
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


def round_raised(choice: MatrixChoice, few: Rounded) -> Rounded:
    """A matrix in 8 bits that was rounded to fewer before; columns that were scaled stay so."""
    matrix, spec = choice.matrix.array(), choice.spec
    if spec is None:
        raise ValueError(f"'{choice.matrix.name}' stays float")
    if few.columns is not None:
        matrix = matrix * np.array(few.columns, np.float32)
    weight = fit_blocks(matrix, spec, shrinks=(1.0,))
    return Rounded(weight, weight_sqnr(matrix, weight), "rtn", columns=few.columns)


def _balanced(
    choice: MatrixChoice, scales: Balance | None, moments: npt.NDArray[np.float64]
) -> Rounded:
    """Nearest integers of the matrix with its columns scaled."""
    matrix, spec = choice.matrix.array(), choice.spec
    if spec is None:
        raise ValueError(f"'{choice.matrix.name}' stays float")
    note = ""
    columns = np.ones(matrix.shape[1], np.float32)
    if scales is None:
        note = "no node before it can take the inverse of column scales: rounded to nearest"
    else:
        columns = scales.scale
    inside = moments / np.outer(columns, columns)
    wide = matrix * columns
    weight = fit_blocks(wide, spec, np.diagonal(inside).astype(np.float32))
    made = Rounded(
        weight,
        0.0,
        "rtn" if scales is None else f"awq, exponent {scales.exponent:g}",
        note,
        output_error(wide, weight, inside),
        None,
        None if scales is None or scales.exponent == 0 else tuple(map(float, columns)),
    )
    return replace(made, sqnr_db=weight_sqnr(matrix, weight, columns))


def _with_inputs(
    choice: MatrixChoice, inputs: Inputs, refine: bool, ready: Factored | None
) -> Rounded:
    """GPTQ; with ``refine`` toward float's outputs, and a descent behind it."""
    matrix, spec, moments = choice.matrix.array(), choice.spec, inputs.moments
    if spec is None:
        raise ValueError(f"'{choice.matrix.name}' stays float")
    aim, share = toward_float(matrix, inputs) if refine and ready is not None else (matrix, 0.0)
    made = gptq(aim, moments, spec, ready=ready)
    if not np.isfinite(made.error):
        return Rounded(
            made.weight, weight_sqnr(matrix, made.weight), "rtn", made.note, None, made.damping
        )
    weight, error, how = made.weight, made.error, "gptq"
    if share:
        how = f"gptq {share:.0%} toward float"
    if refine and spec.bits < 8:
        weight = descend(aim, weight, moments, damping=max(made.damping, DAMPING))
        error = output_error(aim, weight, moments)
        how += ", descent"
    return Rounded(weight, weight_sqnr(matrix, weight), how, made.note, error, made.damping)


def weight_sqnr(
    matrix: npt.NDArray[np.float32],
    weight: BlockWeight | Kept,
    columns: npt.NDArray[np.float32] | None = None,
) -> float:
    """SQNR in dB of the stored values, divided by what the columns were multiplied with."""
    noise = signal = 0.0
    for rows, values in weight.in_runs():
        real = matrix[rows]
        wrong = (values if columns is None else values / columns) - real
        noise += float(np.square(wrong).sum(dtype=np.float64))
        signal += float(np.square(real).sum(dtype=np.float64))
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
