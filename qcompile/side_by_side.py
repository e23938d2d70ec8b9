"""Two models or artifacts beside each other: outputs, inner tensors, speed, size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as oir

from qcompile.backends.ort import Session, open_session
from qcompile.backends.tables import get_target
from qcompile.compare import OutputComparison, OutputResult, compare_outputs
from qcompile.data.inputs import Feed
from qcompile.divergence import Divergence, TensorError
from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.measure import SpeedResult, measure_many
from qcompile.options import make_options
from qcompile.prepare import prepare
from qcompile.reporter import Reporter, Silent
from qcompile.scratch import scratch_folder
from qcompile.sizes import model_bytes
from qcompile.subject import AS_WRITTEN, Subject

__all__ = ["SideBySide", "side_by_side"]

_SHAPING = ("disable", "opset", "min_ort", "fix_weights")
"""Options that decide what the prepared graph looks like."""

LAYER_SAMPLES = 4
"""Samples on which every inner tensor is compared; bisection, which looks at few, takes all."""


@dataclass
class SideBySide:
    """What was found; the first model is the reference.

    Attributes:
        outputs: each output over all samples.
        compared: inner tensors that both models have.
        layers: their errors in graph order; empty when not asked for.
        bad_output: the worst output below the limit, None when all are good.
        first_bad: the first bad node on the way to it, None when it lies behind all compared tensors.
        as_written_db: SQNR of the bad output with the Q/DQ nodes run as they are written; None where
            that was not tried.
        speed: None when not timed; named "a" and "b".
        bytes: sizes with external data.
        notes: what could not be compared.
    """

    outputs: list[OutputResult] = field(default_factory=list)
    compared: int = 0
    layers: list[TensorError] = field(default_factory=list)
    bad_output: OutputResult | None = None
    first_bad: TensorError | None = None
    as_written_db: float | None = None
    speed: SpeedResult | None = None
    bytes: tuple[int | None, int | None] = (None, None)
    notes: list[str] = field(default_factory=list)


def side_by_side(
    first: Subject,
    second: Subject,
    feeds: Sequence[Feed],
    *,
    names: Sequence[str] = (),
    limit_db: float = 10.0,
    layers: bool = True,
    seconds: float = 5.0,
    threads: int | None = None,
    custom_ops: Path | None = None,
    reporter: Reporter | None = None,
) -> SideBySide:
    """Compare two models on the same samples.

    Args:
        first: the reference.
        second: the model in question.
        feeds: samples that fit ``first``; inputs of other names are matched in order.
        names: of the samples.
        limit_db: below it an output or a tensor is bad.
        layers: compare every inner tensor; False bisects the way to a bad output, which looks at few.
        seconds: for timing; 0 skips it.
        threads: for timing.
        custom_ops: library with custom operators.
        reporter: told the stages.

    Raises:
        ModelError: a model cannot be opened or run, or the two have other numbers of inputs.
        CalibrationError: no samples.
    """
    if not feeds:
        raise CalibrationError("no samples to compare on; at least one is needed")
    tell = reporter or Silent()
    found = SideBySide(bytes=(model_bytes(first.model), model_bytes(second.model)))
    sessions = first.open(custom_ops=custom_ops), second.open(custom_ops=custom_ops)
    renamed = _paired("input", sessions[0].inputs, sessions[1].inputs, found.notes)
    tell.stage("outputs")
    found.outputs = _outputs(sessions, feeds, names, renamed, found.notes, tell)
    bad = [o for o in found.outputs if o.sqnr_db is not None and not o.zero]
    worst = min(bad, key=lambda o: o.least_db or 0.0, default=None)
    if worst is not None and (worst.least_db or 0.0) < limit_db:
        found.bad_output = worst
    if renamed:
        found.notes.append("inner tensors and speed are not compared: the inputs' names differ")
        return found
    with scratch_folder() as scratch:
        _inner(found, first, second, feeds, limit_db, layers, scratch, custom_ops, tell)
    if first.portable or second.portable:
        found.notes.append("speed is not compared: a portable artifact's is the device's")
    elif seconds > 0:
        tell.stage("speed")
        found.speed = measure_many(
            {"a": first.model, "b": second.model},
            feeds,
            threads=threads,
            budget_s=seconds,
            load=True,
            custom_ops=custom_ops,
            progress=lambda share: tell.advance(share, 1.0),
        )
    return found


def _inner(
    found: SideBySide,
    first: Subject,
    second: Subject,
    feeds: Sequence[Feed],
    limit_db: float,
    layers: bool,
    work: Path,
    custom_ops: Path | None,
    tell: Reporter,
) -> None:
    models = _reference(first, second), second.graph().model
    as_written = second.artifact is not None
    options: dict[str, Any] = {"as_written": as_written, "custom_ops": custom_ops}
    whole = Divergence(*models, feeds, work, **options)
    found.compared = len(whole.tensors)
    if not whole.tensors:
        found.notes.append("inner tensors are not compared: no float tensor has a name in both")
        return
    bad = found.bad_output
    if layers:
        tell.stage("layers")
        some = Divergence(*models, list(feeds)[:LAYER_SAMPLES], work, **options)
        found.layers = some.layers(tell.advance)
        if bad is not None:
            found.first_bad = some.earliest_bad(bad.name, limit_db)
    if bad is not None and found.first_bad is None:
        tell.stage("bisect")
        found.first_bad = whole.first_bad(bad.name, limit_db, tell.advance)
    if bad is not None and not as_written:
        found.as_written_db = _as_written(first, second, feeds, bad, custom_ops)


def _reference(first: Subject, second: Subject) -> oir.Model:
    """The first model's graph; as it was prepared where the second is an artifact of just this model.

    Folding gives some tensors another scale under the same name, which is no error.
    """
    loaded = first.graph()
    if first.artifact is not None or second.artifact is None:
        return loaded.model
    made_from = second.artifact.manifest.get("inputs", {})
    if made_from.get("model") != loaded.sha256:
        return loaded.model
    known = {k: made_from[f"option.{k}"] for k in _SHAPING if f"option.{k}" in made_from}
    options = make_options(target=made_from["target"], **known)
    return prepare(first.model, get_target(options.target, made_from["device"]), options).model


def _outputs(
    sessions: tuple[Session, Session],
    feeds: Sequence[Feed],
    names: Sequence[str],
    renamed: dict[str, str],
    notes: list[str],
    tell: Reporter,
) -> list[OutputResult]:
    one, two = sessions
    to = {b: a for a, b in _paired("output", one.outputs, two.outputs, notes).items()}
    compared: dict[str, OutputComparison] = {}
    for index, feed in enumerate(feeds):
        ref = one.run(feed)
        got = two.run({renamed.get(name, name): value for name, value in feed.items()})
        got = {to.get(name, name): value for name, value in got.items()}
        shared = {name: value for name, value in ref.items() if name in got}
        label = names[index] if names else str(index)
        compare_outputs(compared, label, None, shared, got)
        tell.advance(index + 1, len(feeds))
    return [c.result() for c in compared.values()]


def _paired(
    kind: str, ours: Sequence[Any], theirs: Sequence[Any], notes: list[str]
) -> dict[str, str]:
    """First model's name -> the second's, where they differ; matched in order when none is shared.

    Raises:
        ModelError: some names are shared and others are not, or the numbers differ.
    """
    one, two = [p.name for p in ours], [p.name for p in theirs]
    if set(one) == set(two):
        return {}
    if kind == "output" and set(one) & set(two):
        alone = sorted(set(one) ^ set(two))
        notes.append(f"outputs of one model only: {', '.join(alone)}")
        return {}
    if len(one) != len(two) or set(one) & set(two):
        raise ModelError(
            f"the {kind}s differ: {', '.join(one)} against {', '.join(two)}; "
            "compare models with the same interface"
        )
    notes.append(
        f"{kind}s matched in order: {', '.join(f'{a} = {b}' for a, b in zip(one, two, strict=True))}"
    )
    return dict(zip(one, two, strict=True))


def _as_written(
    first: Subject,
    second: Subject,
    feeds: Sequence[Feed],
    bad: OutputResult,
    custom_ops: Path | None,
) -> float | None:
    """SQNR of the bad output when nothing is fused into integer kernels."""
    session = open_session(second.model, config=AS_WRITTEN, custom_ops=custom_ops)
    reference = first.open(custom_ops=custom_ops)
    compared: dict[str, OutputComparison] = {}
    for index, feed in enumerate(feeds):
        compare_outputs(compared, str(index), None, reference.run(feed), session.run(feed))
    result = compared.get(bad.name)
    return None if result is None else result.result().sqnr_db
