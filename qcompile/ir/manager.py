"""Passes and the manager that runs, verifies, times and dumps them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.affine import QParams, TensorRange
from qcompile.ir.errors import PassError, QCompileError
from qcompile.ir.given import BroughtWeight
from qcompile.ir.notes import Note
from qcompile.ir.plan import PrecisionPlan
from qcompile.ir.target import Target
from qcompile.ir.verify import verify
from qcompile.ir.weights import IntegerWeight

__all__ = ["CompileState", "Note", "Pass", "PassManager", "PassRecord", "PassResult"]


@dataclass
class CompileState:
    """All that passes read and write.

    Attributes:
        model: the graph; passes edit it in place.
        target: the capability table.
        ranges: tensor name -> range seen in calibration (after the PREPARE passes).
        qparams: tensor name -> scale and zero point chosen; written by QUANTIZE passes. What stands
            here before them is kept: entries for weights too (a weight-range search).
        weights: weight name -> its integers; what stands here before ``QuantizeWeights`` is kept
            (learned rounding).
        bias_shifts: origin id -> what ``CorrectBias`` adds to the bias, (out,), where integer.
        brought: (origin of a layer, input) -> its constant as a model that comes quantized has it.
        plan: precision of each layer; None before planning.
        notes: everything worth telling the user that belongs to no pass (loading, degrading).
    """

    model: oir.Model
    target: Target
    ranges: dict[str, TensorRange] = field(default_factory=dict)
    qparams: dict[str, QParams] = field(default_factory=dict)
    weights: dict[str, IntegerWeight] = field(default_factory=dict)
    bias_shifts: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    brought: dict[tuple[str, int], BroughtWeight] = field(default_factory=dict)
    plan: PrecisionPlan | None = None
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class PassResult:
    """What a pass did: how many sites changed, and notes (changed sites and refusals)."""

    changed: int
    notes: tuple[Note, ...] = ()


@runtime_checkable
class Pass(Protocol):
    """A frozen dataclass whose fields are its options. ``name`` is the verb shown to users."""

    @property
    def name(self) -> str:
        """The verb, with hyphens: "fold-batchnorm"."""

    def run(self, state: CompileState) -> PassResult:
        """Edit ``state``; all checks come before the first edit of a site."""


@dataclass(frozen=True)
class PassRecord:
    """One line of the pass log; ``seconds`` is wall time."""

    name: str
    changed: int
    seconds: float
    notes: tuple[Note, ...]


@dataclass
class PassManager:
    """Runs passes in order; verifies after each and names the guilty one.

    Attributes:
        passes: in order.
        disabled: names of passes to skip.
        after: called behind each pass with its index, record and the state (dumps, progress).
        records: the log, appended to by ``run``.
    """

    passes: Sequence[Pass]
    disabled: frozenset[str] = frozenset()
    after: Callable[[int, PassRecord, CompileState], None] | None = None
    records: list[PassRecord] = field(default_factory=list)

    def run(self, state: CompileState) -> None:
        """Run every pass once.

        Raises:
            PassError: a pass failed or left an invalid graph; names it and those that ran before.
            QCompileError: a pass found that the user's model cannot be compiled.
        """
        for index, one in enumerate(self.passes):
            if one.name in self.disabled:
                continue
            start = time.perf_counter()
            try:
                result = one.run(state)
                verify(state.model)
            except QCompileError as e:
                if not isinstance(e, PassError):
                    raise
                raise PassError(f"pass {one.name}: {e}{self._before()}") from e
            except Exception as e:
                raise PassError(
                    f"pass {one.name} failed: {type(e).__name__}: {e}{self._before()}"
                ) from e
            record = PassRecord(one.name, result.changed, time.perf_counter() - start, result.notes)
            self.records.append(record)
            if self.after is not None:
                self.after(index, record, state)

    def _before(self) -> str:
        ran = ", ".join(r.name for r in self.records)
        return f" (passes before it: {ran or 'none'})"
