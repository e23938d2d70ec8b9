"""From a profile to the time of each layer: corrected to the clock, then handed to origin ids."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qcompile.backends.ort import Feed
from qcompile.backends.ort_owners import CONVERSIONS, Owners, find_owners
from qcompile.backends.ort_profile import Kernel, Profiler
from qcompile.backends.ort_tags import Source, Tagged, tag_model
from qcompile.scratch import scratch_root

__all__ = ["Conversion", "FormTimes", "corrected", "form_times"]

OVERHEAD_NS = 6000.0
"""More than this no profiler adds to one kernel; what is still too much is scaled down."""

PER_INPUT = 0.05
"""Share by which each input adds to the profiler's overhead (it writes down type and shape):
measured with chains of operators on one element, 2.2 us with one input, 2.9 us with eight."""

EVENTS = 12_000
"""Profile events at most: each is 700 bytes of JSON. Of 300 kernels these are 40 runs, whose medians
are known to 1 %; a layer's time is predicted to some percent."""

RUNS = 300
"""Profiled runs at most: reading 600 more of a tiny model took longer than making them."""

_HEAVY = ("Conv", "Gemm", "GRU", "LSTM", "MatMul", "RNN")


@dataclass(frozen=True)
class Conversion:
    """An executed Q or DQ: which, how many elements, how long.

    Attributes:
        quantize: a Q, else a DQ.
        elements: how many.
        ns: time.
        boundary: between integer and float layers, so that a plan can avoid it.
    """

    quantize: bool
    elements: int
    ns: float
    boundary: bool = True


@dataclass(frozen=True)
class FormTimes:
    """One model's time by layer, in nanoseconds that add up to its latency.

    Attributes:
        layers: origin id -> time.
        conversions: Q and DQ kernels.
        base_ns: what a call costs outside all kernels.
        blocked: tensors that stand in NCHWc blocks.
        channels_last: four-dimensional tensors that stand in NHWC.
        unmapped_ns: time of kernels that belong to no layer (spread over no one).
        operators: executed operator -> how many kernels, and their time.
    """

    layers: Mapping[str, float]
    conversions: tuple[Conversion, ...]
    base_ns: float
    blocked: frozenset[str]
    channels_last: frozenset[str]
    unmapped_ns: float
    operators: Mapping[str, tuple[int, float]] = field(default_factory=dict)


def form_times(
    path: Path,
    feed: Feed,
    total_ns: float,
    *,
    integer: Collection[str] = (),
    threads: int | None = None,
    budget_s: float = 2.0,
    least: int = 5,
    custom_ops: Path | None = None,
) -> FormTimes:
    """Profile one model and hand its latency out to its layers.

    Args:
        path: the model.
        feed: its input.
        total_ns: latency by the clock, without a profile.
        integer: layers that were asked to be integer here: conversions among them are theirs.
        threads: threads inside an operator.
        budget_s: time for profiled runs.
        least: profiled runs that are made whatever they take; the first does not count.
        custom_ops: library with custom operators.

    Raises:
        ModelError: the model cannot be opened or run.
    """
    tagged = tag_model(path)
    profiler = Profiler(tagged, threads=threads, custom_ops=custom_ops, folder=scratch_root())
    feed = profiler.session.given(feed)
    profiler.session.run(feed)
    walls: list[int] = []
    begin = time.perf_counter()
    limit = max(least, min(RUNS, EVENTS // max(1, len(tagged.sources))))
    while len(walls) < least or (time.perf_counter() - begin < budget_s and len(walls) < limit):
        start = time.perf_counter_ns()
        profiler.run(feed)
        walls.append(time.perf_counter_ns() - start)
    kernels = profiler.finish(skip=2)
    # what the call does beside executing (taking inputs in, handing outputs out)
    # the first run of all was the warm-up
    inside = profiler.execute_ns[1:]
    outside = [wall - ns for wall, ns in zip(walls, inside, strict=False)]
    base = min(max(0.0, float(np.percentile(outside, 25)) if outside else 0.0), 0.15 * total_ns)
    times = corrected(kernels, total_ns - base)
    return _handed_out(tagged, find_owners(tagged, kernels), times, base, integer)


def corrected(kernels: Sequence[Kernel], total_ns: float) -> list[float]:
    """Times of kernels without the profiler's overhead, so that they add up to ``total_ns``.

    The overhead of a kernel is one unknown times (1 + 0.05 per input); the unknown is what makes the
    sum right, at most `OVERHEAD_NS`. No kernel falls below a tenth of what it showed. What then still
    differs (the machine was slower or faster than when the clock ran) is a common factor.
    """
    shown = np.array([k.ns for k in kernels])
    if not len(shown) or shown.sum() <= 0:
        return [0.0] * len(kernels)
    weight = np.array([1.0 + PER_INPUT * len(k.read) for k in kernels])

    def without(unit: float) -> np.ndarray:
        return np.maximum(shown - unit * weight, 0.1 * shown)

    low, high = 0.0, OVERHEAD_NS
    if shown.sum() > total_ns:
        for _ in range(60):
            middle = (low + high) / 2
            if without(middle).sum() > total_ns:
                low = middle
            else:
                high = middle
    best = without(low)
    return [float(v) for v in best * (max(total_ns, 0.0) / best.sum())]


def _handed_out(
    tagged: Tagged,
    owners: Owners,
    times: Sequence[float],
    base: float,
    integer: Collection[str],
) -> FormTimes:
    """Every kernel's time to one layer; conversions between integer layers to one of these."""
    layers: dict[str, float] = {
        origin: 0.0
        for nodes in owners.sources
        for node in nodes
        if tagged.sources[node].op_type not in CONVERSIONS
        for origin in tagged.sources[node].origins
    }
    kernels = owners.kernels
    anchors = [
        None
        if index in owners.layout or kernel.op_type in CONVERSIONS
        else _anchor(kernel, [tagged.sources[i] for i in owners.sources[index]])
        for index, kernel in enumerate(kernels)
    ]
    around = _Around(kernels, anchors)
    conversions = []
    unmapped = 0.0
    for index, kernel in enumerate(kernels):
        origin = anchors[index]
        if origin is None:
            before, behind = around.before(index), around.behind(index)
            inner = before in integer and bool(behind) and all(b in integer for b in behind)
            made = kernel.op_type == "QuantizeLinear"
            if kernel.op_type in ("QuantizeLinear", "DequantizeLinear") and kernel.read:
                conversions.append(
                    Conversion(made, kernel.read[0].elements, times[index], boundary=not inner)
                )
                if not inner:
                    continue
                # a layer that was asked to be integer and runs in float pays for its conversions
                origin = before if made else behind[0]
            elif index in owners.layout and around.by_conversion(index):
                continue
            elif kernel.op_type == "ReorderInput" or before is None:
                origin = behind[0] if behind else before
            else:
                origin = before
        if origin is None:
            unmapped += times[index]
        else:
            layers[origin] = layers.get(origin, 0.0) + times[index]
    blocked, last = _layouts(tagged, owners)
    operators: dict[str, tuple[int, float]] = {}
    for kernel, ns in zip(kernels, times, strict=True):
        count, so_far = operators.get(kernel.op_type, (0, 0.0))
        operators[kernel.op_type] = (count + 1, so_far + ns)
    return FormTimes(layers, tuple(conversions), base, blocked, last, unmapped, operators)


def _anchor(kernel: Kernel, sources: Sequence[Source]) -> str | None:
    """The layer that a kernel's time stands with, in whatever form the model is executed.

    Its multiplying node, else the node it is named after (Gelu in BiasGelu), else its first.
    """
    own = [s for s in sources if s.op_type not in CONVERSIONS]
    heavy = [s for s in own if any(name in s.op_type for name in _HEAVY)]
    named = [s for s in own if s.op_type in kernel.op_type]
    found = next(iter(heavy or named or own), None)
    return None if found is None else found.origins[0]


class _Around:
    """The layers before and behind a kernel, past conversions and layout."""

    def __init__(self, kernels: Sequence[Kernel], anchors: Sequence[str | None]) -> None:
        self._kernels, self._anchors = kernels, anchors
        self._makers = {name: i for i, k in enumerate(kernels) for name in k.outputs if name}
        self._takers: dict[str, list[int]] = {}
        for index, kernel in enumerate(kernels):
            for name in kernel.inputs:
                self._takers.setdefault(name, []).append(index)

    def before(self, index: int) -> str | None:
        """The layer that makes what a kernel reads first; None for a graph input."""
        inputs = self._kernels[index].inputs
        at = self._makers.get(inputs[0]) if inputs else None
        while at is not None and self._anchors[at] is None:
            inputs = self._kernels[at].inputs
            at = self._makers.get(inputs[0]) if inputs else None
        return None if at is None else self._anchors[at]

    def behind(self, index: int) -> list[str]:
        """The layers that read what a kernel writes; "" for a graph output."""
        found: dict[str, None] = {}
        todo, seen = [index], set()
        while todo:
            at = todo.pop()
            if at in seen:
                continue
            seen.add(at)
            for name in self._kernels[at].outputs:
                readers = self._takers.get(name, [])
                if not readers and name:
                    found[""] = None
                for reader in readers:
                    anchor = self._anchors[reader]
                    if anchor is None:
                        todo.append(reader)
                    else:
                        found[anchor] = None
        return list(found)

    def by_conversion(self, index: int) -> bool:
        """Whether a layout kernel stands beside a Q or DQ, whose cost includes rearranging."""
        kernel = self._kernels[index]
        beside = [self._makers.get(name) for name in kernel.inputs[:1]]
        beside += [t for name in kernel.outputs for t in self._takers.get(name, ())]
        return any(
            other is not None and self._kernels[other].op_type in CONVERSIONS for other in beside
        )


def _layouts(tagged: Tagged, owners: Owners) -> tuple[frozenset[str], frozenset[str]]:
    """Tensors of the file that the runtime keeps in blocks, and in NHWC."""
    blocked, last = set(), set()
    for index, kernel in enumerate(owners.kernels):
        names = [n for i in owners.sources[index] for n in tagged.sources[i].outputs if n]
        if any(name.startswith("reorder") for name in kernel.outputs):
            blocked.update(names)
        elif kernel.channels_last:
            last.update(names)
    return frozenset(blocked), frozenset(last)
