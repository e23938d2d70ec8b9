"""The flow for weight-only targets: constant matrices become integers of few bits, activations stay float.

Choose bits for each matrix (8 where a byte buys most), round (with what the layer reads, where data are
given), lower to MatMulNBits and its kin or, for an engine, to Q/DQ, judge like every other target. Where the
result is not accurate enough, more of the matrices that disturb the output most get 8 bits, and the gate
judges again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_bits import has_bits
from qcompile.backends.ort_nbits import Stored, lower_weights
from qcompile.backends.trt_weights import lower_to_dequantize
from qcompile.balance_inputs import fold_columns
from qcompile.cache_scales import Cache, find_cache, stored
from qcompile.checkpoint import Checkpoint, claim, progress_folder
from qcompile.dear_matrices import disturbed, disturbed_by_nearest
from qcompile.finish import deliver
from qcompile.float_ahead import float_ahead, spared
from qcompile.fuse_decoders import fuse_decoder
from qcompile.ir.affine import TensorRange
from qcompile.ir.codebook import CodebookWeight
from qcompile.ir.errors import BackendMissingError
from qcompile.ir.graph import drop_unused
from qcompile.ir.manager import PassRecord
from qcompile.ir.matrices import find_matrices
from qcompile.ir.notes import Note
from qcompile.ir.save import save_model
from qcompile.ir.target import WeightForm
from qcompile.job import Job
from qcompile.language import (
    Generation,
    Perplexity,
    language_of,
)
from qcompile.layers import macs_by_origin
from qcompile.lock import Lock
from qcompile.remembered import RememberedSession
from qcompile.result import CompileResult
from qcompile.round_weights import (
    DATA_FREE,
    Rounded,
    algorithm_for,
    round_matrices,
    round_raised,
    stored_once,
)
from qcompile.segmented import SegmentedSession
from qcompile.sizes import LOADED_WHOLE
from qcompile.stages import Stages
from qcompile.verdict import Check, GateResult
from qcompile.weights_engine import (
    check_opset,
    deliver_engine,
    engine_choices,
    engine_peaks,
    save_for_engine,
)
from qcompile.weights_gate import generated, judge_weights, left_float
from qcompile.weights_plan import (
    MatrixChoice,
    as_plan,
    choose_matrices,
    follow_plan,
    raise_bits,
    raise_dear,
    raised_share,
)
from qcompile.weights_write import write_weights

__all__ = ["Compressed", "compile_weights"]

ATTEMPTS = 4
"""How often the gate judges."""

AIM = 0.9
"""Of what is allowed: what an attempt aims at, since disturbances add up only about. Of SmolLM2-135M, 3 %
allowed: aimed at 2.4 it was 3.4, then 2.1; more than is needed in 8 bits is bytes lost."""

UNKNOWN = 100.0
"""How many times too large an error counts that is no number."""


@dataclass(frozen=True)
class Tried:
    """One attempt.

    Attributes:
        share: of the elements in few bits that got 8 bits.
        choices: what each matrix was asked to be.
        rounded: what each became, by initializer name.
        model: the graph.
        path: its file.
        gate: the verdict.
        records: log of the passes behind the lowering.
    """

    share: float
    choices: list[MatrixChoice]
    rounded: Mapping[str, Rounded]
    model: oir.Model
    path: Path
    gate: GateResult
    records: tuple[PassRecord, ...] = ()


@dataclass(frozen=True)
class Compressed:
    """A model with integer weights and all that is known about it.

    Attributes:
        tried: attempts in order; the last one is taken.
        algorithm: how weights were rounded.
        notes: matrices that were left alone, and why.
        generation: how it generates, for language models.
        cache: scales of a cache in 8 bits; None where it stays float.
        beside: float's outputs for the gate's samples.
        macs: origin id -> multiply-accumulates.
    """

    tried: tuple[Tried, ...]
    algorithm: str
    notes: tuple[Note, ...]
    generation: Generation | None
    cache: Cache | None = None
    beside: RememberedSession | SegmentedSession | None = None
    macs: Mapping[str, int] = field(default_factory=dict)

    @property
    def taken(self) -> Tried:
        """The attempt that the verdict is about."""
        return self.tried[-1]


def compile_weights(
    job: Job,
    form: WeightForm,
    lock: Lock | None,
    key: Mapping[str, Any],
    stages: Stages,
    output: Path,
    keep: object,
) -> CompileResult:
    """Round, lower, judge, write.

    Raises:
        BackendMissingError: the installed ONNX Runtime has no kernel for so few bits.
    """
    options = job.options
    engine = job.prepared.target.portable
    if engine:
        check_opset(job)

    def able(found: list[MatrixChoice]) -> list[MatrixChoice]:
        return engine_choices(found, form) if engine else found

    job, notes = spared(job)
    matrices, left = find_matrices(job.prepared.model)
    notes += left
    matched = choose_matrices(matrices, form, options)
    choices = able(follow_plan(matched, options, None))
    bits = options.bits or form.bits
    if not form.codebook and not engine and not has_bits(bits):
        raise BackendMissingError(
            f"this ONNX Runtime has no MatMulNBits for weights of {bits} bits; "
            "install a newer one, or use --bits 4"
        )
    algorithm = algorithm_for(options, form, random=job.data.random)
    wanted = None if lock is None else able(follow_plan(matched, options, lock.plan))
    some = any(choice.spec is not None for choice in choices)
    with ExitStack() as held:
        with stages("run float"):
            ahead = float_ahead(job, runs=some, apart=algorithm in DATA_FREE)
            float_side = held.enter_context(ahead)
        cache: Cache | None = None
        if options.kv_cache == "int8":
            with stages("calibrate the cache"):
                cache = find_cache(job)
        disk = job.work / "rounded" if keep is not None else progress_folder(output)
        again = algorithm == "descent"  # what is rounded behind a matrix makes up for its error
        base, apart = choices, dict[str, float]()
        if again and wanted is not None:
            base = wanted
        elif again:
            with stages("find what disturbs"):
                claim(disk, key)
                language = language_of(float_side(), job.prepared.inputs)
                apart = disturbed_by_nearest(job, choices, language, disk, stages.reporter.advance)
                base = able(raise_dear(choices, apart))

        def rounded_as(asked: Sequence[MatrixChoice]) -> tuple[dict[str, Rounded], Checkpoint]:
            with stages("round weights"):
                kept = Checkpoint(disk, key, as_plan(asked).to_json())
                advance = stages.reporter.advance
                toward = again and language_of(float_side(), job.prepared.inputs) is not None
                return round_matrices(job, asked, algorithm, advance, kept, toward=toward), kept

        few, checkpoint = rounded_as(base)
        fitted = base
        peaks: dict[str, TensorRange] = {}
        if engine:
            with stages("calibrate"):
                peaks = engine_peaks(job)
        else:
            with stages("count"):
                macs = macs_by_origin(job)
        tried: list[Tried] = []
        records: tuple[PassRecord, ...] = ()
        taken, keep_share = base if wanted is None else wanted, 1.0
        while True:
            rounded = _with_raised(few, fitted, taken, Checkpoint(job.work / "raised", {}))
            with stages("lower"):
                path = job.work / f"weights{len(tried)}.onnx"
                model = lower(job.prepared.model, rounded, form)
                if not engine:
                    records = fuse_decoder(job, model)
                if cache is not None:
                    cache = stored(model, cache, options.min_ort)
                if engine:
                    records = save_for_engine(job, model, peaks, path)
                else:
                    save_model(model, path, external_above=LOADED_WHOLE)
            with stages("run float"):
                beside = float_side()
                language = language_of(beside, job.prepared.inputs)
            with stages("gate"):
                pairs = None if language is None else Perplexity(language)
                gate = left_float(job, taken) or judge_weights(
                    job, path, language, beside, pairs, last=len(tried) == ATTEMPTS - 1
                )
                beside.release()
            share = raised_share(choices, taken)
            tried.append(Tried(share, taken, rounded, model, path, gate, records))
            fixed = lock is not None or options.plan is not None or len(tried) == ATTEMPTS
            excess = _excess(gate)
            if fixed or excess is None:
                break
            if not apart:
                with stages("find what disturbs"):
                    apart = disturbed(job, few, base, language, stages.reporter.advance)
            keep_share *= AIM / max(1.0, excess)
            raised = able(raise_bits(base, apart, keep_share))
            if raised == taken:
                break
            taken = raised
            if again:
                few, checkpoint = rounded_as(taken)
                fitted = taken
        if engine:
            made = Compressed(tuple(tried), algorithm, tuple(notes), None)
            result = deliver_engine(job, made, peaks, lock, key, stages, output, keep)
            checkpoint.remove()
            return result
        with stages("gate"):
            generation = generated(job, tried[-1].path, tried[-1].gate, language, pairs)
        made = Compressed(tuple(tried), algorithm, tuple(notes), generation, cache, beside, macs)
        result = deliver(
            job,
            lock,
            stages,
            output,
            keep,
            lambda folder: write_weights(folder, job, made, key, stages, output),
        )
        checkpoint.remove()
        return result


def lower(model: oir.Model, rounded: Mapping[str, Rounded], form: WeightForm) -> oir.Model:
    """A copy of the prepared model with its matrices in the form that the target reads."""
    copy = model.clone()
    found = [m for m in find_matrices(copy)[0] if m.name in rounded]
    weights: dict[str, Stored] = {name: r.weight for name, r in rounded.items()}
    columns = {
        name: np.array(r.columns, np.float32)
        for name, r in rounded.items()
        if r.columns is not None
    }
    if columns:
        even = [m for m in found if not isinstance(weights[m.name], CodebookWeight)]
        fold_columns(copy, even, columns, weights)
    if form.dequantized:
        even_grids = {n: w for n, w in weights.items() if not isinstance(w, CodebookWeight)}
        lower_to_dequantize(copy, found, even_grids)
    else:
        lower_weights(copy, found, weights, form.accuracy_level)
    drop_unused(copy)
    return copy


def _with_raised(
    few: Mapping[str, Rounded],
    before: Sequence[MatrixChoice],
    after: Sequence[MatrixChoice],
    disk: Checkpoint,
) -> dict[str, Rounded]:
    """Integers with those of the matrices that got 8 bits replaced; the others stay as they were fitted."""
    old = {c.matrix.name: c for c in before}
    found = dict(few)
    for choice in after:
        name = choice.matrix.name
        if choice.spec is None:
            found.pop(name, None)
        elif choice.spec != old[name].spec:
            found[name] = stored_once(disk, name, partial(round_raised, choice, few[name]))
    return found


def _excess(gate: GateResult) -> float | None:
    """How many times too large the worst error is, None where accuracy is met.

    A drop counts as it is; of an SQNR the energy of the noise counts.
    """
    found = [_too_large(c) for c in gate.failed if c.name in ("accuracy", "metric")]
    return max(found, default=None)


def _too_large(check: Check) -> float:
    if check.found is None or check.limit is None or not math.isfinite(check.found):
        return UNKNOWN
    if check.name == "accuracy" and check.found < check.limit:
        if check.limit > 1:
            return float(min(UNKNOWN, 10 ** ((check.limit - check.found) / 10)))  # dB
        return (1 - check.found) / max(1 - check.limit, 1e-3)  # share of equal elements
    return min(UNKNOWN, check.found / check.limit) if check.limit > 0 else UNKNOWN
