"""What the gate can say of an artifact whose float model does not fit in memory beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.interval import Interval
from qcompile.ir.errors import ModelError
from qcompile.measure import measure_load, measure_many
from qcompile.verdict import FAIL, PASS, SKIPPED, VAGUE, Check

__all__ = ["latency_checks", "opens_alone", "shapes_text", "speed_alone", "told_apart"]

Feed = Mapping[str, Any]


def told_apart(why: str) -> str:
    """What the report says of a float model that was run in parts."""
    return (
        f"the float model was run in parts, since {why}: its speed was not measured, and the artifact "
        "was tried at no other shapes and batches than the samples'"
    )


def opens_alone(artifact: Path, feeds: Sequence[Feed], **options: Any) -> list[Check]:
    """The artifact at the shapes of ``feeds``, in a process of its own."""
    try:
        found = measure_load(artifact, feeds, **options)
    except ModelError as e:
        return [Check("opens", FAIL, str(e))]
    checks = [Check("opens", PASS, "ONNX Runtime opens it")]
    for feed, error in zip(feeds, found.errors, strict=True):
        if error is not None:
            checks.append(Check("runs", FAIL, f"fails at the shape {shapes_text(feed)}: {error}"))
    return checks


def speed_alone(
    artifact: Path, feeds: Sequence[Feed], allowed_ms: float | None, why: str, **options: Any
) -> list[Check]:
    """The artifact's own latency; there is nothing to hold it against."""
    try:
        timed = measure_many({"artifact": artifact}, feeds, **options)
    except ModelError as e:
        return [Check("runs", FAIL, str(e))]
    found = timed.models["artifact"]
    text = f"{found.p50_ms:.3g} ms p50, not held against float, which was run in parts: {why}"
    checks = [Check("speed", SKIPPED, text, found.p50_ms)]
    return checks + latency_checks(found.interval_ms, allowed_ms)


def latency_checks(found: Interval, allowed: float | None) -> list[Check]:
    """The latency beside what is allowed, where something was asked."""
    if allowed is None:
        return []
    state = FAIL if found.low > allowed else VAGUE if found.high > allowed else PASS
    text = f"latency {found.value:.3g} ms ({allowed:g} ms allowed)"
    return [Check("latency", state, text, found.value, allowed)]


def shapes_text(feed: Feed) -> str:
    """Names and shapes of a feed."""
    return ", ".join(f"{name} {'x'.join(map(str, np.shape(v)))}" for name, v in feed.items())
