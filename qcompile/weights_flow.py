"""The flow for weight-only targets: constant matrices become integers of few bits, activations stay float.

Choose bits for each matrix, round (with what the layer reads, where data are given), lower to
MatMulNBits and its kin, judge like every other target. Where the result is not accurate enough, the
matrices that disturb the output most get 8 bits, and the gate judges again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as oir

from qcompile.artifact import LOCK, new_artifact
from qcompile.backends.ort import open_session
from qcompile.backends.ort_bits import has_bits
from qcompile.backends.ort_nbits import Stored, lower_weights
from qcompile.balance_inputs import fold_columns
from qcompile.checkpoint import Checkpoint, progress_folder
from qcompile.data.text import token_input
from qcompile.gate import judge
from qcompile.ir.codebook import CodebookWeight
from qcompile.ir.errors import BackendMissingError
from qcompile.ir.graph import drop_unused
from qcompile.ir.matrices import find_matrices
from qcompile.ir.notes import Note
from qcompile.ir.save import save_model
from qcompile.ir.target import WeightForm
from qcompile.job import Job
from qcompile.language import Generation, compare_generation, logits_output, perplexity_metric
from qcompile.limits import Limits
from qcompile.lock import Lock
from qcompile.result import CompileResult
from qcompile.round_weights import Rounded, round_matrices
from qcompile.scores import Metric
from qcompile.stages import Stages
from qcompile.units import Drop
from qcompile.verdict import GateResult
from qcompile.weights_plan import MatrixChoice, as_plan, choose_matrices, follow_plan, raise_bits
from qcompile.weights_write import write_weights

__all__ = ["Compressed", "compile_weights"]

RAISED = (0.0, 1 / 16, 1 / 8, 1 / 4)
"""Shares of the elements in few bits that get 8 bits, attempt after attempt, until accuracy is met."""

PERPLEXITY_DROP = Drop(0.03, relative=True)
"""Allowed for perplexity where the user says nothing."""


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
    """

    share: float
    choices: list[MatrixChoice]
    rounded: Mapping[str, Rounded]
    model: oir.Model
    path: Path
    gate: GateResult


@dataclass(frozen=True)
class Compressed:
    """A model with integer weights and all that is known about it.

    Attributes:
        tried: attempts in order; the last one is taken.
        algorithm: how weights were rounded.
        notes: matrices that were left alone, and why.
        generation: how it generates, for language models.
    """

    tried: tuple[Tried, ...]
    algorithm: str
    notes: tuple[Note, ...]
    generation: Generation | None

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
    matrices, notes = find_matrices(job.prepared.model)
    choices = follow_plan(
        choose_matrices(matrices, form, options), options, None if lock is None else lock.plan
    )
    bits = options.bits or form.bits
    if not form.codebook and not has_bits(bits):
        raise BackendMissingError(
            f"this ONNX Runtime has no MatMulNBits for weights of {bits} bits; "
            "install a newer one, or use --bits 4"
        )
    algorithm = options.algorithm
    if algorithm == "auto":
        algorithm = "rtn" if job.data.random or form.codebook else "gptq"
    first: Mapping[str, Rounded] = {}
    tried: list[Tried] = []
    fixed = lock is not None or options.plan is not None
    for share in RAISED[:1] if fixed else RAISED:
        taken = raise_bits(choices, _errors(first), share) if share else choices
        if share and taken == tried[-1].choices:
            break
        with stages("round weights"):
            kept = job.work / "rounded" if keep is not None else progress_folder(output)
            checkpoint = Checkpoint(kept, key, as_plan(taken).to_json())
            rounded = round_matrices(job, taken, algorithm, stages.reporter.advance, checkpoint)
            first = first or rounded
        with stages("lower"):
            path = job.work / f"weights{len(tried)}.onnx"
            model = lower(job.prepared.model, rounded, form)
            save_model(model, path)
        with stages("gate"):
            gate = _judge(job, path)
        tried.append(Tried(share, taken, rounded, model, path, gate))
        if not {check.name for check in gate.failed} & {"accuracy", "metric"}:
            break
    best = tried[-1]
    with stages("gate"):
        generation = _generation(job, best)
    made = Compressed(tuple(tried), algorithm, tuple(notes), generation)
    with stages("write"), new_artifact(output, options.force) as folder:
        report, code = write_weights(folder, job, made, key, stages, output)
        if lock is not None:
            lock.check_outputs(report.data["hashes"], options.lock or Path(LOCK))
    checkpoint.remove()
    return CompileResult(report, output, code, keep=keep)


def lower(model: oir.Model, rounded: Mapping[str, Rounded], form: WeightForm) -> oir.Model:
    """A copy of the prepared model with its matrices in the runtime's own operators."""
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
    lower_weights(copy, found, weights, form.accuracy_level)
    drop_unused(copy)
    return copy


def _errors(rounded: Mapping[str, Rounded]) -> dict[str, float]:
    """Error of each layer's output where inputs were seen, else of the weights themselves."""
    return {
        name: 10 ** (-r.sqnr_db / 10) if r.error is None else r.error for name, r in rounded.items()
    }


def _judge(job: Job, path: Path) -> GateResult:
    options, data = job.options, job.data
    metric, limits = _language_metric(job)
    return judge(
        job.float_path,
        path,
        list(data.held),
        limits,
        metric=metric,
        names=data.held.names,
        slices=options.slices,
        extremes=data.extremes(),
        threads=options.threads,
        budget_s=options.gate_time,
        custom_ops=options.custom_ops,
    )


def _generation(job: Job, taken: Tried) -> Generation | None:
    """Beside float, for a model that runs."""
    if any(check.name in ("opens", "runs") for check in taken.gate.failed):
        return None
    return compare_generation(
        job.float_path,
        taken.path,
        job.prepared.inputs,
        list(job.data.held),
        threads=job.options.threads,
    )


def _language_metric(job: Job) -> tuple[Metric | None, Limits]:
    """The user's metric, else perplexity on the held-back text of a language model."""
    limits, options = job.limits(), job.options
    if job.data.metric is not None or options.tokenizer is None:
        return job.data.metric, limits
    session = open_session(job.float_path, threads=options.threads, custom_ops=options.custom_ops)
    logits, tokens = (
        logits_output(session, job.prepared.inputs),
        token_input(job.prepared.inputs),
    )
    if logits is None or tokens is None:
        return None, limits
    metric = perplexity_metric(list(job.data.held), tokens.name, logits)
    return metric, replace(limits, max_drop=options.max_drop or PERPLEXITY_DROP)
