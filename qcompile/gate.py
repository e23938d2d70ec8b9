"""Runs the lowered artifact against the float model: valid, accurate, faster, small enough.

The same judge serves a compile and ``qcompile check``, for the model of any tool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.backends.ort import AS_WRITTEN, CPU, Session, open_session
from qcompile.batch_check import check_batch
from qcompile.child import Child
from qcompile.compare import OutputComparison, OutputResult, compare_outputs
from qcompile.gate_alone import latency_checks, opens_alone, speed_alone, told_apart
from qcompile.interface import interface_faults, same_interface, shape_extremes
from qcompile.ir.errors import CalibrationError, ModelError, OptionError
from qcompile.limits import (
    Limits,
    Metric,
    PairMetric,
    accuracy_checks,
    named_metric,
    output_notes,
    score_checks,
    scores,
    size_checks,
    speed_check,
    step_checks,
    timed_enough,
)
from qcompile.measure import LoadResult, SpeedResult, measure_load, measure_pair
from qcompile.needed import FLOOR_DB
from qcompile.opening import open_float, opening_of
from qcompile.remembered import RememberedSession
from qcompile.rollout import Rollout, StepResult, roll
from qcompile.segmented import SegmentedSession
from qcompile.selected import NONE_SELECTED, Selected
from qcompile.sizes import model_bytes
from qcompile.verdict import FAIL, PASS, SKIPPED, Check, GateResult, ScoreResult, conclude

__all__ = ["Limits", "Metric", "judge", "model_bytes"]

Feed = Mapping[str, Any]
Run = Callable[[Feed], Mapping[str, Any]]


def judge(
    float_model: Path,
    artifact: Path,
    feeds: Sequence[Feed],
    limits: Limits | None = None,
    *,
    metric: Metric | PairMetric | Callable[[Run], Any] | None = None,
    watch: PairMetric | None = None,
    names: Sequence[str] = (),
    slices: Mapping[str, str] | None = None,
    extremes: Sequence[Feed] = (),
    rollout: Rollout | None = None,
    selected: Selected = NONE_SELECTED,
    reference: Path | None = None,
    fused: Path | None = None,
    opened: RememberedSession | SegmentedSession | None = None,
    threads: int | None = None,
    budget_s: float = 10.0,
    speed: bool = True,
    time_failed: bool = True,
    spins: bool = True,
    custom_ops: Path | None = None,
    config: Mapping[str, str] | None = None,
    provider: str = CPU,
    progress: Callable[[str, float], None] | None = None,
) -> GateResult:
    """Judge an artifact. A model that the runtime refuses is a verdict, not an exception.

    Args:
        float_model: what the artifact must equal and beat.
        artifact: any ONNX model.
        feeds: held-back samples; all shapes that occur should.
        limits: what decides.
        metric: the user's score, called with float's and then with the artifact's ``run``; a plain
            callable is named after itself, lower is better if its ``lower_is_better`` is true.
        watch: shown both models' outputs of each sample; by default the metric where it takes pairs.
        names: of the samples; by default their index.
        slices: sample name -> slice.
        extremes: further feeds that it must run, and is timed with (the smallest and largest shapes).
        reference: what the outputs must equal where that is not ``float_model``: a Q/DQ model as written.
        fused: the float form of the artifact's lowering, timed beside the two for the report.
        opened: what the outputs must equal, opened by the caller. Where it runs in parts, because the float
            model does not fit in memory, speed is not measured, and other shapes are the artifact's alone.
        rollout: how state is carried over, for models that keep some; N steps are then judged too.
        selected: outputs that are not compared.
        threads: threads inside an operator; None leaves the runtime's choice.
        budget_s: time for timing.
        speed: False skips timing (its check is then "skipped").
        time_failed: time and roll an artifact too whose accuracy is not what was asked for.
        spins: False where idle threads that spin are known to leave ratios vague.
        custom_ops: library with custom operators.
        config: session options under which the artifact is opened and compared.
        provider: what both models are timed on.
        progress: told the stage ("open", "compare", "score", "time") and the share of it done.

    Raises:
        ModelError: the float model itself cannot be opened or run.
        CalibrationError: there are no samples.
        OptionError: the metric fails on the float model.
    """
    if not feeds:
        raise CalibrationError("no held-back samples to judge with; at least one is needed")
    limits = limits or Limits()
    gate = _Gate(Path(float_model), Path(artifact), feeds, limits, threads, custom_ops, progress)
    gate.config, gate.reference, gate.provider, gate.spins = config, reference, provider, spins
    gate.fused, gate.extremes, gate.opened, gate.selected = fused, extremes, opened, selected
    gate.watch = watch or (metric if isinstance(metric, PairMetric) else None)
    gate.sizes()
    if gate.opens() and gate.interface():
        gate.accuracy(list(names) or [str(i) for i in range(len(feeds))], slices or {})
        if metric is not None:
            gate.metric(named_metric(metric))
        failed = {c.name for c in gate.checks if c.state == FAIL}
        if rollout is not None and not failed - ({"metric"} if time_failed else set()):
            gate.roll(rollout, with_metric=metric is not None)
        gate.outputs_check(with_metric=metric is not None)
        hopeless = {"runs"} if time_failed else {"runs", "metric", "accuracy", "steps", "finite"}
        if speed and not any(c.name in hopeless and c.state == FAIL for c in gate.checks):
            gate.speed(budget_s)
    if not any(check.name == "speed" for check in gate.checks):
        gate.checks.append(Check("speed", SKIPPED, "speed was not measured"))
    return conclude(
        gate.checks,
        outputs=gate.outputs,
        speed=gate.timed,
        score=gate.score,
        float_bytes=gate.float_bytes,
        artifact_bytes=gate.artifact_bytes,
        samples=len(feeds),
        notes=gate.notes,
        steps=gate.steps,
    )


@dataclass
class _Gate:
    """The checks in the making; each method appends what it found."""

    float_model: Path
    artifact: Path
    feeds: Sequence[Feed]
    limits: Limits
    threads: int | None
    custom_ops: Path | None
    progress: Callable[[str, float], None] | None
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    outputs: list[OutputResult] = field(default_factory=list)
    steps: tuple[StepResult, ...] = ()
    score: ScoreResult | None = None
    timed: SpeedResult | None = None
    float_bytes: int | None = None
    artifact_bytes: int | None = None
    loads: dict[str, LoadResult] = field(default_factory=dict)
    config: Mapping[str, str] | None = None
    reference: Path | None = None
    fused: Path | None = None
    watch: PairMetric | None = None
    extremes: Sequence[Feed] = ()
    opened: RememberedSession | SegmentedSession | None = None
    selected: Selected = NONE_SELECTED
    provider: str = CPU
    spins: bool = True
    float_session: Session = field(init=False)
    artifact_session: Session = field(init=False)

    def sizes(self) -> None:
        self.float_bytes = model_bytes(self.float_model)
        self.artifact_bytes = model_bytes(self.artifact)
        self.checks += size_checks(self.artifact_bytes, self.limits.max_bytes)

    def opens(self) -> bool:
        """Open both in processes of their own, so that a model that crashes is a finding."""
        self._tell("open", 0.0)
        if isinstance(self.opened, SegmentedSession):
            return self._opens_alone(self.opened)
        self.float_session = self.opened or (
            self._session(self.float_model)
            if self.reference is None
            else self._session(self.reference, AS_WRITTEN)
        )
        opening = opening_of(self.feeds, self.extremes, self.float_session.inputs)
        batched = opening.batched
        if batched is None:
            self.notes.append("batch: fixed in the float model, so only that one was run")
        options: dict[str, Any] = {"threads": self.threads, "custom_ops": self.custom_ops}
        held = self.opened if isinstance(self.opened, RememberedSession) else None
        base = open_float(self.float_model, opening, held, **options)
        self._tell("open", 0.5)
        try:
            self.loads = {
                "float": base,
                "artifact": measure_load(
                    self.artifact, opening.feeds, **options, config=self.config
                ),
            }
        except ModelError as e:
            self.checks.append(Check("opens", FAIL, str(e)))
            return False
        self.checks.append(Check("opens", PASS, "ONNX Runtime opens it"))
        pairs = zip(opening.tried, base.errors, self.loads["artifact"].errors, strict=True)
        for (what, feed), wanted, error in pairs:
            if wanted is not None:
                # what float refuses proves nothing
                self.notes.append(f"not checked at {what}, since float refuses it too: {wanted}")
            elif error is not None:
                self.checks.append(Check("runs", FAIL, f"fails at {what}: {error}"))
            elif feed is batched:
                self.batched = True
            elif any(feed is one for one in self.extremes):
                self.served.append(feed)
        return not any(c.state == FAIL for c in self.checks if c.name == "runs")

    batched: bool = False
    served: list[Feed] = field(default_factory=list)

    def _opens_alone(self, parts: SegmentedSession) -> bool:
        self.float_session = parts
        self.notes.append(told_apart(parts.why))
        feeds = [self.feeds[0], *shape_extremes(self.feeds), *self.extremes]
        options: dict[str, Any] = {"threads": self.threads, "custom_ops": self.custom_ops}
        self.checks += opens_alone(self.artifact, feeds, **options, config=self.config)
        return not any(c.state == FAIL for c in self.checks)

    def _session(self, path: Path, config: Mapping[str, str] | None = None) -> Session:
        return open_session(path, threads=self.threads, custom_ops=self.custom_ops, config=config)

    def interface(self) -> bool:
        """Same names, types, ranks, and nothing frozen that float leaves free."""
        self.artifact_session = self._session(self.artifact, self.config)
        wrong = interface_faults("input", self.float_session.inputs, self.artifact_session.inputs)
        outputs = self.float_session.outputs, self.artifact_session.outputs
        if interface_faults("output", *outputs):
            given = self.float_session.run(self.feeds[0])
            ranks = {name: int(np.ndim(value)) for name, value in given.items()}
            wrong += interface_faults("output", *outputs, ranks)
        self.checks.extend(Check("interface", FAIL, text, where=name) for name, text in wrong)
        if not wrong:
            self.checks.append(Check("interface", PASS, same_interface(self.artifact_session)))
        return not wrong

    def accuracy(self, names: Sequence[str], slices: Mapping[str, str]) -> None:
        """Both models over all samples; sums only, so memory does not grow with them."""
        compared: dict[str, OutputComparison] = {}
        for index, (name, feed) in enumerate(zip(names, self.feeds, strict=True)):
            ref = self.float_session.run(feed)
            try:
                got = self.artifact_session.run(feed)
            except ModelError as e:
                self.checks.append(Check("runs", FAIL, f"fails on sample '{name}': {e}"))
                continue
            judged = self.selected.judged(ref)
            rows = compare_outputs(compared, name, slices.get(name), judged, got)
            if self.watch is not None:
                self.watch.take(feed, ref, got, rows)
            self._tell("compare", (index + 1) / len(self.feeds))
        self.outputs = [c.result() for c in compared.values()]
        self._batch()

    def roll(self, rollout: Rollout, *, with_metric: bool) -> None:
        """N steps with the state rolled back in: what comes out at the last must be near enough too."""
        try:
            found = roll(self.float_session, self.artifact_session, self.feeds, rollout)
        except ModelError as e:
            self.checks.append(Check("runs", FAIL, f"fails with its own state rolled back in: {e}"))
            return
        self.steps = found.steps
        self.notes.extend(found.notes)
        limit = self._limit(with_metric=with_metric)
        if limit is not None:
            last = [row for row in found.steps if row.step == rollout.steps]
            judged = [row for row in last if row.output not in self.selected.outputs]
            self.checks.extend(check for row in judged for check in step_checks(row, limit))

    def _limit(self, *, with_metric: bool) -> float | None:
        """The least SQNR; it decides where it was asked for, or nothing else was."""
        asked = self.limits.min_sqnr
        return asked if asked is not None else None if with_metric else FLOOR_DB

    def _batch(self) -> None:
        if self.batched:
            checks, note = check_batch(self.float_session, self.artifact_session, self.feeds[0])
            self.checks.extend(checks)
            self.notes.extend([note] if note else [])

    def outputs_check(self, *, with_metric: bool) -> None:
        """NaN always fails; SQNR decides where it was asked for, or nothing else was."""
        limit = self._limit(with_metric=with_metric)
        for output in self.outputs:
            if output.nonfinite:
                text = f"output '{output.name}' has {output.nonfinite} NaN or infinite values"
                self.checks.append(Check("finite", FAIL, text, where=output.name))
            self.notes.extend(output_notes(output))
            if limit is not None:
                self.checks.extend(accuracy_checks(output, limit, self.limits.min_agreement))

    def metric(self, metric: Metric | PairMetric) -> None:
        """The user's score on float, then on the artifact; of pairs it is known already."""
        if isinstance(metric, PairMetric):
            one, other = metric.both()
            checks, self.score = score_checks(metric, {"": one}, {"": other}, self.limits)
            self.checks += checks
            return
        self._tell("score", 0.0)
        try:
            before = scores(metric, self.float_session.run)
        except Exception as e:
            raise OptionError(
                f"metric '{metric.name}' fails on the float model: {type(e).__name__}: {e}"
            ) from e
        self._tell("score", 0.5)
        try:
            after = scores(metric, self.artifact_session.run)
        except Exception as e:  # noqa: BLE001 (a user's code; the reason is in the verdict)
            text = f"metric '{metric.name}' fails on the artifact: {type(e).__name__}: {e}"
            self.checks.append(Check("metric", FAIL, text))
            return
        self._tell("score", 1.0)
        checks, self.score = score_checks(metric, before, after, self.limits)
        self.checks += checks

    def speed(self, budget_s: float) -> None:
        """Latency in a child process; only an interval wholly below the limit fails."""
        allowed = self.limits.max_latency_ms
        del self.artifact_session, self.float_session  # their memory is the child's now
        if self.opened is not None:
            self.opened.release()
        if isinstance(self.opened, SegmentedSession):
            self.checks += speed_alone(
                self.artifact,
                self.feeds,
                allowed,
                self.opened.why,
                threads=self.threads,
                budget_s=budget_s,
                custom_ops=self.custom_ops,
                provider=self.provider,
            )
            return
        timed = self._timed(budget_s, None if self.opened is None else self.opened.child)
        if timed is None:
            return
        self.timed = timed.with_loads(self.loads)
        self.checks.append(speed_check(timed.speedup("artifact"), self.limits.min_speedup))
        self.checks += latency_checks(timed.models["artifact"].interval_ms, allowed)

    def _timed(self, budget_s: float, process: Child | None) -> SpeedResult | None:
        """The latencies; None where the artifact or the float model cannot be timed.

        The fused float form is there for comparison alone: where it fails, it is left out.
        """
        failed: ModelError | None = None
        for fused in dict.fromkeys((self.fused, None)):
            try:
                timed = measure_pair(
                    self.float_model,
                    self.artifact,
                    [*self.feeds, *self.served],
                    fused=fused,
                    threads=self.threads,
                    budget_s=budget_s,
                    enough=timed_enough(self.limits),
                    spinning=None if self.spins else False,
                    custom_ops=self.custom_ops,
                    load=False,
                    provider=self.provider,
                    process=process,
                    progress=lambda share: self._tell("time", share),
                )
            except ModelError as e:
                failed = e
                continue
            if failed is not None:
                self.notes.append(f"the fused float model is not timed beside them: {failed}")
            return timed
        self.checks.append(Check("runs", FAIL, str(failed)))
        return None

    def _tell(self, stage: str, share: float) -> None:
        if self.progress is not None:
            self.progress(stage, share)
