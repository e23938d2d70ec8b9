"""The learn stage: integer weights and bias shifts from data, or as the lock recorded them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qcompile.artifact import LOCK, file_sha256
from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import OptionError
from qcompile.ir.notes import Note
from qcompile.ir.plan import INT8, INT8_DYNAMIC, PrecisionPlan
from qcompile.job import Job
from qcompile.learned_file import LEARNED, read_learned
from qcompile.learning import Learned, Method, learn_weights
from qcompile.lock import Lock

__all__ = ["find_learned"]


@dataclass(frozen=True)
class _Effort:
    method: Method
    samples: int
    seconds: float
    sweeps: int


EFFORTS = {
    "fast": _Effort("nearest", 16, 5.0, 0),
    "default": _Effort("rounding", 32, 20.0, 2),
    "max": _Effort("rounding", 64, 120.0, 8),
}


def find_learned(
    job: Job,
    ranges: Mapping[str, TensorRange],
    plan: PrecisionPlan,
    lock: Lock | None,
    progress: Callable[[float, float | None], None],
    output: Path,
) -> Learned:
    """Integer weights and bias shifts for all that ``plan`` makes integer.

    ``--techniques`` says which of rounding, weight ranges and bias shifts are learned;
    ``--disable learn-weights`` keeps the nearest integers, ``--disable correct-bias`` the biases.

    Raises:
        OptionError: the lock speaks of learned weights that lie nowhere.
    """
    options = job.options
    if lock is not None:
        return _locked(job, lock, output)
    if job.prepared.target.precision != INT8:
        return Learned(notes=(Note("", "nothing learned: only integers are"),))
    if job.data.random:
        return Learned(notes=(Note("", "nothing learned: the data are random"),))
    effort = EFFORTS[options.effort]
    able = effort.method == "rounding" and "learn-weights" not in options.disable
    rounding = able and options.uses("learned-rounding")
    weight_ranges = able and options.uses("weight-ranges")
    shift = options.uses("bias-correction") and "correct-bias" not in options.disable
    if not (rounding or weight_ranges or shift):
        return Learned()
    feeds, judges = job.data.teaching(effort.samples)
    return learn_weights(
        job.prepared.model,
        job.prepared.target,
        ranges,
        _static(plan),
        feeds,
        work=job.work,
        held=judges,
        method="rounding" if rounding else "nearest",
        weight_ranges=weight_ranges,
        shift_biases=shift,
        time_budget_s=effort.seconds,
        memory_limit=None if options.memory_limit is None else options.memory_limit // 4,
        seed=options.seed,
        sweeps=effort.sweeps,
        threads=options.threads,
        progress=progress,
        custom_ops=options.custom_ops,
        given=job.prepared.given,
    )


def _static(plan: PrecisionPlan) -> PrecisionPlan:
    """Layers that quantize their activation at run time read the same integer weights."""
    return PrecisionPlan(
        tuple(
            replace(layer, precision=INT8, pinned=False)
            if layer.precision == INT8_DYNAMIC
            else layer
            for layer in plan.layers
        )
    )


def _locked(job: Job, lock: Lock, output: Path) -> Learned:
    if not lock.learned:
        return Learned()
    places = [output / LEARNED]
    path = job.options.lock or Path(LOCK)
    places.append(path.with_name(LEARNED))
    for place in places:
        if place.is_file() and file_sha256(place) == lock.learned:
            return read_learned(place, job.prepared.model)
    listed = " nor ".join(f"'{p}'" for p in places)
    raise OptionError(
        f"--locked: the lock speaks of learned weights (sha256 {lock.learned[:12]}), which are neither "
        f"{listed}; keep {LEARNED} of the artifact beside the lock"
    )
