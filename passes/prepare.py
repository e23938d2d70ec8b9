"""The PREPARE passes in their order: float -> float, each proven equal."""

from __future__ import annotations

from qcompile.ir.manager import Pass
from qcompile.passes.drop_noops import DropNoops
from qcompile.passes.fold_affine import FoldAffine
from qcompile.passes.fold_batchnorm import FoldBatchNorm
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.fuse_activations import FuseActivations

__all__ = ["prepare_passes"]


def prepare_passes() -> list[Pass]:
    """Passes to run once each, in this order.

    Activations are recognised before constants are folded into layers, because a fold may take
    away the division by 6 that makes a HardSwish one.
    """
    return [
        FoldConstants(),
        DropNoops(),
        FuseActivations(),
        FoldBatchNorm(),
        FoldAffine(),
        FuseActivations(),
        FoldAffine(),
    ]
