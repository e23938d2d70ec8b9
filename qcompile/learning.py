"""Learns integer weights and bias shifts from what the float model's layers read.

One pass over the samples gathers, for each layer, mean and covariance of its input (see
``calibrators.gram``); then each layer's integers, ranges and bias shift follow from these alone (see
``calibrators.rounding``), layer by layer and independently: what is learned holds in every plan.
Samples that were held back decide, for each layer, whether it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.calibrators.gram import GramStore
from qcompile.data.inputs import Feed
from qcompile.ir.affine import TensorRange
from qcompile.ir.given import NOTHING_GIVEN, Given
from qcompile.ir.notes import Note
from qcompile.ir.plan import PrecisionPlan
from qcompile.ir.target import Target
from qcompile.ir.weights import IntegerWeight
from qcompile.learnable import Layer, learnable_layers
from qcompile.stopwatch import Deadline
from qcompile.weight_inputs import LIMIT, Gathering

__all__ = ["Learned", "Method", "learn_weights"]

Method = Literal["nearest", "rounding"]
FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Learned:
    """What was learned.

    Attributes:
        weights: key (see ``weight_keys``) -> integers.
        bias_shifts: origin id -> what to add to the layer's bias, (out,) float32.
        notes: of each layer, what it gained or why nothing was kept.
    """

    weights: dict[str, IntegerWeight] = field(default_factory=dict)
    bias_shifts: dict[str, FloatArray] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    def findings(self) -> tuple[str, ...]:
        """One line for people, where there is something to say."""
        if not self.weights and not self.bias_shifts:
            return ()
        undone = sum(not note.changed for note in self.notes)
        text = f"weights of {len(self.weights)} layers learned, biases of {len(self.bias_shifts)} shifted"
        return (f"{text}, {undone} left as they were: see notes" if undone else text,)


def learn_weights(
    model: oir.Model,
    target: Target,
    ranges: Mapping[str, TensorRange],
    plan: PrecisionPlan,
    feeds: Sequence[Feed],
    *,
    work: Path,
    held: Collection[int] | None = None,
    method: Method = "rounding",
    weight_ranges: bool | None = None,
    shift_biases: bool = True,
    time_budget_s: float = 20.0,
    memory_limit: int | None = None,
    seed: int = 0,
    sweeps: int = 2,
    threads: int | None = None,
    progress: Callable[[float, float | None], None] | None = None,
    custom_ops: Path | None = None,
    given: Given = NOTHING_GIVEN,
) -> Learned:
    """Integer weights and bias shifts for the layers that ``plan`` makes integer.

    Args:
        model: prepared float model; stays as it is.
        target: its table says which layers those are.
        ranges: of activations; biases must fit beside them.
        plan: usually all that can be integer, so that any other plan finds its weights here.
        feeds: samples.
        work: a temporary folder.
        held: indices of the samples that judge instead of teaching; None: every fourth.
        method: "nearest" keeps the integers nearest to the weights.
        weight_ranges: choose ranges of weights by output error; None: where rounding is learned.
        shift_biases: learn shifts, and integers that count on them.
        time_budget_s: layers that are not reached within it keep the nearest integers.
        memory_limit: bytes for covariances and captured tensors.
        seed: of the positions drawn.
        sweeps: rounds of coordinate descent.
        threads: inside operators of the float model.
        progress: called with the layers done and their number.
        custom_ops: library with custom operators.
        given: scales that stay as they are, and weights whose integers do.
    """
    rounding = method == "rounding"
    ranging = rounding if weight_ranges is None else weight_ranges
    second = rounding or ranging
    deadline = Deadline(time_budget_s) if second else None
    layers, notes = learnable_layers(model, target, ranges, plan, shift=shift_biases, given=given)
    learner = _Learner(deadline, sweeps, rounding, ranging, len(layers), progress)
    gathering = Gathering(model, feeds, work, held, second, seed, threads, custom_ops)
    by_key = {layer.key: layer for layer in layers}
    wanted = {layer.key: layer.sources for layer in layers}
    for part in gathering.parts(wanted, memory_limit or LIMIT):
        stores = gathering.gather([s for key in part for s in wanted[key]])
        for layer in sorted((by_key[key] for key in part), key=Layer.cost):
            learner.learn(layer, [stores[s] for s in layer.sources])
    return Learned(learner.weights, learner.shifts, (*notes, *learner.notes))


@dataclass
class _Learner:
    """Learns one layer after the other and keeps what helps."""

    deadline: Deadline | None
    sweeps: int
    rounding: bool
    ranging: bool
    total: int
    progress: Callable[[float, float | None], None] | None
    weights: dict[str, IntegerWeight] = field(default_factory=dict)
    shifts: dict[str, FloatArray] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    done: int = 0

    def learn(self, layer: Layer, read: Sequence[GramStore]) -> None:
        """Learn ``layer`` from what its readers read."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        where = layer.sites[0].origin
        if any(store.count == 0 or not store.held for store in read):
            self.notes.append(Note(where, "weights rounded to nearest: no sample reaches it"))
            return
        if not all(np.isfinite(store.mean()).all() for store in read):
            text = "weights rounded to nearest: it reads NaN, infinity or too large numbers"
            self.notes.append(Note(where, text))
            return
        candidates = [layer.plain]
        late = self.deadline is not None and self.deadline.passed()
        if self.deadline is not None and not late:
            candidates.append(self._fitted(layer, read))
        shifts: list[FloatArray | None] = [None] * len(read)
        before = _judge(_error(layer, layer.plain), read, shifts)
        best, choice = before, layer.plain
        for weight in candidates:
            error = _error(layer, weight)
            moved = _mean_shifts(layer, error, read)
            found = _judge(error, read, moved)
            if found < best:
                best, choice, shifts = found, weight, moved
        gain = max(before, 1e-300) / max(best, 1e-300)
        self._keep(layer, choice, shifts, 10 * np.log10(gain), late)

    def _fitted(self, layer: Layer, read: Sequence[GramStore]) -> IntegerWeight:
        source = "learned rounding" if self.rounding else "weight range"
        return layer.fit(
            layer.real,
            _moments(layer, read),
            self.sweeps,
            source,
            rounding=self.rounding,
            ranging=self.ranging,
        )

    def _keep(
        self,
        layer: Layer,
        choice: IntegerWeight,
        shifts: Sequence[FloatArray | None],
        gain: float,
        late: bool,
    ) -> None:
        where = layer.sites[0].origin
        if not gain > 0:
            text = "rounded to nearest: nothing else lowers the error on held-back samples"
            self.notes.append(Note(where, text))
            return
        done = []
        if choice is not layer.plain:
            self.weights[layer.key] = choice
            done.append("weights learned" if self.rounding else "weight ranges learned")
        for site, shift in zip(layer.sites, shifts, strict=True):
            if shift is not None:
                self.shifts[site.origin] = shift
        if any(shift is not None for shift in shifts):
            done.append("bias shifted")
        text = f"{', '.join(done)}: output error {min(gain, 99):.1f} dB lower on held-back samples"
        if late:
            text += "; the time ran out before its rounding"
        if layer.sources[0].blocks > 1 and choice is not layer.plain:
            text += f"; in {layer.sources[0].blocks} runs of channels, each by itself"
        self.notes.append(Note(where, text, changed=True))


def _moments(layer: Layer, read: Sequence[GramStore]) -> Array:
    """Mean covariance of what the readers read, with the mean where nothing takes its error away."""
    covariance = np.zeros(1)
    for store, shiftable in zip(read, layer.shiftable, strict=True):
        one = store.covariance()
        if not shiftable:
            mean = store.mean()
            one = one + mean[:, :, None] * mean[:, None, :]
        covariance = covariance + one / len(read)
    return covariance


def _error(layer: Layer, weight: IntegerWeight) -> Array:
    """(groups, d, out): integer minus float weights."""
    return layer.value(weight) - layer.real


def _mean_shifts(layer: Layer, error: Array, read: Sequence[GramStore]) -> list[FloatArray | None]:
    """For each reader, the negative mean error of its outputs; None where it cannot be added."""
    groups, d, _ = error.shape
    found: list[FloatArray | None] = []
    for store, shiftable in zip(read, layer.shiftable, strict=True):
        mean = store.mean().reshape(groups, -1)[:, :d]
        moved = -np.einsum("gdo,gd->go", error, mean).reshape(-1)
        found.append(moved.astype(np.float32) if shiftable else None)
    return found


def _judge(error: Array, read: Sequence[GramStore], shifts: Sequence[FloatArray | None]) -> float:
    """Mean square error of the layer's output on held-back inputs."""
    turned = error.astype(np.float32).transpose(0, 2, 1)
    total = 0.0
    for store, shift in zip(read, shifts, strict=True):
        result = np.matmul(turned, store.held_columns())
        if shift is not None:
            result += shift.reshape(result.shape[0], -1, 1)
        total += float(np.mean(np.square(result), dtype=np.float64))
    return total
