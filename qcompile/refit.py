"""Refits weights and biases of one plan to what its layers read once everything is quantized.

The quantized and the float model run side by side over the samples, layer after layer. Where a layer
is about to run, its inputs in both are at hand: its weights are fitted so that its output differs
least from float's, whatever went wrong before it (see ``calibrators.regression``), rounded, and the
layer runs with them. Each layer so makes up for errors of those before it, rounding of activations
included, which nothing that looks at single layers can.

Samples that were held back decide at each layer between what it had, a shifted bias and refitted
weights. What comes out holds for one plan: other plans make other errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.calibrators.gram import columns
from qcompile.calibrators.regression import Moments, position_weights, refit
from qcompile.data.inputs import Feed
from qcompile.data.subset import every_fourth
from qcompile.ir.affine import TensorRange
from qcompile.ir.given import NOTHING_GIVEN, Given
from qcompile.ir.graph import constant
from qcompile.ir.notes import Note
from qcompile.ir.plan import PrecisionPlan
from qcompile.ir.target import Target
from qcompile.ir.weights import IntegerWeight
from qcompile.learnable import Layer, learnable_layers
from qcompile.learning import Learned
from qcompile.planner.units import identified
from qcompile.stepper import Stepper
from qcompile.stopwatch import Deadline
from qcompile.weight_inputs import POSITIONS

__all__ = ["refit_plan"]

RIDGES = (0.1, 1.0, 10.0)
"""Pulls towards the float weights that are tried, in mean variances of the inputs."""

HELD = 2048
"""Positions to judge on, over all held-back samples."""

LIMIT = 256 * 2**20
"""Bytes of live tensors of both models, unless a memory limit says otherwise."""

FEWEST = 4
"""Samples however little room there is."""

MARGIN = 0.98
"""A refit must lower the error to this share to be taken: the samples that judge are few."""

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]


def refit_plan(
    model: oir.Model,
    portable: oir.Model,
    target: Target,
    ranges: Mapping[str, TensorRange],
    plan: PrecisionPlan,
    learned: Learned,
    feeds: Sequence[Feed],
    *,
    held: Collection[int] | None = None,
    time_budget_s: float = 30.0,
    memory_limit: int | None = None,
    seed: int = 0,
    sweeps: int = 2,
    threads: int | None = None,
    progress: Callable[[float, float | None], None] | None = None,
    custom_ops: Path | None = None,
    given: Given = NOTHING_GIVEN,
) -> Learned:
    """Weights and bias shifts for ``plan`` and no other; what was not improved stays as learned.

    Args:
        model: prepared float model.
        portable: the Q/DQ model of ``plan``, with what was learned.
        target: its table says which layers are integer.
        ranges: of activations.
        plan: what ``portable`` was made from.
        learned: what stands in ``portable``.
        feeds: samples.
        held: indices of the samples that judge instead of teaching; None: every fourth.
        time_budget_s: layers not reached within it stay as they are.
        memory_limit: bytes of live tensors; samples are given up beyond.
        seed: of the positions drawn.
        sweeps: rounds of coordinate descent.
        threads: inside operators.
        progress: called with the layers done and their number.
        custom_ops: library with custom operators.
        given: scales that stay as they are, and weights whose integers do.

    Raises:
        CalibrationError: the model cannot be run in parts.
    """
    deadline = Deadline(time_budget_s)
    judges = every_fourth(len(feeds)) if held is None else frozenset(held)
    if not judges or len(judges) == len(feeds):
        return learned
    layers, _ = learnable_layers(model, target, ranges, plan, given=given)
    places = _places(layers, model, portable)
    scout = Stepper(model, feeds[:1], threads=threads, custom_ops=custom_ops)
    judging, teaching = _within(
        (memory_limit or LIMIT) // 2,
        _largest(scout, [exact_at for _, exact_at, _, _ in places]),
        [f for i, f in enumerate(feeds) if i in judges],
        [f for i, f in enumerate(feeds) if i not in judges],
    )
    work = _Refit(
        Stepper(model, judging + teaching, threads=threads, custom_ops=custom_ops),
        Stepper(portable, judging + teaching, threads=threads, custom_ops=custom_ops),
        len(judging),
        learned,
        seed,
        sweeps,
    )
    for index, (at, exact_at, layer, reader) in enumerate(places):
        if deadline.passed():
            late = len(places) - index
            work.notes.append(Note("", f"the time ran out before {late} layers were refitted"))
            break
        work.step(at, exact_at, layer, reader)
        if progress is not None:
            progress(index + 1, len(places))
    return Learned(work.weights, work.shifts, (*learned.notes, *work.notes))


def _largest(scout: Stepper, places: Sequence[int]) -> int:
    """Bytes of one sample at the most: while a node runs, what it reads and writes is alive."""
    most = 0
    for at in places:
        for stop in (at, at + 1):
            before = scout.held_bytes()
            scout.run_to(stop)
            most = max(most, before + scout.held_bytes())
    return most


def _within(
    room: int, each: int, judging: Sequence[Feed], teaching: Sequence[Feed]
) -> tuple[list[Feed], list[Feed]]:
    """As many samples as there is room for, a quarter of them to judge."""
    count = max(FEWEST, room // max(1, each))
    judges = list(judging[: max(1, count // 4)])
    return judges, list(teaching[: count - len(judges)])


def _places(
    layers: Sequence[Layer], model: oir.Model, portable: oir.Model
) -> list[tuple[int, int, Layer, int]]:
    """For each reader of each layer: where it stands in both models, in the order of the second."""
    exact = {node: i for i, node in enumerate(model.graph)}
    quantized = {node: i for i, node in enumerate(portable.graph)}
    twins = identified(portable)
    found = []
    for layer in layers:
        for reader, site in enumerate(layer.sites):
            twin = twins.get(site.origin)
            if twin is not None and twin.op_type == site.op_type:
                found.append((quantized[twin], exact[site.node], layer, reader))
    found.sort(key=lambda one: one[0])
    # In the float model the same order must hold: it is run only once, too.
    rising, last = [], -1
    for one in found:
        if one[1] > last:
            rising.append(one)
            last = one[1]
    return rising


@dataclass
class _Choice:
    """A form of one layer and its output error on held-back samples."""

    name: str
    weight: IntegerWeight
    shift: FloatArray | None
    error: float


@dataclass
class _Refit:
    """Both models, half run."""

    exact: Stepper
    quantized: Stepper
    judges: int
    learned: Learned
    seed: int
    sweeps: int
    weights: dict[str, IntegerWeight] = field(init=False)
    shifts: dict[str, FloatArray] = field(init=False)
    notes: list[Note] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = dict(self.learned.weights)
        self.shifts = dict(self.learned.bias_shifts)

    def step(self, at: int, exact_at: int, layer: Layer, reader: int) -> None:
        """Run both models up to a layer, refit it, and run it."""
        self.quantized.run_to(at)
        self.exact.run_to(exact_at)
        site = layer.sites[reader]
        kept = self._kept(layer, reader)
        held = list(self._samples(layer, reader, at, exact_at, teach=False))
        exact, noisy = (np.concatenate(one, axis=2) for one in zip(*held, strict=True))
        wanted = _outputs(layer.real, exact)
        kept.error = _difference(layer.value(kept.weight), kept.shift, noisy, wanted)
        best = kept
        for choice in self._choices(layer, reader, kept, at, exact_at, noisy, wanted):
            if choice.error < MARGIN * best.error:
                best = choice
        if best is kept:
            self.quantized.run_next()
        else:
            self._take(layer, reader, best)
            gain = 10 * np.log10(kept.error / max(best.error, 1e-300))
            text = f"{best.name}: output error {min(gain, 99):.1f} dB lower on held-back samples"
            self.notes.append(Note(site.origin, text, changed=True))
        self.exact.run_next()

    def _kept(self, layer: Layer, reader: int) -> _Choice:
        weight = self.weights.get(layer.key, layer.plain)
        shift = self.shifts.get(layer.sites[reader].origin)
        if shift is None and layer.shiftable[reader]:
            groups, _, out = layer.real.shape
            shift = np.zeros(groups * out, np.float32)
        return _Choice("as it was", weight, shift, np.inf)

    def _choices(
        self,
        layer: Layer,
        reader: int,
        kept: _Choice,
        at: int,
        exact_at: int,
        noisy: FloatArray,
        wanted: FloatArray,
    ) -> list[_Choice]:
        """What the layer could become, judged."""
        shiftable = layer.shiftable[reader]
        # A wide layer's covariance is not kept whole: its bias alone is refitted.
        whole = len(layer.sites) == 1 and layer.sources[0].blocks == 1
        if not shiftable and not whole:
            return []
        moments = Moments(centred=shiftable, products=whole)
        for exact, seen in self._samples(layer, reader, at, exact_at, teach=True):
            outputs = _outputs(layer.real, exact)
            moments.update(exact, seen, position_weights(outputs), outputs)
        if not moments.finite():
            return []
        found: list[_Choice] = []
        if shiftable:
            found.append(self._shifted(layer, "bias refitted", kept.weight, moments))
        if whole:
            tried = refit(layer.real, moments, RIDGES)
            errors = [
                _difference(values, _shift(layer, values, moments, shiftable), noisy, wanted)
                for values in tried
            ]
            values = tried[int(np.argmin(errors))]
            weight = layer.fit(values, moments.noisy, self.sweeps, "refitted")
            name = "weights and bias refitted" if shiftable else "weights refitted"
            found.append(self._shifted(layer, name, weight, moments, shiftable))
        for choice in found:
            choice.error = _difference(layer.value(choice.weight), choice.shift, noisy, wanted)
        return found

    def _shifted(
        self,
        layer: Layer,
        name: str,
        weight: IntegerWeight,
        moments: Moments,
        shiftable: bool = True,
    ) -> _Choice:
        shift = _shift(layer, layer.value(weight), moments, shiftable)
        return _Choice(name, weight, shift, np.inf)

    def _samples(
        self, layer: Layer, reader: int, at: int, exact_at: int, *, teach: bool
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """For each sample what the layer reads in both models, at the same positions."""
        source = layer.sources[reader]
        samples = range(self.judges, len(self.exact.live)) if teach else range(self.judges)
        least, most = POSITIONS
        total = min(max(least, 4 * source.width), most) if teach else HELD
        each = max(16, -(-total // len(samples)))
        for index in samples:
            found = []
            for stepper, place in ((self.exact, exact_at), (self.quantized, at)):
                x = stepper.live[index][stepper.nodes[place].input[0]]
                rng = np.random.default_rng([self.seed, index, at])
                found.append(columns(x.T if source.turned else x, source.window, each, rng))
            yield found[0], found[1]

    def _take(self, layer: Layer, reader: int, choice: _Choice) -> None:
        """Let the quantized model run the layer as chosen."""
        site = layer.sites[reader]
        before = self.shifts.get(site.origin)
        if choice.weight is not self.weights.get(layer.key, layer.plain):
            self.weights[layer.key] = choice.weight
        if choice.shift is not None:
            self.shifts[site.origin] = choice.shift
        values = layer.ungrouped(layer.value(choice.weight)).astype(np.float32)
        inputs: dict[int, FloatArray] = {1: values}
        if choice.shift is None or site.op_type == "MatMul":
            shift = choice.shift
            if shift is not None and before is not None:
                shift = shift - before  # the Add behind it holds the shift it had
            self.quantized.run_next(inputs, shift)
            return
        bias = constant(site.node.inputs[2]) if len(site.node.inputs) > 2 else None
        base = 0.0 if bias is None else bias.astype(np.float32).reshape(-1)
        inputs[2] = np.asarray(choice.shift + base, np.float32)
        self.quantized.run_next(inputs)


def _outputs(values: Array, x: FloatArray) -> FloatArray:
    """(groups, out, p)."""
    return np.asarray(np.matmul(values.astype(np.float32).transpose(0, 2, 1), x))


def _shift(layer: Layer, values: Array, moments: Moments, shiftable: bool) -> FloatArray | None:
    """What makes the mean output equal to float's."""
    if not shiftable:
        return None
    exact = np.einsum("gdo,gd->go", layer.real, moments.exact_mean)
    noisy = np.einsum("gdo,gd->go", values, moments.noisy_mean)
    return np.asarray((exact - noisy).reshape(-1), np.float32)


def _difference(
    values: Array, shift: FloatArray | None, noisy: FloatArray, wanted: FloatArray
) -> float:
    """Mean square difference of a layer's output from float's, positions by their weights."""
    result = _outputs(values, noisy) - wanted
    if shift is not None:
        result += shift.reshape(result.shape[0], -1, 1)
    each = np.square(result).mean(axis=(0, 1), dtype=np.float64)
    return float(each @ position_weights(wanted))
