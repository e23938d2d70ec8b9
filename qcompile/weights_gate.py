"""The verdict on a model with integer weights, and how it generates: what they share is run once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qcompile.backends.ort import AS_WRITTEN
from qcompile.data.inputs import Feed
from qcompile.float_only import nothing_integer, why_float
from qcompile.gate import judge
from qcompile.job import Job
from qcompile.language import (
    Generation,
    Language,
    Perplexity,
    compare_generation,
    perplexity_metric,
)
from qcompile.limits import Metric, PairMetric
from qcompile.remembered import RememberedSession
from qcompile.segmented import SegmentedSession
from qcompile.units import Drop
from qcompile.verdict import GateResult
from qcompile.weights_plan import MatrixChoice

__all__ = ["generated", "judge_weights", "left_float"]

PERPLEXITY_DROP = Drop(0.03, relative=True)
"""Allowed for perplexity where the user says nothing."""


def left_float(job: Job, choices: Sequence[MatrixChoice]) -> GateResult | None:
    """The verdict where no matrix became integers: there is nothing to run; None where one did."""
    if job.options.best_effort or any(choice.spec is not None for choice in choices):
        return None
    reasons = Counter(choice.reason for choice in choices).most_common(1)
    most = (
        f"all {len(choices)} matrices stay float, most because: {reasons[0][0]}" if reasons else ""
    )
    return nothing_integer(most or why_float(job.prepared) or "it has no matrix of constants")


def judge_weights(
    job: Job,
    path: Path,
    language: Language | None,
    beside: RememberedSession | SegmentedSession,
    pairs: Perplexity | None,
    *,
    last: bool,
) -> GateResult:
    """The verdict on an attempt.

    Args:
        job: what is compiled.
        path: the attempt's file.
        language: where a language model reads and writes.
        beside: float's outputs.
        pairs: shown both models' outputs of all samples; decides where text was given.
        last: time it though its accuracy fails.
    """
    options, data = job.options, job.data
    metric: Metric | PairMetric | None = data.metric
    limits = job.limits()
    engine = job.prepared.target.portable
    if engine:
        limits = replace(limits, max_latency_ms=None)
    if metric is None and language is not None and options.tokenizer is not None:
        whole = job.in_parts() is None  # else each part of a sample were a pass through the file
        metric = pairs
        if options.kv_cache == "int8" and whole and job.rollout is not None:
            metric = perplexity_metric(list(data.held), language, job.rollout)
        limits = replace(limits, max_drop=options.max_drop or PERPLEXITY_DROP)
    return judge(
        job.float_path,
        path,
        list(data.held),
        limits,
        metric=metric,
        watch=pairs,
        names=data.held.names,
        slices=options.slices,
        extremes=data.extremes(),
        opened=beside,
        rollout=None if job.in_parts() is not None else job.rollout,
        threads=options.threads,
        budget_s=options.gate_time,
        custom_ops=options.custom_ops,
        speed=not engine,
        time_failed=last,
        config=AS_WRITTEN if engine else None,
    )


def generated(
    job: Job, path: Path, gate: GateResult, language: Language | None, pairs: Perplexity | None
) -> Generation | None:
    """Beside float, for a model that runs.

    None with ``--effort fast``, and where float runs in parts: a pass for each token.
    """
    if job.in_parts() is not None or job.options.effort == "fast":
        return None
    if language is None or any(c.name in ("opens", "runs", "layers") for c in gate.failed):
        return None
    return compare_generation(
        job.mapped_float(),
        path,
        job.prepared.inputs,
        list(job.data.held),
        language,
        rollout=job.rollout,
        threads=job.options.threads,
        known=None if pairs is None else pairs.likeness,
        prefill_ms=_prefill(gate, list(job.data.held)),
    )


def _prefill(gate: GateResult, feeds: Sequence[Feed]) -> tuple[float, float] | None:
    """What the gate measured, where all samples are of one shape."""
    shapes = {tuple(np.shape(v) for v in feed.values()) for feed in feeds}
    if gate.speed is None or len(shapes) > 1:
        return None
    return gate.speed.models["float"].p50_ms, gate.speed.models["artifact"].p50_ms
