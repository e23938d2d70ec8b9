"""Runs any plan of a gated graph and says how far its outputs are from float."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.backends.ort import Feed, Session, open_session
from qcompile.channel_groups import ChannelSums, Indices
from qcompile.cores import Crew
from qcompile.ir.errors import CalibrationError
from qcompile.ir.plan import INT8, INT8_DYNAMIC
from qcompile.ir.save import save_model
from qcompile.planner.gated import Gate, Gated
from qcompile.scratch import scratch_folder

__all__ = [
    "EMULATION",
    "WORST_ERROR",
    "GatedSession",
    "Kinds",
    "kinds_of",
    "mean_signals",
    "relative_errors",
]

WORST_ERROR = 1e6
"""Stands for an output that is NaN, infinite or of another shape."""

EMULATION = {"session.disable_quant_qdq": "1"}
"""Keeps ONNX Runtime from turning Q/DQ into integer kernels: rounding stays, arithmetic is float."""

Plan = Mapping[str, str] | Collection[str]
"""origin -> label, or the origins that are int8; all others are float."""

Kinds = Mapping[str, Sequence[tuple[int, Indices]]]
"""Float output -> axis and channels of each kind, where magnitudes differ by orders."""


class GatedSession:
    """One ONNX Runtime session that is every plan of a gated graph, with samples to judge it on.

    Attributes:
        gates: origin -> gate, in graph order.
        samples: the feeds.
        runs: how many inferences were made.
        crew: runs them beside each other; it must not be asked from within what it runs.
        kinds: channels of outputs that count as outputs of their own.
        leeway: how much of their error counts beside that of whole outputs.
    """

    def __init__(
        self,
        gated: Gated,
        samples: Sequence[Feed],
        *,
        threads: int | None = None,
        variable_shapes: bool = False,
        custom_ops: Path | None = None,
        alone: bool = False,
        leeway: float = 1.0,
    ) -> None:
        """Open the graph and run the samples once in float.

        Args:
            gated: the graph.
            samples: feeds.
            threads: shared by the inferences that run beside each other.
            variable_shapes: the samples differ in shape.
            custom_ops: library with custom operators.
            alone: one inference at a time, which takes the least memory.
            leeway: share of their error that counts of kinds of channels, which need less than the
                whole output.

        Raises:
            CalibrationError: there is no sample.
            ModelError: ONNX Runtime refuses the graph or a sample.
        """
        if not samples:
            raise CalibrationError("sensitivity needs at least one sample, and there is none")
        self.gates: dict[str, Gate] = gated.gates
        self.samples = list(samples)
        self.runs = 0
        self.leeway = leeway
        self.crew = Crew(threads, alone=alone)
        self._counting = Lock()
        self._flags = gated.flags
        self._count = gated.count
        # A file, because protobuf holds no more than 2 GB; it may go once the session is open.
        with scratch_folder() as folder:
            path = folder / "gated.onnx"
            save_model(gated.model, path)
            self._session: Session = open_session(
                path,
                threads=self.crew.threads,
                variable_shapes=variable_shapes,
                custom_ops=custom_ops,
                config=EMULATION,
            )
        self.reference = self.crew.map(lambda feed: self.run((), feed), self.samples)
        self.kinds = kinds_of(self.reference)
        self._signals = mean_signals(self.reference, self.kinds)

    def flags(self, plan: Plan, writes: Mapping[str, bool] | None = None) -> npt.NDArray[np.bool_]:
        """The vector of flags of a plan.

        Args:
            plan: labels of the units; what the graph does not gate is ignored.
            writes: origin -> whether its int8 form rounds what it writes, where that shall differ
                from what Q/DQ insertion does with this plan.
        """
        labels = plan if isinstance(plan, Mapping) else dict.fromkeys(plan, INT8)
        forced = writes or {}
        found = np.zeros(self._count, dtype=np.bool_)
        for name, gate in self.gates.items():
            label = labels.get(name)
            if label == INT8 and gate.static:
                found[gate.rounded] = True
                if gate.written is not None:
                    usual = gate.unit.writes_always or any(
                        labels.get(reader) == INT8 for reader in gate.unit.readers
                    )
                    found[gate.written] = forced.get(name, usual)
            elif label == INT8_DYNAMIC and gate.dynamic is not None:
                found[[gate.rounded, gate.dynamic]] = True
        return found

    def run(
        self, plan: Plan, feed: Feed, writes: Mapping[str, bool] | None = None
    ) -> dict[str, Any]:
        """The raw outputs of a plan, for a metric of one's own; see ``flags``."""
        with self._counting:
            self.runs += 1
        if not self._count:
            return self._session.run(feed)
        return self._session.run({**feed, self._flags: self.flags(plan, writes)})

    def evaluate_plan(self, plan: Plan, *, samples: int | None = None) -> float:
        """Relative error energy of a plan: summed over float outputs, averaged over samples."""
        count = len(self.samples[:samples])
        return float(np.mean(self.crew.map(lambda i: self.sample_error(plan, i), range(count))))

    def worst_error(self, plan: Plan) -> float:
        """Relative error energy of the worst float output over all samples, as a limit in dB means it.

        Noise and signal are summed over the samples before they are divided, so that a sample in
        which an output is nearly silent does not decide. That of a whole output counts in full.
        Without float outputs, ``evaluate_plan``.
        """
        sums: dict[str, npt.NDArray[np.float64]] = {}
        shares: dict[str, float] = {}
        results = self.crew.map(lambda feed: self.run(plan, feed), self.samples)
        for expected, found in zip(self.reference, results, strict=True):
            for name, array in expected.items():
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    parts = [(name, array, found[name])]
                    if name in self.kinds:
                        parts += _parts(name, array, found[name], self.kinds)
                    for part, one, other in parts:
                        sums[part] = sums.get(part, np.zeros(2)) + _energies(one, other)
                        shares[part] = 1.0 if part == name else self.leeway
        if not sums:
            return self.evaluate_plan(plan)
        return max(_ratio(*sums[part]) * shares[part] for part in sums)

    def sample_error(
        self, plan: Plan, sample: int, writes: Mapping[str, bool] | None = None
    ) -> float:
        """Relative error energy of a plan on one sample, summed over float outputs.

        A kind of channels is related to its mean energy over all samples: the scores of an image
        in which nothing is found are next to nothing, and so is what an error in them does. The more
        leeway kinds have, the more the whole output counts in their place.
        """
        outputs, expected = self.run(plan, self.samples[sample], writes), self.reference[sample]
        errors = sum(relative_errors(expected, outputs, self.kinds, self._signals).values())
        if self.leeway == 1.0 or not self.kinds:
            return errors
        whole = sum(relative_errors(expected, outputs).values())
        return self.leeway * errors + (1.0 - self.leeway) * whole


def kinds_of(reference: Sequence[Mapping[str, Any]]) -> Kinds:
    """Channels of float outputs that differ by orders of magnitude over the samples' results."""
    sums: dict[str, ChannelSums] = {}
    for results in reference:
        for name, array in results.items():
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                values = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
                sums.setdefault(name, ChannelSums()).update(values, np.zeros_like(values))
    found = {name: [(axis, group) for axis, group, _ in one.split()] for name, one in sums.items()}
    return {name: groups for name, groups in found.items() if groups}


def mean_signals(reference: Sequence[Mapping[str, Any]], kinds: Kinds) -> dict[str, float]:
    """Mean energy in float of each kind of channels, per sample; nothing of other outputs."""
    found: dict[str, float] = {}
    for results in reference:
        for name in kinds:
            for part, one, _ in _parts(name, results[name], results[name], kinds):
                found[part] = found.get(part, 0.0) + _energies(one, one)[1] / len(reference)
    return found


def relative_errors(
    reference: Mapping[str, Any],
    outputs: Mapping[str, Any],
    kinds: Kinds | None = None,
    signals: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """For each float output ||y - y_ref||^2 / ||y_ref||^2, at most ``WORST_ERROR``.

    Kinds of channels count as outputs of their own, named ``output[index]``; ``signals`` has what to
    relate their errors to instead. A model without float outputs is judged by its others: the share
    of elements that differ.
    """
    errors: dict[str, float] = {}
    shares: dict[str, float] = {}
    for name, expected in reference.items():
        found = outputs[name]
        if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray):
            continue
        if expected.dtype.kind == "f":
            for part, one, other in _parts(name, expected, found, kinds or {}):
                noise, signal = _energies(one, other)
                errors[part] = _ratio(noise, (signals or {}).get(part, signal))
        elif expected.shape != found.shape:
            shares[name] = 1.0
        elif expected.size:
            shares[name] = float(np.mean(expected != found))
    return errors or shares


def _parts(
    name: str, expected: npt.NDArray[Any], found: Any, kinds: Kinds
) -> Iterator[tuple[str, npt.NDArray[Any], Any]]:
    """An output as a whole, or its kinds of channels one after another."""
    if name not in kinds or not isinstance(found, np.ndarray) or expected.shape != found.shape:
        yield name, expected, found
        return
    for index, (axis, group) in enumerate(kinds[name]):
        yield f"{name}[{index}]", expected.take(group, axis), found.take(group, axis)


def _energies(expected: npt.NDArray[Any], found: Any) -> tuple[float, float]:
    """Of the difference and of what was expected; an infinite difference where shapes differ."""
    if not isinstance(found, np.ndarray) or expected.shape != found.shape:
        return np.inf, 0.0
    wanted = expected.astype(np.float64)
    # Infinities that float has too (masks) are no error.
    agree = ~np.isfinite(wanted) & ((found == expected) | (np.isnan(found) & np.isnan(wanted)))
    wanted = np.where(agree, 0.0, wanted)
    got = np.where(agree, 0.0, found.astype(np.float64))
    return float(np.sum((got - wanted) ** 2)), float(np.sum(wanted**2))


def _ratio(noise: float, signal: float) -> float:
    if noise == 0.0:
        return 0.0
    error = noise / signal if signal > 0.0 else WORST_ERROR
    return min(error, WORST_ERROR) if np.isfinite(error) else WORST_ERROR
