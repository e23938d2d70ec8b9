"""The calibrate stage: ranges from data, from a file saved before, or from the lock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qcompile.calibrate import calibrate
from qcompile.calibration import Calibration
from qcompile.ir.affine import TensorRange
from qcompile.job import Job
from qcompile.lock import Lock
from qcompile.passes.integer_region import observed_tensors

__all__ = ["Ranges", "find_ranges"]


@dataclass(frozen=True)
class Ranges:
    """What calibration gave.

    Attributes:
        chosen: tensor name -> range.
        calibration: the statistics behind them; None when they were replayed from the lock.
        description: where they come from.
        findings: convergence and clipping, in words.
    """

    chosen: dict[str, TensorRange]
    calibration: Calibration | None
    description: str
    findings: tuple[str, ...] = ()


def find_ranges(
    job: Job, lock: Lock | None, progress: Callable[[float, float | None], None]
) -> Ranges:
    """Ranges of every tensor that can receive a Q under the target.

    Raises:
        CalibrationError: NaN or infinity in a tensor, or a ranges file of another model or data.
    """
    data, options = job.data, job.options
    if lock is not None:
        return Ranges(dict(lock.ranges), None, "ranges replayed from the lock")
    tensors = observed_tensors(job.prepared.sites)
    if options.ranges is not None:
        loaded = Calibration.load(
            options.ranges, model_sha256=job.prepared.loaded.sha256, data_sha256=data.sha256
        )
        return Ranges(loaded.ranges(), loaded, f"ranges reused from {options.ranges.name}")
    choosing = options.method != "auto" or options.uses("range-choice")
    method = options.method if choosing else "minmax"
    found = calibrate(
        job.prepared.model,
        tensors,
        data.calibration,
        spec=job.prepared.target.activation,
        method=method,
        threads=options.threads or 0,
        memory_limit=options.memory_limit,
        seed=options.seed,
        progress=progress,
        custom_ops=options.custom_ops,
    )
    found.model_sha256 = job.prepared.loaded.sha256
    found.data_sha256 = data.sha256
    kept, gate = len(data.calibration), len(data.held)
    text = f"{data.calibration.description}; {kept} calibrate, {gate} held back for the gate"
    return Ranges(found.ranges(), found, text, found.findings())
