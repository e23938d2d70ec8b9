"""From a plan to files: the portable Q/DQ model, and what the target's backend makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as oir

from qcompile.backends.ort_lower import lower_ort
from qcompile.ir.affine import TensorRange
from qcompile.ir.given import NOTHING_GIVEN, Given
from qcompile.ir.manager import CompileState, Pass, PassManager, PassRecord
from qcompile.ir.notes import Note
from qcompile.ir.plan import PrecisionPlan
from qcompile.ir.save import save_model
from qcompile.ir.target import Target
from qcompile.learning import Learned
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.lint_numbers import LintNumbers
from qcompile.passes.prepare import runtime_passes
from qcompile.passes.store_tables import StoreTables

__all__ = ["Build", "Builder"]

NOTHING_LEARNED = Learned()


@dataclass(frozen=True)
class Build:
    """What one plan became.

    Attributes:
        plan: the plan that was built.
        portable: the Q/DQ model.
        lowered: the model in the runtime's own operators.
        path: the lowered model's file.
        records: log of the QUANTIZE passes.
        notes: what the lowering left as it was, and why.
        learned: the integers and bias shifts in it.
    """

    plan: PrecisionPlan
    portable: oir.Model
    lowered: oir.Model
    path: Path
    records: tuple[PassRecord, ...]
    notes: tuple[Note, ...]
    learned: Learned = NOTHING_LEARNED


@dataclass
class Builder:
    """Builds any plan of one prepared model; equal plans are built once.

    Attributes:
        model: the prepared float model (never changed).
        target: the capability table.
        ranges: tensor name -> range.
        work: folder for the lowered models.
        disabled: passes to skip.
        learned: integers and bias shifts for the layers that a plan makes integer.
        given: scales and weights that the model brought along; nothing replaces them.
        config: session options under which what was built computes what it says.
        quantize_passes: run in order on a copy of the model; the last ones insert Q/DQ.
    """

    model: oir.Model
    target: Target
    ranges: dict[str, TensorRange]
    work: Path
    disabled: frozenset[str] = frozenset()
    learned: Learned = NOTHING_LEARNED
    given: Given = NOTHING_GIVEN
    quantize_passes: tuple[Pass, ...] = (
        StoreTables(),
        CorrectBias(),
        InsertQDQ(),
        LintNumbers(),
    )
    config: Mapping[str, str] = field(default_factory=dict)
    _made: dict[tuple[tuple[str, str], ...], Build] = field(default_factory=dict)

    def build(self, plan: PrecisionPlan) -> Build:
        """The plan as portable and lowered models, and the lowered one's file; reasons are the plan's."""
        key = tuple((layer.origin, layer.precision) for layer in plan.layers)
        if key not in self._made:
            self._made[key] = self._build(plan, self.work / f"plan{len(self._made)}.onnx")
        made = self._made[key]
        return made if made.plan == plan else replace(made, plan=plan)

    def known_ranges(self) -> dict[str, TensorRange]:
        """What the passes are told of tensors."""
        return dict(self.ranges)

    def portable(self, plan: PrecisionPlan) -> tuple[oir.Model, tuple[PassRecord, ...]]:
        """The Q/DQ model alone."""
        state = CompileState(
            self.model.clone(),
            self.target,
            ranges=self.known_ranges(),
            qparams=dict(self.given.qparams),
            weights={**self.learned.weights, **self.given.weights},
            bias_shifts=dict(self.learned.bias_shifts),
            plan=plan,
        )
        manager = PassManager(self.quantize_passes, self.disabled)
        manager.run(state)
        return state.model, tuple(manager.records)

    def _build(self, plan: PrecisionPlan, path: Path) -> Build:
        portable, records = self.portable(plan)
        spelled = CompileState(portable.clone(), self.target)
        PassManager(runtime_passes(), self.disabled).run(spelled)
        lowered = lower_ort(spelled.model, plan, weight_bits=self.target.weight.bits or 8)
        save_model(lowered.model, path)
        return Build(plan, portable, lowered.model, path, records, lowered.notes, self.learned)
