"""The float parts in the forms that ONNX Runtime runs fastest, where its own optimizer does worse.

Tried with 1.31 under default options: it forms Gelu, BiasGelu, FastGelu, QuickGelu, FusedMatMul and
NCHWc Convs by itself, also beside integer operators. One fusion it had better not: Add followed by
LayerNormalization becomes SkipLayerNormalization, whose kernel is 6 times slower than the two (224
against 36 us for 128 x 384; in 1.24 it was 41 against 51). It looks for Add alone, so the same sum
is written as Sum.
"""

from __future__ import annotations

import onnx_ir as oir

from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.ir.graph import origin
from qcompile.ir.notes import Note

__all__ = ["fuse_float"]


_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
"""Whose fusion with a sum is slower than both (the one without mean: 39 against 21 us)."""


def fuse_float(model: oir.Model) -> list[Note]:
    """Write each Add in front of a normalization as Sum; says where."""
    notes: list[Note] = []
    for node in model.graph:
        if node.op_type not in _NORMS or node.domain not in ("", MICROSOFT):
            continue
        before = node.inputs[0]
        add = None if before is None else before.producer()
        if add is None or add.op_type != "Add" or add.domain != "" or before is None:
            continue
        if before.dtype not in (oir.DataType.FLOAT, None):
            continue
        add.op_type = "Sum"
        notes.append(
            Note(
                origin(add), "written as Sum: SkipLayerNormalization would be slower", changed=True
            )
        )
    return notes
