"""How much each matrix in few bits, alone, disturbs what the model puts out.

The error of a layer's own output says little: a key projection may err by a tenth and nothing changes.
Here the float model runs with matrices as their integers make them, and the outputs are compared.

A run of the whole model for each matrix is not needed. Where a single tensor carries all that matrices did
(the residual stream), the model is cut; of each part, the matrices together tell what it does to the
output, which the parts behind it run for, and what each alone does to the tensor at the part's end tells
its share. Nothing before a part runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.data.inputs import Feed
from qcompile.ir.matrices import Matrix
from qcompile.parts import Constant, Nodes, Part, names_read

__all__ = ["Distance", "disturbances", "divergence", "relative_error"]

Array = npt.NDArray[Any]
Values = Callable[[], npt.NDArray[np.float32]]
Outputs = Mapping[str, Any]
Distance = Callable[[Outputs], Callable[[Outputs], float]]
"""Float's outputs -> others' -> how far they are; small independent errors should add up."""

POSITIONS = 128
"""Rows of the first output that are enough to tell matrices apart."""


def disturbances(
    model: oir.Model,
    rounded: Mapping[str, tuple[Matrix, Values]],
    feeds: Sequence[Feed],
    distance: Distance,
    *,
    threads: int | None = None,
    custom_ops: Path | None = None,
    advance: Callable[[float, float | None], None] = lambda done, total: None,
) -> dict[str, float]:
    """Mean distance from float's outputs, by initializer name.

    Args:
        model: the prepared float model; stays as it is, its weights may be mapped.
        rounded: initializer name -> matrix, and its values in integers (out, in).
        feeds: samples; only so many of the first ones are run as hold ``POSITIONS`` rows.
        distance: of two models' outputs.
        threads: inside operators.
        custom_ops: library with custom operators.
        advance: told how many matrices are done.

    Raises:
        CalibrationError: a sample does not run.
    """
    chain = _Chain(model, rounded, threads, custom_ops)
    samples = _enough(chain, feeds, distance)
    found = dict.fromkeys(rounded, 0.0)
    done = 0
    for index, names in enumerate(chain.matrices):
        if not names:
            continue
        others = {name: chain.replaced(name) for name in names}
        alone = names if chain.ends(index) or len(names) == 1 else []
        for name in alone:
            one = {name: others[name]}
            found[name] = float(np.mean([s.apart(chain.behind(s, index, one)) for s in samples]))
        if not alone:
            together = np.mean([s.apart(chain.behind(s, index, others)) for s in samples])
            moved = {
                n: sum(chain.moved(s, index, {n: a}) for s in samples) for n, a in others.items()
            }
            total = max(sum(moved.values()), 1e-300)
            found |= {name: float(together) * far / total for name, far in moved.items()}
        done += len(names)
        advance(done, len(rounded))
    return found


@dataclass(frozen=True)
class _Sample:
    """A feed that has run.

    Attributes:
        alive: all tensors that parts read or give out, as float has them.
        apart: distance of outputs from float's.
    """

    alive: Mapping[str, Any]
    apart: Callable[[Outputs], float]


class _Chain:
    """The float model in parts, each opened when the first sample comes by.

    Attributes:
        matrices: names of those that each part reads; one that several parts read stands in the last.
        outputs: names.
    """

    def __init__(
        self,
        model: oir.Model,
        rounded: Mapping[str, tuple[Matrix, Values]],
        threads: int | None,
        custom_ops: Path | None,
    ) -> None:
        self._whole = Nodes.of(model)
        self._rounded = rounded
        self._options: dict[str, Any] = {"threads": threads, "custom_ops": custom_ops}
        self._constants: dict[str, Constant] = {
            name: value.const_value
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self.outputs = [value.name or "" for value in model.graph.outputs]
        nodes = self._whole.nodes
        reads = [list(names_read(node)) for node in nodes]
        writes = [[n for n in node.output if n] for node in nodes]
        self._cuts, self._carriers = _single_carriers(reads, writes, set(rounded))
        self._last = {name: i for i, names in enumerate(reads) for name in names}
        self._last |= dict.fromkeys(self.outputs, len(nodes))
        part_of = np.searchsorted(self._cuts, np.arange(len(nodes)), "right")
        self._read_in: dict[str, list[int]] = {name: [] for name in rounded}
        for i, names in enumerate(reads):
            for name in set(names) & rounded.keys():
                self._read_in[name].append(int(part_of[i]))
        self.matrices: list[list[str]] = [[] for _ in self._cuts]
        for name, parts in self._read_in.items():
            self.matrices[parts[-1] if parts else -1].append(name)
        self._parts: list[Part] = []

    def ends(self, index: int) -> bool:
        """Whether no part follows, or a matrix of this one is read before it."""
        spread = any(set(self._read_in[n]) - {index} for n in self.matrices[index])
        return spread or index == len(self._cuts) - 1

    def replaced(self, name: str) -> Array:
        """What its integers make of a matrix, as the graph holds it."""
        matrix, values = self._rounded[name]
        array = values()
        return np.ascontiguousarray(array.T if matrix.turned else array)

    def start(self, feed: Feed) -> dict[str, Any]:
        """All that is alive between parts and at the end, in float."""
        alive: dict[str, Any] = dict(feed)
        for index in range(len(self._cuts)):
            if index == len(self._parts):
                self._parts.append(self._open(index, alive))
            alive |= self._parts[index].run(alive)
        return alive

    def _open(self, index: int, alive: Mapping[str, Any]) -> Part:
        begin = self._cuts[index - 1] if index else 0
        nodes = self._whole.nodes[begin : self._cuts[index]]
        made = [name for node in nodes for name in node.output if name]
        kept = [name for name in made if self._last.get(name, -1) >= self._cuts[index]]
        return Part(
            self._whole,
            nodes,
            self._constants,
            alive,
            kept,
            always=self._rounded,
            optimize=True,
            **self._options,
        )

    def behind(self, sample: _Sample, index: int, others: Mapping[str, Array]) -> Outputs:
        """The outputs with other matrices, which part ``index`` and those before it read."""
        first = min([index, *(p for name in others for p in self._read_in[name])])
        alive = dict(sample.alive)
        for part in self._parts[first:]:
            alive |= part.run(alive, others)
        return {name: alive[name] for name in self.outputs}

    def moved(self, sample: _Sample, index: int, others: Mapping[str, Array]) -> float:
        """Energy of what other matrices do to the tensor at the end of their part."""
        name = self._carriers[index]
        found = self._parts[index].run(sample.alive, others)[name]
        return float(np.square(found.astype(np.float64) - sample.alive[name]).sum())


def _single_carriers(
    reads: Sequence[Sequence[str]], writes: Sequence[Sequence[str]], sources: set[str]
) -> tuple[list[int], list[str]]:
    """Where the nodes are cut, the last cut behind all of them, and what crosses each.

    A cut lies where one tensor alone of those that depend on ``sources`` is read behind it.
    """
    last = {name: i for i, names in enumerate(reads) for name in names}
    depends = set(sources)
    alive: set[str] = set()
    cuts, carriers, read = [], [], False
    for i, (names, made) in enumerate(zip(reads, writes, strict=True)):
        read = read or any(name in sources for name in names)
        if any(name in depends for name in names):
            depends.update(made)
            alive.update(name for name in made if last.get(name, -1) > i)
        alive = {name for name in alive if last[name] > i}
        if read and len(alive) == 1:
            cuts.append(i + 1)
            carriers.append(next(iter(alive)))
            read = False
    if not cuts or cuts[-1] < len(reads):
        cuts.append(len(reads))
        carriers.append("")
    return cuts, carriers


def _enough(chain: _Chain, feeds: Sequence[Feed], distance: Distance) -> list[_Sample]:
    """The first samples until they hold enough rows."""
    found: list[_Sample] = []
    rows = 0
    for feed in feeds:
        alive = chain.start(feed)
        outputs = {name: alive[name] for name in chain.outputs}
        found.append(_Sample(alive, distance(outputs)))
        first = np.asarray(next(iter(outputs.values())))
        rows += first.size // max(1, first.shape[-1] if first.ndim else 1)
        if rows >= POSITIONS:
            break
    return found


def divergence(logits: str) -> Distance:
    """Kullback-Leibler divergence of the next token's distribution, in nats."""

    def bound(outputs: Outputs) -> Callable[[Outputs], float]:
        real = _log_softmax(outputs[logits])
        share = np.exp(real)

        def apart(others: Outputs) -> float:
            left = np.einsum("...v,...v->...", share, real - _log_softmax(others[logits]))
            return float(left.mean())

        return apart

    return bound


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """In float32: differences of 1e-6 nats do not rank matrices, and float64 takes as long as the model."""
    shifted = logits - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.asarray(shifted)


def relative_error(outputs: Outputs) -> Callable[[Outputs], float]:
    """Energy of the error over energy of the output, the worst of the float outputs."""
    real = {
        name: array.astype(np.float64)
        for name, array in outputs.items()
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.any()
    }

    def apart(others: Outputs) -> float:
        worst = 0.0
        for name, array in real.items():
            if np.shape(others[name]) == array.shape:
                noise = float(np.square(others[name] - array).sum())
                worst = max(worst, noise / float(np.square(array).sum()))
        return worst

    return apart
