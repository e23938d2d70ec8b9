"""The calibrate stage: ranges from data, from a file saved before, or from the lock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcompile.calibrate import calibrate
from qcompile.calibration import Calibration
from qcompile.given_ranges import read_given_ranges
from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import CalibrationError
from qcompile.job import Job
from qcompile.lock import Lock
from qcompile.passes.integer_region import observed_tensors
from qcompile.passes.observe_tensors import same_values
from qcompile.passes.quantizable import static_sites
from qcompile.rangeless import computed_tensors

__all__ = ["Ranges", "find_ranges"]


@dataclass(frozen=True)
class Ranges:
    """What calibration gave.

    Attributes:
        chosen: tensor name -> range.
        calibration: the statistics behind them; None when they were replayed from the lock.
        description: where they come from.
        findings: convergence and clipping, in words.
        foreign: another tool measured all of them, so that no sample was needed.
        observed: the statistics before channels were scaled; None where none were.
    """

    chosen: dict[str, TensorRange]
    calibration: Calibration | None
    description: str
    findings: tuple[str, ...] = ()
    foreign: bool = False
    observed: Calibration | None = None

    def save(self, path: Path) -> None:
        """Write the statistics of the unscaled model, which another compile can start from."""
        known = self.observed or self.calibration
        if known is not None:
            known.save(path)


def find_ranges(
    job: Job, lock: Lock | None, progress: Callable[[float, float | None], None]
) -> Ranges:
    """Ranges of every tensor that can receive a Q under the target.

    Raises:
        CalibrationError: NaN where a layer with multiply-adds reads or writes, or a ranges file
            of another model or other data.
    """
    data, options = job.data, job.options
    if lock is not None:
        return Ranges(dict(lock.ranges), None, "ranges replayed from the lock")
    tensors = observed_tensors(job.prepared.sites)
    given = None if options.ranges is None else read_given_ranges(options.ranges)
    if given is not None:
        return _given(job, tensors, given, progress)
    if options.ranges is not None:
        loaded = Calibration.load(
            options.ranges, model_sha256=job.prepared.loaded.sha256, data_sha256=data.sha256
        )
        return Ranges(loaded.ranges(), loaded, f"ranges reused from {options.ranges.name}")
    return _measured(job, tensors, progress)


def _given(
    job: Job,
    tensors: Sequence[str],
    given: Mapping[str, TensorRange],
    progress: Callable[[float, float | None], None],
) -> Ranges:
    """Ranges of another tool for the tensors that it names; the others are measured."""
    path = job.options.ranges
    same = same_values(job.prepared.model, tensors)
    chosen = {}
    for name in tensors:
        key = name if name in given else same.get(name, "")
        if key in given:
            chosen[name] = given[key]
    if not chosen:
        theirs = ", ".join(list(given)[:3])
        raise CalibrationError(
            f"'{path}' names none of the {len(tensors)} tensors that need a range (it has {theirs}, "
            f"..., the model {', '.join(tensors[:3])}, ...); it belongs to another model"
        )
    # Where kernels write float, an output of which nothing 8-bit reads needs none.
    needed = {
        name
        for site in static_sites(job.prepared.sites)
        for name in (
            *site.activation_names,
            *(site.output_names if site.row is None or site.row.quantized_output else ()),
        )
    }
    missing = [name for name in tensors if name in needed and name not in chosen]
    text = f"ranges of {len(chosen)} tensors from {'' if path is None else path.name}"
    if not missing:
        return Ranges(chosen, None, text, foreign=True)
    found = _measured(job, missing, progress)
    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    note = f"{len(missing)} tensors stand not in the file and were measured: {shown}"
    return Ranges({**found.chosen, **chosen}, None, text, (note, *found.findings))


def _measured(
    job: Job, tensors: Sequence[str], progress: Callable[[float, float | None], None]
) -> Ranges:
    data, options = job.data, job.options
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
        without_nan=computed_tensors(job.prepared.sites),
    )
    found.model_sha256 = job.prepared.loaded.sha256
    found.data_sha256 = data.sha256
    kept, gate = len(data.calibration), len(data.held)
    text = f"{data.calibration.description}; {kept} calibrate, {gate} held back for the gate"
    return Ranges(found.ranges(), found, text, found.findings())
