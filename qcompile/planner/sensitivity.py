"""How much each unit alone disturbs the outputs, measured in a gated session.

The error of an int8 unit is split in two. *Reading*: its inputs and weights rounded, its output as
that arithmetic gives it. *Writing*: what rounding its output adds; only float readers of that tensor
have to bear it, since int8 readers round it anyway, and that is counted with them. A unit that only
moves values (Reshape, MaxPool) rounds what its readers round too, so all its error is writing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC
from qcompile.planner.clusters import Share, measure_clusters
from qcompile.planner.gated import Gate
from qcompile.planner.gated_session import GatedSession
from qcompile.planner.units import Unit

__all__ = ["Pair", "Progress", "Sensitivities", "Sensitivity", "measure", "measure_pairs"]

Progress = Callable[[int, int], None]
"""Called with how many units are done and how many there are (times samples)."""

_ORDER = {"compute": 0, "elementwise": 1, "passthrough": 2}
"""What is measured first when time may run out."""


TELLING = 2
"""Samples that every unit is measured on: one alone may be a calm one (PP-OCRv4 recognition: what causes
0.3 % of the error there causes 12 % on four samples; what does on two causes 0.3 % on four)."""

NEGLIGIBLE = 0.005
"""Units that cause no more than this share of the error together on these are not measured on others."""


@dataclass(frozen=True)
class Sensitivity:
    """Relative output error energy of one unit alone, averaged over the samples seen.

    Attributes:
        reading: its inputs and weights rounded (int8).
        writing: what rounding its output adds.
        dynamic: in its int8-dynamic form; None when it has none.
        samples: how many samples stand behind the numbers; 0 for an estimate.
    """

    reading: float = 0.0
    writing: float = 0.0
    dynamic: float | None = None
    samples: int = 0


@dataclass(frozen=True)
class Pair:
    """A unit and one that reads it, int8 together: what the sum predicts, what was measured."""

    first: str
    second: str
    predicted: float
    measured: float


@dataclass
class Sensitivities:
    """What was measured.

    Attributes:
        units: origin -> sensitivity; those not reached in time are missing.
        complete: every unit was measured, and on every sample where its error is worth it.
        seconds: time spent.
        runs: inferences made.
        all_integer: measured error with every unit int8 that can be; None when not measured.
        all_predicted: what the sum predicts for that plan.
        pairs: pairs that were checked.
    """

    units: dict[str, Sensitivity] = field(default_factory=dict)
    complete: bool = True
    seconds: float = 0.0
    runs: int = 0
    all_integer: float | None = None
    all_predicted: float | None = None
    pairs: tuple[Pair, ...] = ()

    def filled(self, units: Sequence[Unit]) -> dict[str, Sensitivity]:
        """A sensitivity for every unit.

        One not measured gets the mean of its operator's, else of all, else an equal share of the
        error with everything int8.
        """
        kinds: dict[str, list[Sensitivity]] = {}
        for unit in units:
            if unit.origin in self.units:
                kinds.setdefault(unit.site.op_type, []).append(self.units[unit.origin])
        everything = [one for group in kinds.values() for one in group]
        equal = (self.all_integer or 0.0) / max(1, len(units))
        spread = [Sensitivity(equal, equal)]
        return {
            unit.origin: self.units.get(unit.origin)
            or _mean(kinds.get(unit.site.op_type) or everything or spread, unit)
            for unit in units
        }

    def predict(self, units: Sequence[Unit], labels: Mapping[str, str]) -> float:
        """Error of a plan by the additive model: reading of its units, writing towards float readers."""
        known = self.filled(units)
        total = 0.0
        for unit in units:
            label = labels.get(unit.origin, FLOAT)
            if label == INT8_DYNAMIC:
                total += known[unit.origin].dynamic or 0.0
            elif label == INT8:
                total += known[unit.origin].reading
                readers = [labels.get(r, FLOAT) == INT8 for r in unit.readers]
                written = unit.writes_always or any(readers)
                if written and (unit.float_readers or not all(readers)):
                    total += known[unit.origin].writing
        return total


def _mean(known: Sequence[Sensitivity], unit: Unit) -> Sensitivity:
    dynamic = [one.dynamic for one in known if one.dynamic is not None]
    reading = sum(one.reading for one in known) / len(known)
    return Sensitivity(
        reading,
        sum(one.writing for one in known) / len(known),
        (sum(dynamic) / len(dynamic) if dynamic else reading) if unit.dynamic else None,
    )


def measure(
    session: GatedSession,
    *,
    search_time: float | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Sensitivities:
    """Sensitivity of every unit of a gated session, sample after sample, until time is up.

    The order is fixed (units with MACs first), so with time enough the result is deterministic.
    Where one sample alone would take longer than there is time, clusters are measured instead.

    Args:
        session: with the samples to use.
        search_time: seconds; what was measured until then is returned.
        progress: called after each unit.
        clock: seconds, for tests.
    """
    start, runs = clock(), session.runs
    found = Sensitivities()
    gates = sorted(session.gates.values(), key=lambda gate: _ORDER.get(gate.unit.site.role, 3))
    total = len(gates) * len(session.samples)
    labels = {name: INT8 for name, gate in session.gates.items() if gate.static}

    def late() -> bool:
        return search_time is not None and clock() - start > search_time

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    begun = clock()
    all_integer = [session.sample_error(labels, 0)]
    one_run = clock() - begun
    found.all_integer = all_integer[0]
    needed = one_run * sum(_runs(gate) for gate in gates)
    if search_time is not None and needed > search_time - (clock() - start):
        shares = measure_clusters(session, gates, late, report)
        found.units = {name: _of_share(session.gates[name], one) for name, one in shares.items()}
        found.complete = False
    else:
        for sample in range(len(session.samples)):
            if sample and not late():
                all_integer.append(session.sample_error(labels, sample))
            done = sample * len(gates)
            wanted = gates if sample < TELLING else _mattering(gates, found.units)
            # as many at once as run beside each other, so that time is looked at between them
            at_once = session.crew.at_once
            for first in range(0, len(wanted), at_once):
                if late():
                    found.complete = False
                    break
                some = wanted[first : first + at_once]
                found.units.update(
                    session.crew.map(partial(_one, session, sample, found.units), some)
                )
                report(done + min(first + at_once, len(wanted)))
            else:
                report(done + len(gates))
        found.all_integer = sum(all_integer) / len(all_integer)
    found.all_predicted = found.predict([g.unit for g in session.gates.values()], labels)
    found.seconds, found.runs = clock() - start, session.runs - runs
    return found


def _runs(gate: Gate) -> int:
    """Inferences that a unit takes on the first sample."""
    writing = gate.static and gate.written is not None and gate.unit.site.role != "passthrough"
    return int(gate.static) + int(writing) + int(gate.dynamic is not None)


def _of_share(gate: Gate, share: Share) -> Sensitivity:
    """What writing adds was not looked at: as much as reading, to be careful."""
    error = share.static or 0.0
    moves = gate.unit.site.role == "passthrough"
    return Sensitivity(
        0.0 if moves else error,
        error,
        share.dynamic if gate.dynamic is not None else None,
        int(share.alone),
    )


def _mattering(gates: Sequence[Gate], known: Mapping[str, Sensitivity]) -> list[Gate]:
    """The units that make up nearly all of the error so far: about half of them do."""
    weight = {
        name: max(one.reading + one.writing, one.dynamic or 0.0) for name, one in known.items()
    }
    left = NEGLIGIBLE * sum(weight.values())
    small = set()
    for name in sorted(weight, key=weight.__getitem__):
        left -= weight[name]
        if left < 0:
            break
        small.add(name)
    return [gate for gate in gates if gate.unit.origin not in small]


def _one(
    session: GatedSession, sample: int, known: Mapping[str, Sensitivity], gate: Gate
) -> tuple[str, Sensitivity]:
    """The mean after one more sample; what writing adds is looked at on the first sample alone."""
    name = gate.unit.origin
    before = known.get(name)
    mean = before or Sensitivity()
    share = 1 / (mean.samples + 1)

    def blend(old: float, new: float) -> float:
        return old + (new - old) * share

    reading, writing, dynamic = mean.reading, mean.writing, mean.dynamic
    if gate.static and gate.unit.site.role == "passthrough" and gate.written is not None:
        writing = blend(writing, session.sample_error((name,), sample, {name: True}))
    elif gate.static:
        alone = session.sample_error((name,), sample, {name: False})
        reading = blend(reading, alone)
        if gate.written is not None and before is None:
            both = session.sample_error((name,), sample, {name: True})
            writing = max(0.0, both - alone)
    if gate.dynamic is not None:
        dynamic = blend(dynamic or 0.0, session.sample_error({name: INT8_DYNAMIC}, sample))
    return name, Sensitivity(reading, writing, dynamic, mean.samples + 1)


def measure_pairs(
    session: GatedSession,
    found: Sensitivities,
    *,
    count: int = 16,
    search_time: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Pair, ...]:
    """Check additivity on the most sensitive adjacent pairs, on the first sample; stored in ``found``.

    Args:
        session: the one that ``found`` comes from.
        found: single sensitivities.
        count: how many pairs at most.
        search_time: seconds.
        clock: seconds, for tests.
    """
    start = clock()
    units = [gate.unit for gate in session.gates.values() if gate.static]
    known = {unit.origin: unit for unit in units}
    candidates = [
        (unit.origin, reader)
        for unit in units
        for reader in unit.readers
        if reader in known and unit.origin in found.units and reader in found.units
    ]
    weight = {
        pair: min(found.units[name].reading + found.units[name].writing for name in pair)
        for pair in candidates
    }
    pairs = []
    for pair in sorted(candidates, key=lambda p: -weight[p])[:count]:
        if search_time is not None and clock() - start > search_time:
            break
        labels = dict.fromkeys(pair, INT8)
        measured = session.sample_error(labels, 0)
        pairs.append(Pair(*pair, found.predict(units, labels), measured))
    found.pairs = tuple(pairs)
    return found.pairs
