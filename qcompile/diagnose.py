"""Where an artifact loses accuracy, which layers cost most at the output, and why.

The model is prepared again as the compile did, and quantized by the artifact's lock, so every tensor
has its float twin. Values are compared as the Q/DQ graph is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as oir

from qcompile.artifact import LOCK
from qcompile.backends.tables import get_target
from qcompile.cause_origin import traced
from qcompile.causes import BROKEN, PLAIN, UNLIKE_DATA, Cause, tensor_cause, weight_cause, worst
from qcompile.data.inputs import Feed
from qcompile.departures import Quantized, TensorStats, quantized_tensors, seen_values
from qcompile.factors import with_factors
from qcompile.ir.affine import solve
from qcompile.ir.errors import CalibrationError, OptionError, QCompileError
from qcompile.ir.graph import constant, origin
from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.plan import FLOAT
from qcompile.learned_file import LEARNED, read_learned
from qcompile.learning import Learned
from qcompile.lock import Lock
from qcompile.options import NAMES, Options, make_options
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.planner.grouped import measure_model
from qcompile.planner.units import full_plan
from qcompile.prepare import Prepared, prepare
from qcompile.scratch import scratch_folder
from qcompile.subject import Subject

__all__ = ["Diagnosis", "Finding", "diagnose"]

SAMPLES = 8
MEASURED = 2
"""Samples on which each layer's error at the output is measured."""

DEPARTS = 0.01
"""Share of the signal, by channel, that counts as a departure: 20 dB."""

_CARRIED = ("disable", "opset", "min_ort", "fix_weights", "rest", "prefer")
"""Options that decide what the prepared model is."""


def cause_data(cause: Cause) -> dict[str, Any]:
    """A cause as JSON has it."""
    return {
        "cause": cause.kind,
        "blamed": cause.node,
        "tensor": cause.tensor,
        "evidence": cause.text,
        "rounding_share": cause.noise,
        "remedy": cause.remedy,
    }


@dataclass(frozen=True)
class Finding:
    """One place.

    Attributes:
        node: origin id of the layer that errs, "" for an input of the model.
        op_type: its operator, "" for an input.
        output_share: error energy at the output by this layer alone, relative to the output's; None
            where it was not measured.
        cause: why, as far as the numbers tell.
        tried: what the compile did against it.
    """

    node: str
    op_type: str
    output_share: float | None
    cause: Cause
    tried: tuple[str, ...]

    @property
    def db(self) -> float | None:
        """Output to error of this layer alone."""
        return -10 * math.log10(self.output_share) if self.output_share else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "node": self.node,
            "op_type": self.op_type,
            "output_share": self.output_share,
            "error_db": self.db,
            **cause_data(self.cause),
            "tried": list(self.tried),
        }


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        likely: the most likely cause of it all; None where there is only plain rounding.
        first: where the artifact departs from float first; None where it does not.
        ranked: layers by the error that they cause at the output, the worst first.
        all_integer: error energy at the output with everything integer, relative to the output's.
        samples: how many were run.
    """

    likely: Cause | None
    first: Finding | None
    ranked: tuple[Finding, ...]
    all_integer: float | None
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "likely": None if self.likely is None else cause_data(self.likely),
            "first": None if self.first is None else self.first.to_dict(),
            "ranked": [f.to_dict() for f in self.ranked],
            "all_integer": self.all_integer,
            "samples": self.samples,
        }


def diagnose(
    subject: Subject,
    float_model: Path,
    feeds: Sequence[Feed],
    *,
    most: int = 5,
    threads: int | None = None,
    custom_ops: Path | None = None,
    search_time: float = 20.0,
) -> Diagnosis:
    """Compare an artifact with its float model, tensor by tensor and layer by layer.

    Args:
        subject: the artifact.
        float_model: what it was compiled from.
        feeds: samples as in deployment; the first eight are run.
        most: how many layers to rank.
        threads: inside an operator.
        custom_ops: library with custom operators.
        search_time: seconds for the error of single layers.

    Raises:
        CalibrationError: no samples.
        OptionError: the artifact is of another model, or has no lock.
    """
    if not feeds:
        raise CalibrationError("no samples to compare on; pass some with --calibration")
    feeds = list(feeds)[:SAMPLES]
    with scratch_folder() as work:
        case = _Case.of(subject, float_model)
        pairs = quantized_tensors(case.quantized.model, list(case.values))
        stats = seen_values(
            case.prepared.model, case.quantized.model, pairs, feeds, work, custom_ops
        )
        unlike = case.unlike(feeds, work, custom_ops)
        shares, whole = case.shares(feeds[:MEASURED], threads, custom_ops, search_time)
    case.look(pairs, stats)
    sites = sorted(case.sites(shares), key=lambda f: -(f.output_share or 0.0))
    broken = max((one.cause for one in sites), key=lambda c: c.gain, default=None)
    ranked = [f for f in sites if f.output_share != 0.0]
    first = case.first(pairs, stats)
    return Diagnosis(
        _likely(unlike, broken, first, ranked), first, tuple(ranked[:most]), whole, len(feeds)
    )


def _likely(
    unlike: Sequence[Cause],
    broken: Cause | None,
    first: Finding | None,
    ranked: Sequence[Finding],
) -> Cause | None:
    """Data of another kind and a broken channel explain everything behind them.

    That also holds where the channel hides all others, so that its own rounding costs nothing. Without
    either, it is the cause that costs most at the output.
    """
    if unlike:
        return unlike[0]
    costs: dict[tuple[str, str], float] = {}
    for one in ranked:
        if one.cause.kind != PLAIN:
            costs[one.cause.key] = costs.get(one.cause.key, 0.0) + (one.output_share or 0.0)
    most = max(costs, key=lambda key: costs[key], default=None)
    costly = next((f.cause for f in ranked if f.cause.key == most), None)
    if broken is not None and broken.gain > BROKEN:
        # what costs most may be the same channel, seen where it does
        return costly if costly is not None and costly.node == broken.node else broken
    if costly is not None:
        return costly
    return first.cause if first is not None and first.cause.kind != PLAIN else None


@dataclass
class _Case:
    """The model as the artifact has it, and what was seen of it."""

    prepared: Prepared
    lock: Lock
    quantized: CompileState
    everything: oir.Model
    half: bool
    report: Mapping[str, Any]
    values: dict[str, oir.Value]
    causes: dict[str, Cause]

    @classmethod
    def of(cls, subject: Subject, float_model: Path) -> _Case:
        report = subject.report()
        inputs = {} if subject.artifact is None else subject.artifact.manifest.get("inputs", {})
        options = _options(inputs)
        target = get_target(str(inputs.get("target")), str(inputs.get("device", "native")))
        target = target.preferring(options.prefer)
        prepared = prepare(float_model, target, options)
        if prepared.loaded.sha256 != inputs.get("model"):
            raise OptionError(
                f"'{subject.path}' was not compiled from '{float_model}' (their hashes differ); "
                "give the model that it was compiled from"
            )
        lock = Lock.read(subject.path / LOCK)
        if lock.factors:
            prepared = with_factors(prepared, lock.factors)
        learned = (
            read_learned(subject.path / LEARNED, prepared.model) if lock.learned else Learned()
        )

        def built(plan: Any) -> CompileState:
            state = CompileState(
                prepared.model.clone(),
                target,
                ranges=dict(lock.ranges),
                qparams=dict(prepared.given.qparams),
                weights={**learned.weights, **prepared.given.weights},
                bias_shifts=dict(learned.bias_shifts),
                plan=plan,
            )
            passes = (CorrectBias(), InsertQDQ())
            PassManager(passes, frozenset(options.disable)).run(state)
            return state

        values = {
            v.name: v
            for v in (
                *prepared.model.graph.inputs,
                *(v for node in prepared.model.graph for v in node.outputs),
            )
            if v.name
        }
        everything = built(full_plan(prepared.sites)).model
        half = target.with_rest(options.rest).rests[0] == "fp16"
        return cls(prepared, lock, built(lock.plan), everything, half, report, values, {})

    def shares(
        self, feeds: Sequence[Feed], threads: int | None, custom_ops: Path | None, seconds: float
    ) -> tuple[dict[str, float], float | None]:
        """Origin -> error energy at the output by that layer alone; and by all of them."""
        try:
            found = measure_model(
                self.prepared.model,
                self.everything,
                self.prepared.target,
                feeds,
                threads=threads,
                custom_ops=custom_ops,
                search_time=seconds,
            )
        except QCompileError:
            # A graph that cannot be gated still has its tensors to compare; the compile's own
            # measurements stand in.
            rows = {r["origin"]: r["sensitivity"] for r in self.report["layers"]}
            return {o: s for o, s in rows.items() if s is not None}, None
        units = found.sensitivities.units
        shares = {name: one.reading + (one.writing or 0.0) for name, one in units.items()}
        return shares, found.sensitivities.all_integer

    def unlike(self, feeds: Sequence[Feed], work: Path, custom_ops: Path | None) -> list[Cause]:
        """Tensors that depend on the data alone and are unlike what was calibrated, whatever the plan."""
        ranged = {name for name in self.lock.ranges if name in self.values}
        spec = self.prepared.target.activation
        roots = [
            Quantized(name, name, solve(self.lock.ranges[name], spec))
            for name in self.values
            if name in ranged and not _quantized_before(self.values[name], ranged)
        ]
        model = self.prepared.model
        stats = seen_values(model, model, roots, feeds, work, custom_ops)
        found = [
            tensor_cause(self.values[pair.name], pair, stats[pair.name], first=True)
            for pair in roots
            if stats[pair.name].count
        ]
        return [cause for cause in found if cause.kind == UNLIKE_DATA]

    def look(self, pairs: Sequence[Quantized], stats: Mapping[str, TensorStats]) -> None:
        """Find the cause of each quantized tensor's error."""
        names = {pair.name for pair in pairs}
        for pair in pairs:
            value = self.values[pair.name]
            first = not _quantized_before(value, names)
            seen = stats[pair.name]
            if seen.count:
                cause = tensor_cause(value, pair, seen, first=first, half=self.half)
                self.causes[pair.name] = cause
        self.causes = traced(self.causes, self.values)

    def sites(self, shares: Mapping[str, float]) -> list[Finding]:
        """Each integer layer with the worst of what it reads and writes."""
        plan = self.lock.plan
        found = []
        for site in self.prepared.sites:
            if plan.precision(site.origin) == FLOAT or site.reason:
                continue
            evidence = [self.causes[n] for n in site.activation_names if n in self.causes]
            evidence += [self.causes[n] for n in site.output_names if n in self.causes]
            name = "" if site.weight is None else site.weight.name or ""
            array, weight = constant(site.weight), self.quantized.weights.get(name)
            if array is not None and weight is not None:
                evidence.append(weight_cause(site.origin, name, array, weight))
            cause = worst(evidence)
            if cause is not None:
                tried = self._tried(site.origin, cause)
                share = shares.get(site.origin)
                found.append(Finding(site.origin, site.op_type, share, cause, tried))
        return found

    def first(self, pairs: Sequence[Quantized], stats: Mapping[str, TensorStats]) -> Finding | None:
        """The first tensor in graph order that lost its signal."""
        for pair in pairs:
            cause = self.causes.get(pair.name)
            if cause is None or stats[pair.name].error_share <= DEPARTS:
                continue
            node = self.values[pair.name].producer()
            name = "" if node is None else origin(node) or node.name or ""
            kind = "" if node is None else node.op_type
            return Finding(name, kind, None, cause, self._tried(name, cause))
        return None

    def _tried(self, node: str, cause: Cause) -> tuple[str, ...]:
        """What the passes and the learning said of the layer, and how the range was chosen."""
        told: list[str] = []
        logs = [("learn", self.report["notes"])]
        logs += [(p["name"], p["notes"]) for p in self.report["passes"]]
        for who, notes in logs:
            told += [
                f"{who}: {note['text']}"
                for note in notes
                if note["where"] and note["where"] in (node, cause.node, cause.tensor)
            ]
        limits = self.lock.ranges.get(cause.tensor)
        if limits is not None:
            told.append(
                f"range {float(limits.low):.4g} to {float(limits.high):.4g} chosen by {limits.method}"
            )
        return tuple(dict.fromkeys(told))


def _options(inputs: Mapping[str, Any]) -> Options:
    """Of the compile, as far as they decide what the prepared model is."""
    given = {
        name: inputs[f"option.{name}"]
        for name in _CARRIED
        if name in NAMES and f"option.{name}" in inputs
    }
    return make_options(**given)


def _quantized_before(value: oir.Value, names: set[str], depth: int = 64) -> bool:
    """Whether some tensor that ``value`` is computed from is quantized."""
    waiting, seen = [(value, 0)], {value}
    while waiting:
        one, far = waiting.pop()
        node = one.producer()
        if node is None or far > depth:
            continue
        for before in node.inputs:
            if before is None or before in seen:
                continue
            if before.name in names:
                return True
            seen.add(before)
            waiting.append((before, far + 1))
    return False
