"""How large a decoder's keys and values become: the scales of a cache in 8 bits, from calibration samples.

Keys are rotated by their position: two channels turn into each other, so the length of the pair is what
stays the same at positions that no sample reaches (SmolLM2-135M, scales from windows of 128 tokens, read at
1,024: KL divergence 0.001 nats; with each channel's own peak 0.07). Values keep their channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort import runtime_version
from qcompile.backends.ort_bits import has_integer_cache, has_quantization
from qcompile.backends.ort_cache import store_cache
from qcompile.capture import capture
from qcompile.data.inputs import Feed, is_cache
from qcompile.ir.cache import CachePair
from qcompile.ir.errors import BackendMissingError, OptionError
from qcompile.ir.graph import attribute, default_opset
from qcompile.ir.target import Target
from qcompile.job import Job
from qcompile.oldest_runtime import INTEGER_CACHE, first_release, parse_release
from qcompile.segmented import SegmentedSession

__all__ = ["STEPS", "Cache", "cache_pairs", "check_target", "find_cache", "stored"]

STEPS = 64
"""Decoding steps that a cache in 8 bits is judged over where none were asked for."""

SAMPLES = 32
"""Samples that the scales are taken from: peaks over tokens, of which each sample has many."""

LEAST = 1e-6
"""Of a peak: a channel that is always zero has some scale too."""


@dataclass(frozen=True)
class Cache:
    """A cache in 8 bits.

    Attributes:
        by_channel: inputs and outputs with a scale for each head and channel.
        pairs: the same with the scales that the graph has; empty before it is stored.
        samples: from how many samples these are.
        ways: how the graph stores them -> how many.
    """

    by_channel: tuple[CachePair, ...]
    samples: int
    pairs: tuple[CachePair, ...] = ()
    ways: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As report.json has it."""
        return {
            "type": "int8",
            "samples": self.samples,
            "token_bytes": self.token_bytes,
            "stored": dict(self.ways),
            "tensors": [
                {
                    "input": pair.past,
                    "output": pair.present,
                    "shape": list(pair.scale.shape),
                    "scale": pair.scale.ravel().tolist(),
                }
                for pair in self.pairs
            ],
        }

    @property
    def token_bytes(self) -> tuple[int, int]:
        """What one token adds to a row's cache; float, in 8 bits."""
        elements = sum(pair.scale.size for pair in self.by_channel)
        return 4 * elements, elements


def check_target(target: Target) -> None:
    """Refuse targets that have no such form.

    Raises:
        OptionError: this one has none.
    """
    if target.weights is None or target.portable:
        raise OptionError(
            f"--kv-cache int8 belongs to ONNX Runtime's weight-only targets, not to {target.name}; "
            "use --target ort-int4 or ort-int8-weights, or leave the option out"
        )


def cache_pairs(job: Job) -> dict[str, str]:
    """Output -> input of every cache that can be stored in 8 bits.

    Raises:
        OptionError: the model has none, or one of another form.
    """
    specs = {spec.name: spec for spec in job.prepared.inputs}
    state = {} if job.rollout is None else job.rollout.state
    found = {out: into for out, into in state.items() if is_cache(specs[into])}
    if not found:
        raise OptionError(
            "--kv-cache int8: the model has no cache of keys and values: needed are inputs like "
            "past_key_values.0.key, four dimensions, and the outputs they are fed back from "
            "(present.0.key, or --state OUTPUT=INPUT); export it with its cache, or leave the option out"
        )
    for into in found.values():
        spec = specs[into]
        shape = spec.shape or ()
        if spec.dtype != "float32" or not (isinstance(shape[1], int) and isinstance(shape[3], int)):
            raise OptionError(
                f"--kv-cache int8: input '{spec}' is no cache that it can store; needed is float32 "
                "with axes batch, heads, tokens, channels, heads and channels fixed"
            )
    return found


def find_cache(job: Job) -> Cache:
    """Scales from the largest values over calibration samples.

    Raises:
        OptionError: the model has no cache that can be stored.
        BackendMissingError: the runtime cannot round at the model's opset.
        CalibrationError: a sample does not run.
    """
    state = cache_pairs(job)
    opset = default_opset(job.prepared.model)
    if not has_quantization(opset):
        raise BackendMissingError(
            f"--kv-cache int8 needs QuantizeLinear of the model's opset {opset}, which ONNX Runtime "
            f"{runtime_version()} cannot run; take a newer one, or leave the cache in float"
        )
    total = len(job.data.calibration)
    picked = np.unique(np.linspace(0, total - 1, min(SAMPLES, total)).astype(int))
    feeds = [job.data.calibration.load(int(i)) for i in picked]
    neighbours = _neighbours(job.prepared.model)
    peaks: dict[str, npt.NDArray[Any]] = {}
    for values in _presents(job, list(state), feeds):
        for name in state:
            found = _peak(np.asarray(values[name]), _turned(name), neighbours)
            peaks[name] = np.maximum(peaks.get(name, found), found)
    pairs = tuple(CachePair(into, out, _scale(peaks[out])) for out, into in state.items())
    return Cache(pairs, len(feeds))


def stored(model: oir.Model, cache: Cache, min_ort: str | None) -> Cache:
    """Let a lowered model keep its cache in 8 bits, in place; the cache as it is there."""
    able = has_integer_cache()
    if min_ort is not None:
        first = first_release(INTEGER_CACHE)
        able = able and first is not None and parse_release(min_ort) >= first
    pairs, ways = store_cache(model, cache.by_channel, group_query=able)
    return replace(cache, pairs=pairs, ways=ways)


def _presents(job: Job, names: list[str], feeds: list[Feed]) -> Iterator[Mapping[str, Any]]:
    """What the prepared float model gives out, sample by sample."""
    options: dict[str, Any] = {
        "threads": job.options.threads,
        "custom_ops": job.options.custom_ops,
    }
    if job.room is None or job.room.fits:
        yield from capture(job.prepared.model, names, feeds, job.work / "presents.onnx", **options)
        return
    parts = SegmentedSession(
        job.prepared.model, feeds, job.work / "presents", job.room.part, **options
    )
    for feed in feeds:
        yield parts.run(feed, names)


def _turned(name: str) -> bool:
    """Whether channels may be rotated by position: all that is not called a value."""
    return "value" not in name.lower()


def _neighbours(model: oir.Model) -> bool:
    """Whether neighbouring channels turn into each other, rather than those half the width apart."""
    kinds = {"GroupQueryAttention": "rotary_interleaved", "RotaryEmbedding": "interleaved"}
    return any(
        bool(attribute(node, kinds[node.op_type], 0))
        for node in model.graph
        if node.op_type in kinds
    )


def _peak(present: npt.NDArray[Any], turned: bool, neighbours: bool) -> npt.NDArray[Any]:
    """Largest absolute value by head and channel, (1, heads, 1, channels)."""
    *outer, width = present.shape
    if not present.size:
        return np.zeros((1, outer[1], 1, width))
    if turned and width % 2 == 0:
        split, axis = ((width // 2, 2), -1) if neighbours else ((2, width // 2), -2)
        pairs = present.reshape(*outer, *split)
        length = np.sqrt(np.square(pairs, dtype=np.float64).sum(axis, keepdims=True))
        present = np.broadcast_to(length, pairs.shape).reshape(present.shape)
    return np.asarray(np.abs(present).max((0, 2), keepdims=True), np.float64)


def _scale(peak: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    floor = max(float(peak.max()) * LEAST, np.finfo(np.float32).tiny * 1e6)
    return np.asarray(np.maximum(peak, floor) / 127, np.float32)
