"""How a gate opens the float model: in a process of its own, at every shape that both models must run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qcompile.backends.ort import Port
from qcompile.batch_check import BATCH
from qcompile.gate_alone import shapes_text
from qcompile.interface import at_batch, shape_extremes
from qcompile.ir.errors import ModelError
from qcompile.measure import LoadResult, measure_load
from qcompile.remembered import RememberedSession

__all__ = ["Opening", "open_float", "opening_of"]

Feed = Mapping[str, Any]


class Opening(NamedTuple):
    """What both models are tried with.

    Attributes:
        tried: what it is, and the feed.
        batched: the one of two equal rows, None where the float model fixes its batch.
    """

    tried: tuple[tuple[str, Feed], ...]
    batched: Feed | None

    @property
    def feeds(self) -> list[Feed]:
        """Without words."""
        return [feed for _, feed in self.tried]


def opening_of(feeds: Sequence[Feed], extremes: Sequence[Feed], inputs: Sequence[Port]) -> Opening:
    """The shapes of the samples and those asked for, and a batch.

    Args:
        feeds: held-back samples.
        extremes: further feeds that must run.
        inputs: the float model's.
    """
    shapes = (*shape_extremes(feeds), *extremes)
    tried = [(f"the shape {shapes_text(f)}", f) for f in shapes]
    batched = at_batch(feeds[0], inputs, BATCH)
    if batched is not None:
        tried.append((f"batch {BATCH} ({shapes_text(batched)})", batched))
    return Opening(tuple(tried), batched)


def open_float(
    path: Path, opening: Opening, remembered: RememberedSession | None, **options: Any
) -> LoadResult:
    """How the float model opens by itself; measured once where its session is remembered.

    Raises:
        ModelError: it cannot be opened, or does not run its first sample.
    """
    found = None if remembered is None else remembered.load
    if found is None or len(found.errors) != len(opening.tried):
        found = measure_load(path, opening.feeds, **options)
    if remembered is not None:
        remembered.load = found
    if found.errors[0] is not None:
        raise ModelError(f"the float model cannot run {opening.tried[0][0]}: {found.errors[0]}")
    return found
