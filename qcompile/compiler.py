"""The whole flow: load, prepare, calibrate, plan, quantize, lower, gate, report."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qcompile.artifact import writable
from qcompile.attempts import pass_gate
from qcompile.backends.ort import check_runtime
from qcompile.backends.tables import get_target
from qcompile.build import Builder
from qcompile.cache_scales import check_target
from qcompile.checkpoint import progress_folder, tell_matrices
from qcompile.even_out import even_out
from qcompile.finish import deliver
from qcompile.float_ahead import opened_early
from qcompile.ir.save import save_model
from qcompile.job import Job, doubted, gather, start_plan
from qcompile.learned import find_learned
from qcompile.lock import Lock
from qcompile.memory import room_for
from qcompile.options import Options, make_options
from qcompile.planner.search import search
from qcompile.planner.stored_tables import store_tables
from qcompile.portable_flow import compile_portable, portable_builder
from qcompile.prepare import Prepared, prepare
from qcompile.range_choice import choose_ranges
from qcompile.rangeless import leave_float
from qcompile.ranges import Ranges, find_ranges
from qcompile.reporter import Reporter, Silent
from qcompile.result import CompileResult
from qcompile.retrain import carried_options, open_base
from qcompile.reuse import fingerprint, locked, up_to_date
from qcompile.runnable import keep_runnable
from qcompile.scratch import remove_abandoned, scratch_folder, scratch_root
from qcompile.selected import expose
from qcompile.stages import Stages
from qcompile.state import with_state
from qcompile.unfinished import Unfinished
from qcompile.weights_flow import compile_weights
from qcompile.write import write_artifact

__all__ = ["compile", "compile_with"]


def compile(model: Any, **options: Any) -> CompileResult:
    """Compile an ONNX model and deliver it if it is valid, as fast and as accurate as asked.

    Args:
        model: path, bytes, ``onnx.ModelProto`` or ``onnx_ir.Model``.
        options: fields of ``qcompile.options.Options``; limits may be text with units
            (``max_drop="0.5pt"``). ``progress`` may be a ``Reporter``.

    Returns:
        The result, also when nothing was delivered; ``result.check()`` raises then.

    Raises:
        QCompileError: bad input or options, or a runtime that is missing.

    Example:
        ``qcompile.compile("model.onnx", calibration=batches, max_drop="1%", metric=top1).check()``
    """
    reporter = options.pop("progress", None)
    return compile_with(model, make_options(**options), reporter)


def compile_with(source: Any, options: Options, reporter: Reporter | None = None) -> CompileResult:
    """Compile with a complete record of options; see ``compile``."""
    check_runtime()
    stages = Stages(reporter or Silent())
    options = carried_options(options)
    target = get_target(options.target, options.device).with_rest(options.rest)
    target = target.preferring(options.prefer)
    if options.kv_cache != "float":
        check_target(target)
    keep, output = _output(source, options)
    writable(output, options.force)
    remove_abandoned()
    form = None if target.portable else target.weights
    with scratch_folder() as work, opened_early(source, options, form) as opened:
        with stages("load and prepare"):
            prepared = prepare(source, target, options, work)
        with stages("read data"):
            data = gather(prepared, options)
        data = doubted(prepared, data, options, work)
        key = fingerprint(prepared, data, options)
        previous = up_to_date(output, key, options)
        if previous is not None:
            return previous
        job = Job(prepared, data, options, *_float_files(source, prepared, work))
        if target.weights is not None and not target.portable:
            room = room_for(prepared.loaded.model, options.memory_limit)
            job = replace(job, room=room, opened=opened)
        job = with_state(job)
        if options.base is not None:
            base = open_base(options.base)
            base.check(prepared)
            job = replace(job, base=base)
        lock = locked(options, output, key)
        if target.weights is not None:
            with tell_matrices(progress_folder(output)):
                return compile_weights(job, target.weights, lock, key, stages, output, keep)
        folder = None if lock is not None or keep is not None else progress_folder(output)
        with Unfinished.begin(folder, key, stages.reporter) as done:
            return _compile_static(job, lock, key, stages, output, keep, done)


def _compile_static(
    job: Job,
    lock: Lock | None,
    key: dict[str, Any],
    stages: Stages,
    output: Path,
    keep: object,
    done: Unfinished,
) -> CompileResult:
    """From calibration on, with ``done`` of an interrupted compile."""
    target = job.prepared.target
    with stages("calibrate"):
        ranges = done.ranges(lambda: find_ranges(job, lock, stages.reporter.advance))
        job = leave_float(job, ranges.calibration)
    with stages("even out"):
        make = portable_builder if target.portable else ort_builder
        plan = start_plan(job, ranges.chosen, lock)
        job, ranges = done.evened(
            job,
            ranges,
            partial(even_out, job, ranges, plan, lock, make, stages.reporter.advance),
        )
        job = leave_float(job, ranges.calibration)
        if job.base is not None and ranges.calibration is not None:
            ranges = replace(ranges, chosen=job.base.ranges(ranges.calibration))
    if target.portable:
        return compile_portable(job, ranges, lock, key, stages, output, keep)
    with stages("learn"):
        plan = start_plan(job, ranges.chosen, lock)
        learned = done.learned(
            job,
            partial(find_learned, job, ranges.chosen, plan, lock, stages.reporter.advance, output),
        )
    with stages("plan"):
        builder = replace(ort_builder(job, ranges), learned=learned)
        replay = lock is not None or job.base is not None
        if not replay:
            job, plan = keep_runnable(job, builder, plan)
        if job.base is None:
            with stages.parts("range estimators"):
                ranges, builder = choose_ranges(job, ranges, builder, plan, stages.reporter.advance)
        if not replay:
            with stages.parts("tables"):
                plan = store_tables(job, builder, plan)
        found = search(
            job,
            builder,
            plan,
            replay=replay,
            reporter=stages.reporter,
            watch=stages.parts,
            remember=done.costs,
        )
    with stages("gate"):
        taken, verdict = pass_gate(job, found, builder, stages.reporter)
    return deliver(
        job,
        lock,
        stages,
        output,
        keep,
        lambda folder: write_artifact(
            folder, job, ranges, found, taken, verdict, key, stages, output
        ),
    )


def ort_builder(job: Job, ranges: Ranges) -> Builder:
    """A builder of the job's model, with nothing learned."""
    return Builder(
        job.prepared.model,
        job.prepared.target,
        ranges.chosen,
        job.work,
        frozenset(job.options.disable),
        given=job.prepared.given,
    )


def _output(source: Any, options: Options) -> tuple[object, Path]:
    """The folder to write; a temporary one for models that have no file."""
    if options.output is not None:
        return None, options.output
    if isinstance(source, (str, Path)):
        path = Path(source)
        return None, path.with_name(f"{path.stem}.{options.target}")
    held = tempfile.TemporaryDirectory(dir=scratch_root(), ignore_cleanup_errors=True)
    return held, Path(held.name) / options.target


def _float_files(source: Any, prepared: Prepared, work: Path) -> tuple[Path, Path, Path | None]:
    """The base of every comparison as a file, the folder, and what outputs must equal instead.

    A model that comes with Q/DQ is what the outputs must equal; what the artifact must beat is the
    same network in float, as if it had not been trained for quantization. Of a model that ends in a
    selection it is a copy that gives out what is selected from.
    """
    on_disk = isinstance(source, (str, Path))
    path = Path(source) if on_disk else work / "float.onnx"
    if prepared.selected.before:
        path = work / path.name
        exposed = prepared.loaded.model.clone()
        expose(exposed, prepared.selected.before)
        save_model(exposed, path)
    elif not on_disk:
        save_model(prepared.loaded.model, path)
    if not prepared.given:
        return path, work, None
    lifted = work / "lifted.onnx"
    save_model(prepared.model, lifted)
    return lifted, work, path
