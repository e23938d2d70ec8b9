"""How much each matrix in few bits, alone, disturbs what the model puts out.

The error of a layer's own output says little: a key projection may err by a tenth and nothing changes.
Here the float model runs once for each matrix, with that one matrix as its integers make it. Weights are
inputs of the session with their float values as default, so that one session serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort import Session, open_session
from qcompile.data.inputs import Feed
from qcompile.ir.matrices import Matrix
from qcompile.ir.save import save_model
from qcompile.sizes import LOADED_WHOLE

__all__ = ["Distance", "disturbances", "divergence", "relative_error"]

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
    work: Path,
    distance: Distance,
    *,
    threads: int | None = None,
    custom_ops: Path | None = None,
    advance: Callable[[float, float | None], None] = lambda done, total: None,
) -> dict[str, float]:
    """Mean distance from float's outputs, by initializer name.

    Args:
        model: the prepared float model; stays as it is.
        rounded: initializer name -> matrix, and its values in integers (out, in).
        feeds: samples; only so many of the first ones are run as hold ``POSITIONS`` rows.
        work: a temporary folder.
        distance: of two models' outputs.
        threads: inside operators.
        custom_ops: library with custom operators.
        advance: told how many matrices are done.
    """
    copy = model.clone()
    for name in rounded:
        copy.graph.inputs.append(copy.graph.initializers[name])
    copy.ir_version = max(copy.ir_version or 4, 4)  # from 4 on an initializer may be a default
    path = work / "overridable.onnx"
    save_model(copy, path, external_above=LOADED_WHOLE)
    session = open_session(
        path, threads=threads, custom_ops=custom_ops, variable_shapes=True, keep_arena=True
    )
    taken, apart = _enough(session, feeds, distance)
    found: dict[str, float] = {}
    for i, (name, (matrix, values)) in enumerate(rounded.items()):
        array = values()
        other = {name: np.ascontiguousarray(array.T if matrix.turned else array)}
        far = [to(session.run({**feed, **other})) for feed, to in zip(taken, apart, strict=True)]
        found[name] = float(np.mean(far))
        advance(i + 1, len(rounded))
    del session
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    return found


def _enough(
    session: Session, feeds: Sequence[Feed], distance: Distance
) -> tuple[list[Feed], list[Callable[[Outputs], float]]]:
    """The first samples until they hold enough rows, and what tells how far outputs are from theirs."""
    taken: list[Feed] = []
    apart: list[Callable[[Outputs], float]] = []
    rows = 0
    for feed in feeds:
        outputs = session.run(feed)
        taken.append(feed)
        apart.append(distance(outputs))
        first = np.asarray(next(iter(outputs.values())))
        rows += first.size // max(1, first.shape[-1] if first.ndim else 1)
        if rows >= POSITIONS:
            break
    return taken, apart


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
