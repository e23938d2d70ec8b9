"""Learns integer weights and bias shifts from what the float model's layers read.

One pass over the samples gathers, for each layer, mean and covariance of its input (see
``calibrators.gram``); then each layer's integers, ranges and bias shift follow from these alone (see
``calibrators.rounding``), layer by layer and independently. Samples that were held back decide, for
each layer, whether what was learned is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.calibrators.gram import GramStore, split_blocks
from qcompile.calibrators.rounding import round_weights, shrink_scales
from qcompile.data.inputs import Feed
from qcompile.ir.affine import QParams, TensorRange, quantize_weight
from qcompile.ir.graph import attribute, constant, default_opset
from qcompile.ir.manager import CompileState
from qcompile.ir.notes import Note
from qcompile.ir.plan import PrecisionPlan
from qcompile.ir.target import Target
from qcompile.ir.weights import IntegerWeight
from qcompile.passes.correct_bias import takes_shift
from qcompile.passes.integer_region import Region, integer_region
from qcompile.passes.quantizable import Site
from qcompile.passes.quantize_weights import choose_weights, weight_keys
from qcompile.passes.share_scales import choose_scales
from qcompile.weight_inputs import LIMIT, Gathering, Source, source_of, unfit

__all__ = ["Learned", "learn_weights"]

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


@dataclass(frozen=True)
class _Layer:
    """A weight, its readers and what they read."""

    key: str
    sites: tuple[Site, ...]
    sources: tuple[Source, ...]
    plain: IntegerWeight
    shares: tuple[bool, ...]
    """For each reader, whether its bias can be shifted."""

    @property
    def weight(self) -> FloatArray:
        """As it stands in the model."""
        found = constant(self.sites[0].weight)
        return np.zeros(0, np.float32) if found is None else found.astype(np.float32)

    def grouped(self, array: npt.NDArray[np.generic]) -> Array:
        """An array of the weight's layout as (groups, d, out)."""
        site, wide = self.sites[0], array.astype(np.float64)
        if site.op_type == "Conv":
            window = self.sources[0].window
            groups = 1 if window is None else window.group
            rows = wide.reshape(groups, wide.shape[0] // groups, -1)
            return np.ascontiguousarray(rows.transpose(0, 2, 1))
        turned = site.op_type == "Gemm" and attribute(site.node, "transB", 0)
        return np.ascontiguousarray(wide.T if turned else wide)[None]

    def ungrouped(self, array: Array) -> Array:
        """The reverse of ``grouped``."""
        site = self.sites[0]
        if site.op_type == "Conv":
            return np.asarray(array.transpose(0, 2, 1).reshape(self.weight.shape))
        turned = site.op_type == "Gemm" and attribute(site.node, "transB", 0)
        return np.asarray(array[0].T if turned else array[0])

    def cost(self) -> float:
        """Arithmetic of the rounding, roughly."""
        groups, d, out = self.grouped(self.weight).shape
        blocks = self.sources[0].blocks
        each = d / blocks
        return float(groups * blocks * each * each * (each / 3 + 3 * out))


def learn_weights(
    model: oir.Model,
    target: Target,
    ranges: Mapping[str, TensorRange],
    plan: PrecisionPlan,
    feeds: Sequence[Feed],
    *,
    work: Path,
    method: Method = "rounding",
    shift_biases: bool = True,
    time_budget_s: float = 20.0,
    memory_limit: int | None = None,
    seed: int = 0,
    sweeps: int = 2,
    threads: int | None = None,
    progress: Callable[[float, float | None], None] | None = None,
    custom_ops: Path | None = None,
) -> Learned:
    """Integer weights and bias shifts for the layers that ``plan`` makes integer.

    Args:
        model: prepared float model; stays as it is.
        target: its table says which layers those are.
        ranges: of activations; biases must fit beside them.
        plan: usually all that can be integer, so that any other plan finds its weights here.
        feeds: samples; every fourth is held back to judge on.
        work: a temporary folder.
        method: "nearest" keeps the integers nearest to the weights and shifts biases alone.
        shift_biases: learn shifts, and integers that count on them.
        time_budget_s: layers that are not reached within it keep the nearest integers.
        memory_limit: bytes for covariances.
        seed: of the positions drawn.
        sweeps: rounds of coordinate descent.
        threads: inside operators of the float model.
        progress: called with the layers done and their number.
        custom_ops: library with custom operators.
    """
    deadline = time.perf_counter() + time_budget_s
    layers, notes = _layers(model, target, ranges, plan, shift_biases)
    second = method == "rounding"
    learner = _Learner(deadline if second else None, sweeps, len(layers), progress)
    gathering = Gathering(model, feeds, work, second, seed, threads, custom_ops)
    by_key = {layer.key: layer for layer in layers}
    wanted = {layer.key: layer.sources for layer in layers}
    for part in gathering.parts(wanted, memory_limit or LIMIT):
        stores = gathering.gather([s for key in part for s in wanted[key]])
        for layer in sorted((by_key[key] for key in part), key=_Layer.cost):
            learner.learn(layer, stores)
    return Learned(learner.weights, learner.shifts, (*notes, *learner.notes))


def _layers(
    model: oir.Model,
    target: Target,
    ranges: Mapping[str, TensorRange],
    plan: PrecisionPlan,
    shift: bool,
) -> tuple[list[_Layer], list[Note]]:
    state = CompileState(model, target, ranges=dict(ranges), plan=plan)
    region = integer_region(state)
    choose_scales(state, region)
    choose_weights(state, region)
    notes: list[Note] = []
    found: list[_Layer] = []
    for key, sites in _readers(region).items():
        reason = unfit(sites[0])
        if reason:
            notes.append(Note(sites[0].origin, f"weights rounded to nearest: {reason}"))
            continue
        sources = tuple(source_of(site) for site in sites)
        shares = tuple(shift and not takes_shift(s.node, default_opset(model)) for s in sites)
        found.append(_Layer(key, tuple(sites), sources, state.weights[key], shares))
    return found, notes


def _readers(region: Region) -> dict[str, list[Site]]:
    found: dict[str, list[Site]] = {}
    for node, key in weight_keys(region).items():
        found.setdefault(key, []).append(region.sites[node])
    return found


@dataclass
class _Learner:
    """Learns one layer after the other and keeps what helps."""

    deadline: float | None
    sweeps: int
    total: int
    progress: Callable[[float, float | None], None] | None
    weights: dict[str, IntegerWeight] = field(default_factory=dict)
    shifts: dict[str, FloatArray] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    done: int = 0

    def learn(self, layer: _Layer, stores: Mapping[Source, GramStore]) -> None:
        """Learn ``layer`` from what its sources hold."""
        self.done += 1
        where = layer.sites[0].origin
        read = [stores[s] for s in layer.sources]
        if any(store.count == 0 or not store.held for store in read):
            self.notes.append(Note(where, "weights rounded to nearest: no sample reaches it"))
            return
        real = layer.grouped(layer.weight)
        candidates = [layer.plain]
        late = self.deadline is not None and time.perf_counter() > self.deadline
        if self.deadline is not None and not late:
            candidates.append(_rounded(layer, real, read, self.sweeps))
        before = _judge(layer, real, layer.plain, read, [None] * len(read))
        shifts: list[FloatArray | None] = [None] * len(read)
        best, choice = before, layer.plain
        for weight in candidates:
            moved = _mean_shifts(layer, real, weight, read)
            found = _judge(layer, real, weight, read, moved)
            if found < best:
                best, choice, shifts = found, weight, moved
        self._keep(layer, choice, shifts, before, best, late)
        if self.progress is not None:
            self.progress(self.done, self.total)

    def _keep(
        self,
        layer: _Layer,
        choice: IntegerWeight,
        shifts: list[FloatArray | None],
        before: float,
        best: float,
        late: bool,
    ) -> None:
        where = layer.sites[0].origin
        if best >= before:
            text = "rounded to nearest: nothing else lowers the error on held-back samples"
            self.notes.append(Note(where, text))
            return
        for site, shift in zip(layer.sites, shifts, strict=True):
            if shift is not None:
                self.shifts[site.origin] = shift
        learned = choice is not layer.plain
        if learned:
            self.weights[layer.key] = choice
        what = [
            *(["weights learned"] if learned else []),
            *(["bias shifted"] if any(s is not None for s in shifts) else []),
        ]
        gain = 10 * np.log10(before / max(best, 1e-300))
        text = f"{', '.join(what)}: output error {min(gain, 99):.1f} dB lower on held-back samples"
        if late:
            text += "; the time ran out before its rounding"
        if layer.sources[0].blocks > 1 and learned:
            text += f"; in {layer.sources[0].blocks} runs of channels, each by itself"
        self.notes.append(Note(where, text, changed=True))


def _limits(weight: IntegerWeight) -> tuple[int, int]:
    spec = weight.qparams.spec
    zero = int(np.asarray(weight.qparams.zero_point).reshape(-1)[0])
    return spec.qmin - zero, spec.qmax - zero


def _scales(real: Array, weight: IntegerWeight) -> Array:
    """(groups, out) of a weight's scale."""
    groups, _, out = real.shape
    scale = np.broadcast_to(weight.qparams.scale.astype(np.float64), (groups * out,))
    return scale.reshape(groups, out)


def _rounded(layer: _Layer, real: Array, read: list[GramStore], sweeps: int) -> IntegerWeight:
    """Integers and ranges by output error."""
    source, plain = layer.sources[0], layer.plain
    low, high = _limits(plain)
    covariance = np.zeros(1)
    for store, shifted in zip(read, layer.shares, strict=True):
        one = store.covariance()
        if not shifted:
            mean = store.mean()
            one = one + mean[:, :, None] * mean[:, None, :]
        covariance = covariance + one / len(read)
    per_tensor = plain.qparams.scale.ndim == 0
    scale = _scales(real, plain)
    groups, d, out = real.shape
    variance = np.einsum("gii->gi", covariance).reshape(groups, -1)[:, :d]
    share = shrink_scales(real, scale, variance, low, high, joint=per_tensor)
    _, own = quantize_weight(layer.weight, plain.qparams.spec)
    # A scale that was enlarged to make room for the bias stays.
    share = np.where(scale > _scales(real, IntegerWeight(plain.values, own)), 1.0, share)
    scale = (scale * share).astype(np.float32)
    scaled = real / scale[:, None, :].astype(np.float64)
    if source.blocks > 1:
        cut = split_blocks(scaled, source.channels, source.blocks)
        whole = round_weights(cut, covariance, low, high, sweeps=sweeps)
        integers = whole.reshape(1, -1, out)[:, :d]
    else:
        integers = round_weights(scaled, covariance, low, high, sweeps=sweeps)
    zero = plain.qparams.zero_point
    flat = scale.reshape(-1)[0] if per_tensor else scale.reshape(-1)
    qparams = QParams(np.asarray(flat, np.float32), zero, plain.qparams.spec)
    offset = int(np.asarray(zero).reshape(-1)[0])
    values = (layer.ungrouped(integers) + offset).astype(plain.values.dtype)
    return IntegerWeight(np.ascontiguousarray(values), qparams, "learned rounding")


def _error(layer: _Layer, real: Array, weight: IntegerWeight) -> Array:
    """(groups, d, out): integer minus float weights."""
    zero = int(np.asarray(weight.qparams.zero_point).reshape(-1)[0])
    whole = layer.grouped(weight.values) - zero
    return whole * _scales(real, weight)[:, None, :] - real


def _mean_shifts(
    layer: _Layer, real: Array, weight: IntegerWeight, read: list[GramStore]
) -> list[FloatArray | None]:
    """For each reader, the negative mean error of its outputs; None where it cannot be added."""
    error = _error(layer, real, weight)
    groups, d, _ = real.shape
    found: list[FloatArray | None] = []
    for store, shifted in zip(read, layer.shares, strict=True):
        mean = store.mean().reshape(groups, -1)[:, :d]
        moved = -np.einsum("gdo,gd->go", error, mean).reshape(-1)
        found.append(moved.astype(np.float32) if shifted else None)
    return found


def _judge(
    layer: _Layer,
    real: Array,
    weight: IntegerWeight,
    read: list[GramStore],
    shifts: Sequence[FloatArray | None],
) -> float:
    """Mean square error of the layer's output on held-back inputs."""
    error = _error(layer, real, weight).astype(np.float32)
    total = 0.0
    for store, shift in zip(read, shifts, strict=True):
        result = np.matmul(error.transpose(0, 2, 1), store.held_columns())
        if shift is not None:
            result += shift.reshape(result.shape[0], -1, 1)
        total += float(np.mean(np.square(result), dtype=np.float64))
    return total
