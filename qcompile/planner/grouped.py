"""Sensitivities of a whole model: in one gated session, or group by group where memory is short."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as oir

from qcompile.backends.ort import Feed, open_session
from qcompile.ir.save import save_model
from qcompile.ir.target import Target
from qcompile.passes.quantizable import quantizable
from qcompile.planner.gated import gate, weight_bytes
from qcompile.planner.gated_session import EMULATION, GatedSession, kinds_of, relative_errors
from qcompile.planner.sensitivity import Progress, Sensitivities, measure
from qcompile.planner.units import Unit, units
from qcompile.scratch import scratch_folder

__all__ = ["Measured", "groups_of", "measure_model"]


@dataclass(frozen=True)
class Measured:
    """Sensitivities of a model.

    Attributes:
        sensitivities: of all units.
        session: the gated session, which evaluates any plan; None when groups were needed.
        groups: how many gated graphs it took.
    """

    sensitivities: Sensitivities
    session: GatedSession | None
    groups: int


def groups_of(model: oir.Model, found: Sequence[Unit], memory_limit: int | None) -> list[list[str]]:
    """Origins in groups whose gated graphs are expected to fit ``memory_limit`` bytes.

    The float weights count twice (as read and as packed by the kernels); a group has one unit at
    least, whatever the limit.
    """
    weights = [v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value]
    room = None if memory_limit is None else memory_limit - 2 * sum(weights)
    groups: list[list[str]] = [[]]
    used = 0
    for unit in found:
        needed = weight_bytes(unit)
        if room is not None and groups[-1] and needed and used + needed > room:
            groups.append([])
            used = 0
        groups[-1].append(unit.origin)
        used += needed
    return groups


def measure_model(
    model: oir.Model,
    quantized: oir.Model,
    target: Target,
    samples: Sequence[Feed],
    *,
    threads: int | None = None,
    memory_limit: int | None = None,
    search_time: float | None = None,
    variable_shapes: bool = False,
    custom_ops: Path | None = None,
    leeway: float = 1.0,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Measured:
    """Sensitivity of every unit of a prepared float model.

    Args:
        model: the prepared float model.
        quantized: the same with Q/DQ wherever it can have them (``full_plan``).
        target: its table says what a unit is.
        samples: a few feeds; more take longer and say more.
        threads: inside an operator.
        memory_limit: bytes for the session; above, units are gated in groups.
        search_time: seconds; what was measured until then is kept.
        variable_shapes: the samples differ in shape.
        custom_ops: library with custom operators.
        leeway: see ``GatedSession``.
        progress: called with units done and units to do, times samples.
        clock: seconds, for tests.

    Raises:
        CalibrationError: there is no sample.
        ModelError: ONNX Runtime refuses a graph or a sample.
    """
    start = clock()
    found = units(quantizable(model, target))
    groups = groups_of(model, found, memory_limit)
    total = len(found) * len(samples)
    result = Sensitivities()
    session: GatedSession | None = None
    before = 0
    for index, group in enumerate(groups):
        session = None  # the one before must be gone before the next is opened
        gated = gate(model, quantized, target, only=None if len(groups) == 1 else set(group))
        session = GatedSession(
            gated,
            samples,
            threads=threads,
            variable_shapes=variable_shapes,
            custom_ops=custom_ops,
            alone=memory_limit is not None,
            leeway=leeway,
        )
        left = None if search_time is None else max(0.0, search_time - (clock() - start))
        part = measure(
            session,
            search_time=None if left is None else left / (len(groups) - index),
            progress=_shifted(progress, before, total),
            clock=clock,
        )
        before += len(session.gates) * len(samples)
        result.units.update(part.units)
        result.complete &= part.complete
        result.runs += session.runs
        result.all_integer, result.all_predicted = part.all_integer, part.all_predicted
    if len(groups) > 1 and session is not None:
        reference, session = session.reference, None
        result.all_integer = _emulated(quantized, samples, reference, threads, custom_ops)
        labels = {unit.origin: "int8" for unit in found if unit.static}
        result.all_predicted = result.predict(found, labels)
    result.seconds = clock() - start
    return Measured(result, session, len(groups))


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    report = progress
    return lambda done, _: report(before + done, total)


def _emulated(
    quantized: oir.Model,
    samples: Sequence[Feed],
    reference: Sequence[dict[str, object]],
    threads: int | None,
    custom_ops: Path | None,
) -> float:
    """Error of the quantized model itself, as float arithmetic between its Q and DQ."""
    with scratch_folder() as folder:
        path = folder / "quantized.onnx"
        save_model(quantized, path)
        session = open_session(path, threads=threads, custom_ops=custom_ops, config=EMULATION)
        kinds = kinds_of(reference)
        errors = [
            sum(relative_errors(expected, session.run(feed), kinds).values())
            for expected, feed in zip(reference, samples, strict=True)
        ]
    return sum(errors) / len(errors)
