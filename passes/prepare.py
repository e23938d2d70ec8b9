"""The PREPARE passes in their order: float -> float, each proven equal."""

from __future__ import annotations

from qcompile.ir.manager import Pass
from qcompile.passes.drop_noops import DropNoops
from qcompile.passes.fold_affine import FoldAffine
from qcompile.passes.fold_batchnorm import FoldBatchNorm
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.fold_pad import FoldPad
from qcompile.passes.fold_shapes import FoldShapes
from qcompile.passes.fold_table import FoldTable
from qcompile.passes.fuse_activations import FuseActivations
from qcompile.passes.fuse_bias import FuseBias
from qcompile.passes.fuse_gelu import FuseGelu
from qcompile.passes.fuse_layernorm import FuseLayerNorm
from qcompile.passes.fuse_rotary import FuseRotary
from qcompile.passes.fuse_softmax import FuseSoftmax
from qcompile.passes.group_queries import GroupQueries
from qcompile.passes.move_transposes import MoveTransposes
from qcompile.passes.project_softmax import ProjectSoftmax
from qcompile.passes.rewrite_conv_transpose import RewriteConvTranspose
from qcompile.passes.rewrite_one_hot import RewriteOneHot
from qcompile.passes.spell_shifts import SpellShifts
from qcompile.passes.spell_softmax import SpellSoftmax
from qcompile.passes.split_first import SplitFirst
from qcompile.passes.transpose_heads import TransposeHeads

__all__ = ["decoder_passes", "prepare_passes", "runtime_passes"]


def prepare_passes(
    contrib: bool = False, engines: bool = False, few_bits: bool = False
) -> list[Pass]:
    """Passes to run once each, in this order.

    Activations are recognised before constants are folded into layers, because a fold may take
    away the division by 6 that makes a HardSwish one.

    Args:
        contrib: the target runs ONNX Runtime's own operators (``com.microsoft``); they are then
            used where ONNX has none at the model's opset.
        engines: the target compiles engines, whose builder looks for certain forms.
        few_bits: the target stores weights in few bits, in which they may lie already.
    """
    return [
        FoldConstants(),
        FoldShapes(),
        FoldConstants(),
        DropNoops(),
        RewriteOneHot(),
        FuseActivations(),
        FuseGelu(contrib),
        FuseLayerNorm(),
        FuseSoftmax(),
        *([ProjectSoftmax()] if contrib else []),
        FoldPad(),
        MoveTransposes(),
        *([SplitFirst()] if engines else []),
        FuseBias(),
        FoldBatchNorm(),
        FoldTable(),
        FoldAffine(columns=not few_bits),
        RewriteConvTranspose(engines=engines),
    ]


def runtime_passes() -> list[Pass]:
    """Float forms that ONNX Runtime's CPU kernels are fast at; to run last, on what stays float.

    They undo some of the canonical forms above, so nothing that reads canonical forms may follow.
    """
    return [SpellSoftmax(), SpellShifts()]


def decoder_passes() -> list[Pass]:
    """Forms that ONNX Runtime's CPU is fast at, for what decoders do between their matrices.

    To run behind the lowering: what folds, scales or cuts a model knows the canonical forms.
    """
    return [FuseRotary(), TransposeHeads(), GroupQueries()]
