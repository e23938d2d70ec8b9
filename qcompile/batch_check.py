"""A batch of equal rows must be as accurate as one row: the arithmetic is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcompile.backends.ort import Session
from qcompile.compare import OutputComparison, compare_outputs
from qcompile.interface import at_batch, is_repeated
from qcompile.ir.errors import ModelError
from qcompile.verdict import FAIL, PASS, Check

__all__ = ["BATCH", "check_batch"]

BATCH = 3
"""The batch size at which a dynamic batch is tried: neither the one of the data nor a power of two."""

SLACK_DB = 3.0
"""How much SQNR a batch of equal rows may lose against one row."""

ENOUGH_DB = 40.0
"""A batch this accurate is right, whatever one row has."""


def check_batch(
    base: Session, artifact: Session, feed: Mapping[str, Any]
) -> tuple[list[Check], str]:
    """The checks, and a note where nothing could be checked ("" where it could).

    Args:
        base: the float model, with at least one input whose first axis is free.
        artifact: the model to judge.
        feed: one sample.
    """
    found: list[dict[str, OutputComparison]] = []
    given = []
    for size in (1, BATCH):
        rows = at_batch(feed, base.inputs, size) or {}
        compared: dict[str, OutputComparison] = {}
        try:
            ref = base.run(rows)
        except ModelError as e:  # the free first axis of an input is no batch
            return [], f"not checked at batch {size}, since float refuses it too: {e}"
        compare_outputs(compared, "", None, ref, artifact.run(rows))
        found.append(compared)
        given.append(ref)
    faults = []
    for name, comparison in found[1].items():
        many, one = comparison.result(), found[0][name].result() if name in found[0] else None
        if many.shape_differs:
            text = f"output '{name}' has another shape than float's at batch {BATCH}"
            faults.append(Check("runs", FAIL, text, where=name))
        elif (
            one is not None
            and one.sqnr_db is not None
            and many.sqnr_db is not None
            and many.sqnr_db < min(one.sqnr_db - SLACK_DB, ENOUGH_DB)
            # else the first axis is no batch (time, boxes), and the signal is another one
            and is_repeated(given[0].get(name), given[1].get(name))
        ):
            change = f"falls from {one.sqnr_db:.1f} to {many.sqnr_db:.1f} dB"
            text = f"output '{name}' {change} at batch {BATCH}"
            faults.append(Check("runs", FAIL, text, where=name))
    return faults or [Check("runs", PASS, f"runs at batch {BATCH} like at one")], ""
