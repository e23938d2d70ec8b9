"""`qcompile profile`: measures a model's costs on this machine, to be used by a compile elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from qcompile.artifact import PORTABLE
from qcompile.backends.ort import check_runtime
from qcompile.backends.tables import get_target
from qcompile.build import Builder
from qcompile.calibrate import calibrate
from qcompile.calibration import Calibration
from qcompile.data.inputs import Feed, InputSpec
from qcompile.float_form import float_form
from qcompile.ir.errors import CalibrationError, ModelError, TargetError
from qcompile.ir.load import load_model
from qcompile.ir.save import save_model
from qcompile.job import Data, Job, gather
from qcompile.options import Options
from qcompile.passes.integer_region import observed_tensors
from qcompile.planner.costing import job_costs
from qcompile.planner.costs import Costs
from qcompile.prepare import prepare
from qcompile.rangeless import computed_tensors, leave_float
from qcompile.scratch import scratch_folder
from qcompile.subject import open_subject, stored_samples

__all__ = ["batched", "profile"]

SECONDS = 20.0


def profile(
    source: Path,
    options: Options,
    *,
    batch: int | None = None,
    seconds: float = SECONDS,
    progress: Callable[[float], None] | None = None,
) -> Costs:
    """Costs of a model, or of the model that an artifact was compiled from, on this machine.

    Args:
        source: a float model, or the folder of an artifact: its portable model holds the same
            layers, so nothing else need travel to the device.
        options: target, calibration, preprocess, threads, custom_ops, seed. Without calibration an
            artifact's stored samples are used; speed hardly depends on values.
        batch: samples in a call, for models whose first axis is free.
        seconds: for the measurement.
        progress: told the share of the work done.

    Raises:
        TargetError: the target does not run in ONNX Runtime.
        ModelError: the source cannot be read, or an artifact holds no portable model.
        CalibrationError: samples that do not fit, or a batch that the model cannot have.
    """
    check_runtime()
    target = get_target(options.target, options.device)
    if target.portable:
        raise TargetError(
            f"{target.name} does not run in ONNX Runtime here; deploy/device.py of its artifact "
            "measures on the device"
        )
    with scratch_folder() as work:
        model, original = source, True
        if source.is_dir():
            model, original = _inside(source, work), False
            if options.calibration is None:
                options = replace(options, calibration=stored_samples(source) or None)
        prepared = prepare(model, target, options)
        job = Job(prepared, gather(prepared, options), options, model, work)
        feeds = job.data.selection()
        if batch is not None:
            feeds = [batched(feed, prepared.inputs, batch) for feed in feeds]
        found = _observed(job, job.data)
        job = leave_float(job, found)
        builder = Builder(prepared.model, target, dict(found.ranges()), work)
        costs = job_costs(job, builder, feeds, budget_s=seconds, progress=progress)
        if original:
            return costs
        # the model that was timed as the user's is one that was put together here
        totals = {name: ns for name, ns in costs.totals_ns.items() if name != "original"}
        return replace(costs, totals_ns=totals)


def _inside(folder: Path, work: Path) -> Path:
    """The float model of an artifact's portable one, as a file."""
    subject = open_subject(folder)
    if subject.layered.name != PORTABLE:
        raise ModelError(f"'{folder}' holds no {PORTABLE}; give the float model.onnx instead")
    path = work / "float.onnx"
    save_model(float_form(load_model(subject.layered).model), path)
    return path


def _observed(job: Job, data: Data) -> Calibration:
    """Minima and maxima of a few samples: kernels take the same time whatever the scales are."""
    few = data.calibration.subset(range(min(2, len(data.calibration))))
    return calibrate(
        job.prepared.model,
        observed_tensors(job.prepared.sites),
        few,
        spec=job.prepared.target.activation,
        method="minmax",
        threads=job.options.threads or 0,
        memory_limit=job.options.memory_limit,
        seed=job.options.seed,
        custom_ops=job.options.custom_ops,
        without_nan=computed_tensors(job.prepared.sites),
    )


def batched(feed: Feed, specs: tuple[InputSpec, ...], batch: int) -> Feed:
    """A feed of ``batch`` samples, repeated from one that has fewer.

    Raises:
        CalibrationError: ``batch`` is below 1, or no input has a free first axis.
    """
    free = {spec.name for spec in specs if spec.batch_is_free}
    if batch < 1:
        raise CalibrationError(f"--batch {batch} must be at least 1")
    if not free:
        shapes = ", ".join(str(spec) for spec in specs)
        raise CalibrationError(
            f"--batch {batch}: no input has a free first axis ({shapes}); "
            "export the model with a dynamic batch, or leave --batch out"
        )
    return {
        name: np.resize(value, (batch, *value.shape[1:])) if name in free else value
        for name, value in feed.items()
    }
