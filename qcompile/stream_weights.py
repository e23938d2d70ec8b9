"""Rounds matrices in the order in which the model reads them, each with what its layer really reads.

All samples run side by side, a few nodes at a time. Before a layer runs, the second moments of its input
are summed; its matrix is rounded; everything behind it then reads what the integers make of the samples.
Weights lie in their mapped file until their layer's turn, so memory holds one layer and the samples'
activations. What a rounded matrix computes with is made anew from its integers when its layer runs. The
second moments depend on integers alone that were stored, so a compile that was killed and goes on gives
the same bytes. Where asked for, the float model runs beside, and a layer knows what its input should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.calibrators.toward_float import Inputs, gather
from qcompile.data.inputs import Feed
from qcompile.ir.matrices import Matrix
from qcompile.stepper import Stepper

__all__ = ["Group", "Values", "groups_of", "stream"]

Array = npt.NDArray[np.float64]

ROWS = 4096
"""Rows of inputs that are multiplied at once."""

BESIDE = 64
"""Samples that run in float beside, at least, where there are as many: each takes as long as another."""


@dataclass(frozen=True)
class Group:
    """Matrices that multiply one and the same tensor (query, key and value).

    Attributes:
        tensor: its name.
        position: of the first node that reads it with one of the matrices.
        matrices: in the graph's order.
    """

    tensor: str
    position: int
    matrices: tuple[Matrix, ...]


def groups_of(model: oir.Model, matrices: Sequence[Matrix]) -> list[Group]:
    """Matrices with a single product and a direct weight, by what they multiply, in order."""
    order = {node: i for i, node in enumerate(model.graph)}
    found: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        use = matrix.uses[0]
        value = use.node.inputs[0]
        if len(matrix.uses) == 1 and not use.path and use.op_type != "Gather" and value is not None:
            found.setdefault(value.name or "", []).append(matrix)
    rows = [
        Group(tensor, min(order[m.uses[0].node] for m in members), tuple(members))
        for tensor, members in found.items()
    ]
    return sorted(rows, key=lambda g: g.position)


Values = Callable[[], npt.NDArray[np.float32]]
"""What a matrix computes with, (out, in)."""


def stream(
    model: oir.Model,
    feeds: Sequence[Feed],
    groups: Sequence[Group],
    already: Sequence[tuple[Matrix, Values]],
    act: Callable[[Group, Matrix, Callable[[], Inputs]], Values],
    *,
    threads: int | None = None,
    custom_ops: object = None,
    spill: Path | None = None,
    beside: bool = False,
    advance: Callable[[float, float | None], None] = lambda done, total: None,
) -> None:
    """Visit each group; behind it the samples are what the new weights make of them.

    Args:
        model: prepared float model.
        feeds: samples.
        groups: in the graph's order.
        already: matrices that were rounded without data.
        act: group, matrix, and a function for what its layer reads -> its new values.
        threads: inside operators.
        custom_ops: library with custom operators.
        spill: folder for the samples' activations; None holds them in memory.
        beside: run the float weights beside the rounded ones, for what the inputs are in float.
        advance: told how many groups are done.
    """

    def begin(name: str, samples: Sequence[Feed]) -> Stepper:
        folder = None if spill is None else spill / name
        if folder is not None:
            folder.mkdir()
        return Stepper(model, samples, threads=threads, custom_ops=custom_ops, spill=folder)

    stepper = begin("rounded", feeds)
    every = max(1, len(feeds) // BESIDE)
    real = begin("float", feeds[::every]) if beside else None

    def put(matrix: Matrix, values: Values) -> None:
        stepper.replace_constant(
            matrix.name, (lambda: np.ascontiguousarray(values().T)) if matrix.turned else values
        )

    for matrix, values in already:
        put(matrix, values)
    for i, group in enumerate(groups):
        stepper.run_to(group.position)
        if real is not None:
            real.run_to(group.position)
        known: list[Inputs] = []

        def inputs(group: Group = group, known: list[Inputs] = known) -> Inputs:
            if not known:
                known.append(_inputs(group.tensor, stepper, real, every))
            return known[0]

        for matrix in group.matrices:
            put(matrix, act(group, matrix, inputs))
        advance(i + 1, len(groups))


def _inputs(tensor: str, stepper: Stepper, real: Stepper | None, every: int) -> Inputs:
    read = [live[tensor] for live in stepper.live]
    if real is None:
        return Inputs(second_moments(iter(read)))
    return gather(read, [live[tensor] for live in real.live], every)


def second_moments(arrays: Iterator[npt.NDArray[Any]]) -> Array:
    """(in, in): the mean of ``x x^T`` over all rows, summed in float64 over runs of float32 products."""
    total: Array | None = None
    count = 0
    pending: list[npt.NDArray[np.float32]] = []

    def take() -> None:
        nonlocal total, count
        rows = np.concatenate(pending)
        pending.clear()
        product = (rows.T @ rows).astype(np.float64)
        total = product if total is None else total + product
        count += len(rows)

    for array in arrays:
        pending.append(np.asarray(array, np.float32).reshape(-1, array.shape[-1]))
        if sum(map(len, pending)) >= ROWS:
            take()
    if pending:
        take()
    if total is None:
        raise ValueError("no samples")
    return total / max(1, count)
