"""Weight-only targets whose engine a device builds: what its builder takes, and how they are delivered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as oir

from qcompile.build import Build
from qcompile.calibrators.exact_grid import lies_on_grid
from qcompile.finish import deliver
from qcompile.ir.affine import TensorRange
from qcompile.ir.blocks import BlockSpec
from qcompile.ir.errors import OptionError, TargetError
from qcompile.ir.graph import default_opset
from qcompile.ir.manager import CompileState, PassManager, PassRecord
from qcompile.ir.save import save_model
from qcompile.ir.target import WeightForm
from qcompile.job import Job
from qcompile.lock import Lock
from qcompile.passes.cast_half import CastHalf
from qcompile.passes.widen_bf16 import WidenBf16
from qcompile.planner.by_groups import Tried
from qcompile.portable_flow import Portable, engine_of, job_peaks, with_engine
from qcompile.portable_write import write_portable
from qcompile.ranges import Ranges
from qcompile.result import CompileResult
from qcompile.stages import Stages
from qcompile.weights_plan import SAMPLED, MatrixChoice, as_plan
from qcompile.weights_write import how_rounded, matrix_rows

if TYPE_CHECKING:
    from qcompile.weights_flow import Compressed

__all__ = ["check_opset", "deliver_engine", "engine_choices", "engine_peaks", "save_for_engine"]


def check_opset(job: Job) -> None:
    """Blocks and INT4 need an opset that not every model can be upgraded to.

    Raises:
        TargetError: this one stayed below it.
    """
    target, have = job.prepared.target, default_opset(job.prepared.model)
    if have < target.qdq_opset:
        raise TargetError(
            f"{target.name} needs opset {target.qdq_opset} (INT4 in blocks), and the model stays at {have}: "
            "an operator of it cannot be upgraded, or --min-ort's runtime reads no newer one; "
            "export it anew, or use --target tensorrt-fp16"
        )


def engine_choices(choices: Sequence[MatrixChoice], form: WeightForm) -> list[MatrixChoice]:
    """The choices on grids that the builder fuses with their products; what it does not fuse stays float.

    Raises:
        OptionError: it stores no such number of bits.
    """
    return [_fused(choice, form) for choice in choices]


def _fused(choice: MatrixChoice, form: WeightForm) -> MatrixChoice:
    spec, matrix = choice.spec, choice.matrix
    if spec is None:
        return choice
    if spec.bits not in (4, 8):
        raise OptionError(
            f"TensorRT stores weights in 4 or 8 bits, not in {spec.bits}; use --bits 4"
        )
    out, width = matrix.shape
    if matrix.looked_up:
        return _float(choice, "rows of it are looked up, and a lookup reads no integers")
    if len(matrix.uses) > 1:
        return _float(choice, f"{len(matrix.uses)} layers read it: it would be a kernel of its own")
    if spec.bits == 8:
        whole = 1 << max(4, (width - 1).bit_length())
        wide = BlockSpec(8, whole, symmetric=True, positive=True)
        return replace(choice, spec=wide, on_grid=False)
    if out % 2:
        return _float(choice, f"{out} outputs are an odd number: INT4 lies two a byte")
    fit = [b for b in form.blocks if b <= spec.block and b < width and width % b == 0]
    if not fit:
        return _float(choice, f"no block up to {spec.block} divides its {width} inputs")
    even = BlockSpec(4, max(fit), symmetric=True, positive=True)
    kept = choice.on_grid and lies_on_grid(matrix.some_rows(SAMPLED), even)
    return replace(choice, spec=even, on_grid=kept)


def _float(choice: MatrixChoice, reason: str) -> MatrixChoice:
    return replace(choice, spec=None, codebook=False, reason=reason)


def engine_peaks(job: Job) -> dict[str, TensorRange]:
    """Largest values of all tensors, where the rest becomes float16."""
    if job.prepared.target.rests[0] != "fp16":
        return {}
    return job_peaks(job)


def save_for_engine(
    job: Job, model: oir.Model, peaks: Mapping[str, TensorRange], path: Path
) -> tuple[PassRecord, ...]:
    """Give what stays float the target's type, in place; a form that runs here goes to ``path``."""
    target = job.prepared.target
    state = CompileState(model, target, ranges=dict(peaks))
    manager = PassManager(
        [] if target.rests[0] == "fp32" else [CastHalf(target.rests[0])],
        frozenset(job.options.disable),
    )
    manager.run(state)
    runnable = CompileState(state.model.clone(), target)
    PassManager([WidenBf16()]).run(runnable)
    save_model(runnable.model, path)
    return tuple(manager.records)


def deliver_engine(
    job: Job,
    made: Compressed,
    peaks: Mapping[str, TensorRange],
    lock: Lock | None,
    key: Mapping[str, Any],
    stages: Stages,
    output: Path,
    keep: object,
) -> CompileResult:
    """Build ahead of time where that is possible, and write what the device needs."""
    taken, target = made.taken, job.prepared.target
    plan = as_plan(taken.choices)
    build = Build(plan, taken.model, taken.model, taken.path, taken.records, made.notes)
    with stages("check engine"):
        profile = job.data.profile()
        engine = engine_of(job, build, profile)
    gate = with_engine(job, taken.gate, engine)
    baseline = None
    if target.rests[0] != "fp32":
        baseline = job.prepared.model.clone()
        save_for_engine(job, baseline, peaks, job.work / "baseline.onnx")
    tried = tuple(
        Tried(how_rounded(made.algorithm, t.choices), as_plan(t.choices), t.gate.sqnr_db)
        for t in made.tried
    )
    portable = Portable(build, tried, profile, engine, gate, baseline)
    ranges = Ranges({}, None, job.data.calibration.description)
    more = {"matrices": matrix_rows(made)}
    return deliver(
        job,
        lock,
        stages,
        output,
        keep,
        lambda folder: write_portable(folder, job, ranges, portable, key, stages, output, more),
    )
