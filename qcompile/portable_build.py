"""Builds plans for targets whose runtime is not here: the Q/DQ model, and a form that runs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as oir

from qcompile.backends.ort import AS_WRITTEN
from qcompile.build import Build, Builder
from qcompile.ir.affine import TensorRange
from qcompile.ir.manager import CompileState, Pass, PassManager
from qcompile.ir.plan import INT8, NVFP4, PrecisionPlan
from qcompile.ir.save import save_model
from qcompile.passes.cast_half import CastHalf
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.emulate_fp4 import EmulateFP4
from qcompile.passes.insert_fp4 import InsertFP4
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.lint_numbers import LintNumbers
from qcompile.passes.pad_heads import PadHeads
from qcompile.passes.round_scales import RoundScales
from qcompile.passes.widen_bf16 import WidenBf16

__all__ = ["PortableBuilder", "portable_passes"]


def portable_passes(rest: str, precision: str = INT8) -> tuple[Pass, ...]:
    """The QUANTIZE passes; what stays float becomes ``rest`` ("fp32", "fp16", "bf16")."""
    if precision == NVFP4:
        return (*(() if rest == "fp32" else (CastHalf(rest),)), InsertFP4())
    if rest == "fp32":
        return (CorrectBias(), InsertQDQ(), PadHeads(), LintNumbers())
    return (
        *(CorrectBias(), RoundScales(rest), InsertQDQ()),
        *(PadHeads(), LintNumbers(), CastHalf(rest)),
    )


@dataclass
class PortableBuilder(Builder):
    """As ``Builder``; what is built is the portable model, to be run as it is written.

    Attributes:
        peaks: largest values of tensors that get no Q/DQ, which decide what fits float16.
    """

    peaks: Mapping[str, TensorRange] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=lambda: dict(AS_WRITTEN))

    def known_ranges(self) -> dict[str, TensorRange]:
        """Ranges of tensors with Q/DQ, and peaks of the others."""
        return {**self.peaks, **self.ranges}

    def rehearsal(self, plan: PrecisionPlan) -> oir.Model:
        """The Q/DQ model with what stays float in float32, whose constants can be replaced as it runs."""
        wide = tuple(p for p in self.quantize_passes if not isinstance(p, CastHalf))
        return replace(self, quantize_passes=wide).portable(plan)[0]

    def _build(self, plan: PrecisionPlan, path: Path) -> Build:
        portable, records = self.portable(plan)
        # ONNX Runtime's CPU provider has next to no bfloat16 kernels.
        runnable = CompileState(portable.clone(), self.target)
        PassManager([EmulateFP4(), WidenBf16()]).run(runnable)
        save_model(runnable.model, path)
        return Build(plan, portable, runnable.model, path, records, (), self.learned)
