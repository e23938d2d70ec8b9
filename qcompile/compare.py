"""Float outputs beside the artifact's, accumulated sample by sample; memory does not grow with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.channel_groups import ChannelGroup, ChannelSums, channels_text, runs
from qcompile.row_sums import Rows, pair_sums

__all__ = ["SQNR_MAX", "OutputComparison", "OutputResult", "SampleScore", "compare_outputs", "db"]

SQNR_MAX = 200.0
"""Decibels written for equal outputs: infinity has no place in JSON."""

WORST = 4
"""Samples that are remembered because they fare worst."""

NEAR_CONSTANT = 1e-3
"""Below this share of the energy varying between samples, an output is called nearly constant."""

LEAD_DB = 10.0
"""An output is judged by no more than this above its worst kind of channels, however good the others are."""

_TRACKED = 4_000_000  # elements whose mean over samples is kept, for the variation

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SampleScore:
    """SQNR in dB (agreement for other kinds) of one sample."""

    sample: str
    score: float


@dataclass(frozen=True)
class OutputResult:
    """One output over all samples. Floats are judged by SQNR, all else by agreement.

    Attributes:
        name: of the output; sequences and maps add ``[index]``.
        kind: "float" or "other" (integers, booleans, strings).
        sqnr_db: over all samples together; None for other kinds.
        worst_sample: the sample with the least SQNR (agreement).
        worst_sqnr_db: its SQNR.
        worst: the `WORST` samples with the least SQNR (agreement), the worst first.
        slices: slice -> SQNR (agreement for other kinds).
        agreement: share of equal elements (other kinds); for floats with classes on the last axis
            the share of equal arg-maxima, None for a last axis of one.
        cosine: cosine similarity over all samples.
        kl: mean Kullback-Leibler divergence in nats of the distributions on the last axis
            (softmax of it unless it is one already), None for a last axis of one.
        max_abs_error: largest difference.
        peak: largest absolute float value.
        nonfinite: elements that are NaN or infinite where float has a number.
        ignored: elements where float itself is NaN or infinite.
        shape_differs: samples for which the shapes differ; they count as if nothing matched.
        varying: share of the float output's energy that differs between samples, None if unknown.
        groups: kinds of channels whose magnitudes differ by orders, the largest first; empty where
            all are of one kind.
    """

    name: str
    kind: str
    sqnr_db: float | None
    worst_sample: str | None
    worst_sqnr_db: float | None
    slices: Mapping[str, float]
    agreement: float | None
    cosine: float | None
    kl: float | None
    max_abs_error: float
    peak: float
    nonfinite: int
    ignored: int
    shape_differs: int
    varying: float | None
    worst: tuple[SampleScore, ...] = ()
    groups: tuple[ChannelGroup, ...] = ()

    @property
    def worst_group(self) -> ChannelGroup | None:
        """The kind of channels with the least SQNR."""
        return min(self.groups, key=lambda group: group.sqnr_db, default=None)

    @property
    def least_db(self) -> float | None:
        """SQNR of the output, or of its worst kind of channels where that is less."""
        if self.sqnr_db is None:
            return None
        return min([self.sqnr_db, *(group.sqnr_db for group in self.groups)])

    @property
    def channels_db(self) -> float | None:
        """SQNR of the worst kind of channels; None where all are of one kind."""
        worst = self.worst_group
        return None if worst is None else worst.sqnr_db

    @property
    def blended_db(self) -> float | None:
        """SQNR of the output; with kinds of channels, the mean of what is typical for each, in dB.

        A decibel is worth the same in each kind: what halves the noise of one and doubles another's
        gains nothing, whichever is the noisier. Kinds that are good make up for a bad one only so far.
        """
        if not self.groups or self.sqnr_db is None:
            return self.sqnr_db
        typical = [group.typical_db for group in self.groups]
        return min(sum(typical) / len(typical), min(typical) + LEAD_DB)

    @property
    def zero(self) -> bool:
        """Whether the float output is zero on every sample, so that there is no signal to relate to."""
        return self.kind == "float" and self.peak == 0.0

    @property
    def near_constant(self) -> bool:
        """Whether the samples hardly differ in this output (a saturated softmax)."""
        return self.varying is not None and self.varying < NEAR_CONSTANT


def db(signal: float, noise: float) -> float:
    """10 log10(signal / noise), within +-`SQNR_MAX`; no noise is the upper end.

    >>> db(100.0, 1.0)
    20.0
    """
    if noise <= 0.0:
        return SQNR_MAX
    if signal <= 0.0:
        return -SQNR_MAX
    return max(-SQNR_MAX, min(SQNR_MAX, 10.0 * math.log10(signal / noise)))


@dataclass
class _Sums:
    signal: float = 0.0
    noise: float = 0.0
    equal: int = 0
    count: int = 0

    def add(self, other: _Sums) -> None:
        self.signal += other.signal
        self.noise += other.noise
        self.equal += other.equal
        self.count += other.count


@dataclass
class OutputComparison:
    """Accumulates one output; ``update`` per sample, then ``result``."""

    name: str
    kind: str
    total: _Sums = field(default_factory=_Sums)
    slices: dict[str, _Sums] = field(default_factory=dict)
    worst: list[tuple[float, str]] = field(default_factory=list)
    dot: float = 0.0
    got_energy: float = 0.0
    rows: int = 0
    same_top: int = 0
    kl_sum: float = 0.0
    max_abs_error: float = 0.0
    peak: float = 0.0
    nonfinite: int = 0
    ignored: int = 0
    shape_differs: int = 0
    seen: int = 0
    mean: Array | None = None
    track: bool = True
    channels: ChannelSums = field(default_factory=ChannelSums)

    def update(self, sample: str, label: str | None, ref: Array, got: Array) -> Rows | None:
        """Take in one sample's float output and the artifact's; the rows of both, where it has classes."""
        rows = None
        self.seen += 1
        if ref.shape != got.shape:
            self.shape_differs += 1
            sums = self._mismatch(ref, got)
        elif self.kind == "float":
            sums, rows = self._floats(ref, got)
        else:
            sums = _Sums(equal=int(np.count_nonzero(ref == got)), count=int(ref.size))
        self.total.add(sums)
        if label is not None:
            self.slices.setdefault(label, _Sums()).add(sums)
        here = self._score(sums)
        if here is not None:
            # stable: of equal samples the one seen first stays first
            self.worst.append((here, sample))
            self.worst = sorted(self.worst, key=lambda one: one[0])[:WORST]
        return rows

    def _mismatch(self, ref: Array, got: Array) -> _Sums:
        """A different number of results: as if nothing matched."""
        self.track = False
        if self.kind != "float":
            return _Sums(count=int(max(ref.size, got.size)))
        a, b = (np.nan_to_num(x.astype(np.float64), posinf=0.0, neginf=0.0) for x in (ref, got))
        signal, other = float(np.sum(a * a)), float(np.sum(b * b))
        self.peak = max(self.peak, float(np.max(np.abs(a), initial=0.0)))
        return _Sums(signal=signal, noise=max(signal + other, np.finfo(np.float64).tiny))

    def _floats(self, ref: Array, got: Array) -> tuple[_Sums, Rows | None]:
        found = pair_sums(ref, got)
        self.ignored += found.ignored
        self.nonfinite += found.nonfinite
        self.max_abs_error = max(self.max_abs_error, found.max_abs_error)
        self.peak = max(self.peak, found.peak)
        self.dot += found.dot
        self.got_energy += found.energy
        if found.rows is not None:
            self.rows += len(found.rows.kl)
            self.same_top += int(np.count_nonzero(found.rows.same))
            self.kl_sum += float(found.rows.kl.sum())
        self.channels.take(found.channels)
        self._variation(ref)
        return _Sums(signal=found.signal, noise=found.noise), found.rows

    def _variation(self, ref: Array) -> None:
        if not self.track or ref.size > _TRACKED or not ref.size:
            self.track = False
            return
        ref = np.nan_to_num(ref.astype(np.float64), posinf=0.0, neginf=0.0)
        if self.mean is None:
            self.mean = ref
        elif self.mean.shape != ref.shape:
            self.track = False
        else:
            self.mean += (ref - self.mean) / self.seen

    def _score(self, sums: _Sums) -> float | None:
        if self.kind == "float":
            return None if sums.signal == 0.0 and sums.noise == 0.0 else db(sums.signal, sums.noise)
        return sums.equal / sums.count if sums.count else None

    def result(self) -> OutputResult:
        """What has been seen so far."""
        total, floats = self.total, self.kind == "float"
        norm = math.sqrt(total.signal * self.got_energy)
        varying = None
        if floats and self.track and self.mean is not None and self.seen > 1 and total.signal > 0:
            constant = self.seen * float(np.sum(self.mean * self.mean))
            varying = max(0.0, 1.0 - constant / total.signal)
        if floats:
            agreement = self.same_top / self.rows if self.rows else None
        else:
            agreement = total.equal / total.count if total.count else 1.0
        scores = {label: self._score(sums) for label, sums in sorted(self.slices.items())}
        return OutputResult(
            name=self.name,
            kind=self.kind,
            sqnr_db=db(total.signal, total.noise) if floats else None,
            worst_sample=self.worst[0][1] if self.worst else None,
            worst_sqnr_db=self.worst[0][0] if self.worst and floats else None,
            slices={label: score for label, score in scores.items() if score is not None},
            agreement=agreement,
            cosine=self.dot / norm if floats and norm > 0 else None,
            kl=self.kl_sum / self.rows if floats and self.rows else None,
            max_abs_error=self.max_abs_error,
            peak=self.peak,
            nonfinite=self.nonfinite,
            ignored=self.ignored,
            shape_differs=self.shape_differs,
            varying=varying,
            worst=tuple(SampleScore(sample, score) for score, sample in self.worst),
            groups=self._groups() if floats else (),
        )

    def _groups(self) -> tuple[ChannelGroup, ...]:
        found = []
        for axis, channels, sums in self.channels.split():
            named = runs(channels)
            signal, noise = sums.energies()
            found.append(
                ChannelGroup(
                    axis,
                    named,
                    channels_text(named),
                    db(signal, noise),
                    db(signal, sums.typical_noise()),
                    float(sums.peak.max()),
                    float(sums.worst.max()),
                )
            )
        return tuple(found)


def compare_outputs(
    comparisons: dict[str, OutputComparison],
    sample: str,
    label: str | None,
    ref: Mapping[str, Any],
    got: Mapping[str, Any],
) -> dict[str, Rows]:
    """Add one sample to ``comparisons`` (name -> accumulator, made on first sight).

    Args:
        comparisons: grown in place.
        sample: name of the sample.
        label: its slice, None for none.
        ref: the float model's outputs.
        got: the artifact's, with the same names.

    Returns:
        what was found of each row of the outputs with classes on the last axis.
    """
    found: dict[str, Rows] = {}
    for name, value in ref.items():
        other = dict(_arrays(name, got[name]))
        for part, a in _arrays(name, value):
            b = other.get(part, np.empty((0,), a.dtype))
            kind = "float" if a.dtype.kind == "f" and b.dtype.kind == "f" else "other"
            one = comparisons.setdefault(part, OutputComparison(part, kind))
            rows = one.update(sample, label, a, b)
            if rows is not None:
                found[part] = rows
    return found


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    """A tensor as it is; the parts of a sequence, a map or an optional under indexed names."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _arrays(f"{name}[{key}]", part)
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _arrays(f"{name}[{index}]", part)
    elif value is not None:
        yield name, np.asarray(value)
