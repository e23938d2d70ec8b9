"""Chooses factors that even out the channels of activations, and keeps them where the model gains.

For each region (see ``passes.scale_regions``) candidates are tried on what its layers read: the factor
with the least error of their integer products on held-back samples is taken, none where that gains
too little. Then the whole model is built with and without them; what does not raise the SQNR at the
output is undone: first what Convs read ("fold-scales"), then what only products with matrices read
("smooth-quant"), then what such products read beside others ("smooth-branches").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.calibrate import calibrate
from qcompile.calibrators.evening import ALPHAS, even_exponents, product_error, weight_peaks
from qcompile.calibrators.gram import columns
from qcompile.capture import capture, tensor_sizes
from qcompile.data.inputs import Feed
from qcompile.ir.errors import CalibrationError
from qcompile.ir.graph import attribute, origin
from qcompile.ir.notes import Note
from qcompile.job import Job
from qcompile.learnable import grouped_weight
from qcompile.passes.integer_region import observed_tensors
from qcompile.passes.quantizable import Site
from qcompile.passes.scale_regions import Region
from qcompile.ranges import Ranges
from qcompile.weight_inputs import source_of, unfit

__all__ = ["Factors", "choose_factors", "recalibrated", "region_kind"]

Array = npt.NDArray[np.float64]
Progress = Callable[[float, float | None], None]

SAMPLES = 16
POSITIONS = 256
"""Positions of a layer's input to judge a candidate on, over all held-back samples."""

GAIN = 0.95
"""A factor must lower the error of the products that read it to this share."""

BRANCH_GAIN = 0.5
"""The same where the factor costs a division."""

LIMIT = 256 * 2**20
"""Bytes of captured tensors alive at once."""


@dataclass(frozen=True)
class Factors:
    """Factors by technique, and what was said about regions.

    Attributes:
        exponents: technique -> name of a region -> k of the factors 2^k.
        notes: technique -> what each region gains, or why it was left alone.
    """

    exponents: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    notes: dict[str, list[Note]] = field(default_factory=dict)

    def note(self, technique: str, where: str, text: str) -> None:
        """Remember something about a region."""
        self.notes.setdefault(technique, []).append(Note(where, text))


@dataclass
class _Reader:
    """A layer that reads a region, and what it read on held-back samples."""

    site: Site
    seen: list[npt.NDArray[np.float32]] = field(default_factory=list)


def region_kind(region: Region) -> str:
    """The technique that a region belongs to."""
    if region.branch:
        return "smooth-branches"
    convs = any(node.op_type.startswith("Conv") for node in region.readers)
    return "fold-scales" if convs else "smooth-quant"


def choose_factors(job: Job, regions: Sequence[Region], progress: Progress) -> Factors:
    """The factors with the least error of the products that read each region."""
    found = Factors()
    sites = {site.node: site for site in job.prepared.sites}
    work: dict[str, list[Region]] = {}
    for region in regions:
        if any(n not in sites or unfit(sites[n]) for n in region.readers):
            text = "not scaled: a layer that reads it stays float or has no learned form"
            found.note(region_kind(region), region.name, text)
            continue
        for value in region.read():
            work.setdefault(value.name or "", []).append(region)
    wanted = [r for r in regions if all((v.name or "") in work for v in r.read())]
    feeds, judges = job.data.teaching(SAMPLES)
    for part in _parts(job, wanted, feeds):
        for region, peaks, readers in _gather(job, part, sites, feeds, judges):
            _choose(found, region, peaks, readers)
        progress(len(part), len(wanted))
    return found


def _parts(job: Job, regions: Sequence[Region], feeds: Sequence[Feed]) -> list[list[Region]]:
    """Regions whose tensors fit into memory together."""
    if not regions:
        return []
    names = [v.name or "" for r in regions for v in r.read()]
    path = job.work / "sizes.onnx"
    sizes = tensor_sizes(
        job.prepared.model, names, feeds[0], path, custom_ops=job.options.custom_ops
    )
    limit = min(LIMIT, (job.options.memory_limit or 4 * LIMIT) // 4)
    parts: list[list[Region]] = [[]]
    held = 0
    for region in regions:
        size = sum(sizes[v.name or ""] for v in region.read())
        if parts[-1] and held + size > limit:
            parts.append([])
            held = 0
        parts[-1].append(region)
        held += size
    return parts


def _gather(
    job: Job,
    regions: Sequence[Region],
    sites: dict[oir.Node, Site],
    feeds: Sequence[Feed],
    judges: frozenset[int],
) -> list[tuple[Region, Array, list[_Reader]]]:
    """For each region how far its channels reach, and what its layers read on held-back samples."""
    peaks = {region.name: np.zeros(region.channels) for region in regions}
    readers = {r.name: [_Reader(sites[node]) for node in r.readers] for r in regions}
    names = [v.name or "" for r in regions for v in r.read()]
    each = max(16, POSITIONS // max(1, len(judges)))
    taken = capture(
        job.prepared.model,
        names,
        feeds,
        job.work / "regions.onnx",
        custom_ops=job.options.custom_ops,
        threads=job.options.threads,
    )
    for index, arrays in enumerate(taken):
        for region in regions:
            if index not in judges:
                for value in region.read():
                    x = arrays[value.name or ""]
                    axis = region.tensors[value] + x.ndim
                    over = tuple(i for i in range(x.ndim) if i != axis)
                    reach = np.abs(x).max(axis=over) if x.size else 0.0
                    peaks[region.name] = np.maximum(peaks[region.name], reach)
                continue
            for number, reader in enumerate(readers[region.name]):
                source = source_of(reader.site)
                x = arrays[source.tensor]
                rng = np.random.default_rng([job.options.seed, index, number])
                turned = x.T if source.turned else x
                reader.seen.append(columns(turned, source.window, each, rng))
    return [(r, peaks[r.name], readers[r.name]) for r in regions]


def _choose(found: Factors, region: Region, peaks: Array, readers: Sequence[_Reader]) -> None:
    kind = region_kind(region)
    where = region.name
    if not np.isfinite(peaks).all():
        found.note(kind, where, "not scaled: it holds NaN or infinity")
        return
    inputs = [np.concatenate(reader.seen, axis=2) for reader in readers]
    weights = [grouped_weight(reader.site) for reader in readers]
    reach = weight_peaks(
        [_by_channel(w, region.channels, r.site) for w, r in zip(weights, readers, strict=True)]
    )

    def error(exponents: npt.NDArray[np.int64]) -> float:
        total = 0.0
        for x, weight in zip(inputs, weights, strict=True):
            groups, d, _ = weight.shape
            each = np.exp2(exponents.astype(np.float32)).reshape(groups, -1)
            taps = d // each.shape[1]
            total += product_error(x, weight.astype(np.float32), np.repeat(each, taps, axis=1))
        return total

    before = error(np.zeros(region.channels, np.int64))
    best, chosen, taken = before, None, 0.0
    tried: set[bytes] = set()
    for alpha in ALPHAS:
        exponents = even_exponents(peaks, reach, alpha, region.least, region.fixed)
        if not exponents.any() or exponents.tobytes() in tried:
            continue
        tried.add(exponents.tobytes())
        one = error(exponents)
        if one < best:
            best, chosen, taken = one, exponents, alpha
    listed = ", ".join(f"'{origin(reader.site.node)}'" for reader in readers)
    needed = BRANCH_GAIN if region.branch else GAIN
    if chosen is None or best > needed * before:
        found.note(kind, where, f"left as it is: no factors help {listed} enough")
        return
    found.exponents.setdefault(kind, {})[where] = tuple(int(k) for k in chosen)
    gain = 10 * np.log10(before / max(best, 1e-300))
    text = f"alpha {taken:g}: the products of {listed} err {gain:.1f} dB less on held-back samples"
    found.notes.setdefault(kind, []).append(Note(where, text, changed=True))


def _by_channel(weight: Array, channels: int, site: Site) -> Array:
    """(channels, taps and outputs), each output channel's largest weight being 1."""
    groups, _, out = weight.shape
    largest = np.abs(weight).max(axis=1, keepdims=True)
    relative = weight / np.where(largest > 0, largest, 1.0)
    if site.op_type == "Conv" and attribute(site.node, "group", 1) == channels == groups:
        return np.ones((channels, 1))  # a depthwise weight has scales of its own: factors are free
    return relative.reshape(groups, channels // groups, -1, out).reshape(channels, -1)


def recalibrated(job: Job, ranges: Ranges, touched: frozenset[str]) -> Ranges:
    """The ranges with those of scaled tensors observed anew; all others stay.

    Raises:
        CalibrationError: the statistics of the rest are not at hand.
    """
    known = ranges.calibration
    if known is None:
        raise CalibrationError("ranges that were replayed have no statistics to renew")
    names = [
        name
        for name in observed_tensors(job.prepared.sites)
        if name in touched or not (name in known.fit or name in known.same)
    ]
    if not names:
        return ranges
    new = calibrate(
        job.prepared.model,
        names,
        job.data.calibration,
        spec=known.spec,
        method=known.method,
        threads=job.options.threads or 0,
        memory_limit=job.options.memory_limit,
        seed=job.options.seed,
        custom_ops=job.options.custom_ops,
        without_nan=(),
    )
    merged = replace(
        known,
        fit={**known.fit, **new.fit},
        held={**known.held, **new.held} if known.held else {},
        same={**known.same, **new.same},
        whole={**known.whole, **new.whole},
        _ranges={},
    )
    return replace(
        ranges,
        chosen={**ranges.chosen, **merged.ranges()},
        calibration=merged,
        observed=ranges.observed or known,
    )
