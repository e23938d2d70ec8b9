"""From a profile to the time of each layer: corrected to the clock, then handed to origin ids."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompile.backends.ort import Feed
from qcompile.backends.ort_owners import CONVERSIONS, Owners, find_owners
from qcompile.backends.ort_profile import Kernel, Profiler
from qcompile.backends.ort_tags import Source, Tagged, tag_model

__all__ = ["Conversion", "FormTimes", "corrected", "form_times"]

OVERHEAD_NS = 6000.0
"""More than this no profiler adds to one kernel; what is still too much is scaled down."""

PER_INPUT = 0.05
"""Share by which each input adds to the profiler's overhead (it writes down type and shape):
measured with chains of operators on one element, 2.2 us with one input, 2.9 us with eight."""

EVENTS = 30_000
"""Profile events at most: each is 700 bytes of JSON, and the profiler stops at a million."""

_HEAVY = ("Conv", "Gemm", "GRU", "LSTM", "MatMul", "RNN")


@dataclass(frozen=True)
class Conversion:
    """An executed Q or DQ: which, how many elements, how long."""

    quantize: bool
    elements: int
    ns: float


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
    """

    layers: Mapping[str, float]
    conversions: tuple[Conversion, ...]
    base_ns: float
    blocked: frozenset[str]
    channels_last: frozenset[str]
    unmapped_ns: float


def form_times(
    path: Path,
    feed: Feed,
    total_ns: float,
    *,
    threads: int | None = None,
    budget_s: float = 2.0,
    custom_ops: Path | None = None,
) -> FormTimes:
    """Profile one model and hand its latency out to its layers.

    Args:
        path: the model.
        feed: its input.
        total_ns: latency by the clock, without a profile.
        threads: threads inside an operator.
        budget_s: time for profiled runs (at least five are made).
        custom_ops: library with custom operators.

    Raises:
        ModelError: the model cannot be opened or run.
    """
    tagged = tag_model(path)
    profiler = Profiler(tagged, threads=threads, custom_ops=custom_ops)
    profiler.session.run(feed)
    walls: list[int] = []
    begin = time.perf_counter()
    limit = max(5, EVENTS // max(1, len(tagged.sources)))
    while len(walls) < 5 or (time.perf_counter() - begin < budget_s and len(walls) < limit):
        start = time.perf_counter_ns()
        profiler.run(feed)
        walls.append(time.perf_counter_ns() - start)
    kernels = profiler.finish(skip=2)
    # what the call does beside executing (taking inputs in, handing outputs out)
    base = max(0.0, _low(walls[1:]) - profiler.execute_ns)
    base = min(base, 0.15 * total_ns)
    times = corrected(kernels, total_ns - base)
    return _handed_out(tagged, find_owners(tagged, kernels), times, base)


def _low(values: Sequence[float]) -> float:
    ordered = np.sort(np.asarray(values, float))
    return float(np.mean(ordered[: (len(ordered) + 1) // 2]))


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


def _handed_out(tagged: Tagged, owners: Owners, times: Sequence[float], base: float) -> FormTimes:
    layers: dict[str, float] = {
        origin: 0.0
        for nodes in owners.sources
        for node in nodes
        if tagged.sources[node].op_type not in CONVERSIONS
        for origin in tagged.sources[node].origins
    }
    conversions = []
    unmapped = 0.0
    makers, takers = _edges(owners.kernels)
    for index, kernel in enumerate(owners.kernels):
        at: int | None = index
        if index in owners.layout:
            at = _neighbour(index, owners, makers, takers)
        if kernel.op_type in ("QuantizeLinear", "DequantizeLinear") and kernel.read:
            made = kernel.op_type == "QuantizeLinear"
            conversions.append(Conversion(made, kernel.read[0].elements, times[index]))
            continue
        origin = None if at is None else _anchor([tagged.sources[i] for i in owners.sources[at]])
        if origin is None:
            unmapped += times[index]
        else:
            layers[origin] = layers.get(origin, 0.0) + times[index]
    blocked, last = _layouts(tagged, owners)
    return FormTimes(layers, tuple(conversions), base, blocked, last, unmapped)


def _anchor(sources: Sequence[Source]) -> str | None:
    """The layer that a kernel's time stands with: its multiplying node, else its first."""
    own = [s for s in sources if s.op_type not in CONVERSIONS]
    heavy = [s for s in own if any(name in s.op_type for name in _HEAVY)]
    found = next(iter(heavy or own), None)
    return None if found is None else found.origins[0]


def _edges(kernels: Sequence[Kernel]) -> tuple[dict[str, int], dict[str, list[int]]]:
    makers = {name: i for i, k in enumerate(kernels) for name in k.outputs if name}
    takers: dict[str, list[int]] = {}
    for index, kernel in enumerate(kernels):
        for name in kernel.inputs:
            takers.setdefault(name, []).append(index)
    return makers, takers


def _neighbour(
    index: int, owners: Owners, makers: Mapping[str, int], takers: Mapping[str, list[int]]
) -> int | None:
    """The kernel for which a tensor was rearranged; None beside a conversion, which then pays it."""
    kernel = owners.kernels[index]
    before = makers.get(kernel.inputs[0]) if kernel.inputs else None
    behind = [t for name in kernel.outputs for t in takers.get(name, ())]
    for other in ([before] if before is not None else []) + behind:
        if owners.kernels[other].op_type in CONVERSIONS:
            return None
    ordered = [*behind, before] if kernel.op_type == "ReorderInput" else [before, *behind]
    return next(
        (o for o in ordered if o is not None and o not in owners.layout and owners.sources[o]), None
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
