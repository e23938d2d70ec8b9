"""A float model that does not fit in memory, run all the same: part by part, all samples side by side.

Its weights stay in their mapped file, one part's pages are read at a time; what lives between the parts,
and what comes out, lies on disk. One pass over the file serves all samples, so that a pass through a
model of many gigabytes is paid once.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort import Feed, Port, Session, type_name
from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.segments import cut_points
from qcompile.stepper import Stepper

__all__ = ["SegmentedSession", "feed_digest", "port_of", "run_parts"]


class SegmentedSession(Session):
    """Like a session of the whole model; there is no runtime session behind it."""

    def __init__(
        self,
        model: oir.Model,
        feeds: Sequence[Feed],
        folder: Path,
        part: int,
        *,
        why: str = "",
        threads: int | None = None,
        custom_ops: Path | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            model: weights mapped.
            feeds: samples that will be asked for; the first question runs them all.
            folder: where results lie; sessions that share it share them.
            part: bytes of weights that are read at a time.
            why: it is not run whole, one clause.
            threads: inside operators.
            custom_ops: library with custom operators.
        """
        self.inputs = tuple(port_of(v) for v in model.graph.inputs if not v.is_initializer())
        self.outputs = tuple(port_of(v) for v in model.graph.outputs)
        self.why = why
        self._names = [port.name for port in self.outputs]
        self._model, self._feeds, self._folder, self._part = model, list(feeds), folder, part
        self._threads, self._custom_ops = threads, custom_ops
        folder.mkdir(parents=True, exist_ok=True)

    def release(self) -> None:
        """Nothing is held between runs."""

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The outputs by name, mapped.

        Raises:
            ModelError: a part does not run.
        """
        place = self._folder / feed_digest(self.inputs, feed)
        if not place.is_dir():
            asked = {self._folder / feed_digest(self.inputs, f): f for f in (feed, *self._feeds)}
            self._run({p: f for p, f in asked.items() if not p.is_dir()})
        names = self._names if outputs is None else list(outputs)
        indices = {name: i for i, name in enumerate(self._names)}
        return {n: np.load(place / f"{indices[n]}.npy", mmap_mode="r") for n in names}

    def _run(self, missing: Mapping[Path, Feed]) -> None:
        try:
            run_parts(
                self._model,
                list(missing.values()),
                self._part,
                self._folder,
                partial(self._keep, list(missing)),
                threads=self._threads,
                custom_ops=self._custom_ops,
            )
        except CalibrationError as e:
            raise ModelError(f"the float model, run in parts, fails: {e}") from e

    def _keep(self, places: Sequence[Path], index: int, results: Mapping[str, Any]) -> None:
        draft = places[index].with_suffix(".part")
        draft.mkdir(exist_ok=True)
        for i, name in enumerate(self._names):
            np.save(draft / f"{i}.npy", np.asarray(results[name]), allow_pickle=False)
        draft.rename(places[index])


def feed_digest(inputs: Sequence[Port], feed: Feed) -> str:
    """A name for what a feed holds."""
    digest = hashlib.sha256()
    for port in inputs:
        array = np.ascontiguousarray(feed[port.name])
        digest.update(f"{port.name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:24]


def run_parts(
    model: oir.Model,
    feeds: Sequence[Feed],
    part: int,
    folder: Path,
    take: Callable[[int, Mapping[str, Any]], None],
    *,
    threads: int | None = None,
    custom_ops: object = None,
) -> None:
    """Run all feeds through one part of the model after another.

    Args:
        model: its weights may be mapped.
        feeds: samples.
        part: bytes of weights in a part.
        folder: for what lives between parts; emptied again.
        take: called at the end with the index of each feed and its outputs, which may be views of
            files that are gone afterwards.
        threads: inside operators.
        custom_ops: library with custom operators.

    Raises:
        CalibrationError: a sample does not run.
    """
    with tempfile.TemporaryDirectory(
        dir=folder, prefix="live-", ignore_cleanup_errors=True
    ) as spill:
        stepper = Stepper(
            model,
            [dict(f) for f in feeds],
            threads=threads,
            custom_ops=custom_ops,
            spill=Path(spill).resolve(),
        )
        names = [value.name or "" for value in model.graph.outputs]
        reads = [list(stepper.reads(i)) for i in range(len(stepper.nodes))]
        writes = [[n for n in node.output if n] for node in stepper.nodes]
        sizes = {
            name: value.const_value.nbytes
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        for stop in cut_points(reads, writes, sizes, part, names):
            stepper.run_to(stop)
        for index in range(len(feeds)):
            take(index, {name: stepper.value(index, name) for name in names})


def port_of(value: oir.Value) -> Port:
    """An input or output as a session describes it."""
    shape = () if value.shape is None else tuple(value.shape)
    dims = tuple(d if isinstance(d, int) else d.value for d in shape)
    return Port(value.name or "", type_name(value.dtype), dims)
