"""Give weights whose simulated quantization was folded into float numbers their integers back.

TensorFlow's exporter keeps Q/DQ on activations and writes each weight as the float constant that its
fake quant gives. Rounded on any other grid than their own, such weights lose what training fitted
them to. Runs behind ``KeepWeights``, on models that bring scales: factors of a batch norm for each
output channel leave the integers what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qcompile.ir.affine import QParams
from qcompile.ir.graph import constant
from qcompile.ir.grid import find_grid
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.ir.spec import INTEGER_BITS
from qcompile.ir.weights import IntegerWeight
from qcompile.passes.quantizable import Site, classify

__all__ = ["FOUND", "RecoverGrid"]

FOUND = "on the grid that its numbers lie on"


@dataclass(frozen=True)
class RecoverGrid:
    """Fills ``state.weights`` and ``state.qparams`` for weights that lie on a grid."""

    name: str = "recover-grid"

    def run(self, state: CompileState) -> PassResult:
        """Edits no graph."""
        notes: list[Note] = []
        for site in classify(state) if state.qparams else ():
            name = "" if site.weight is None else site.weight.name or ""
            if site.reason or not name or name in state.weights:
                continue
            found = _recovered(site)
            if found is not None:
                state.weights[name] = found
                state.qparams[name] = found.qparams
                most = int(np.abs(found.values.astype(np.int32)).max())
                text = f"weight keeps its own grid: integers up to {most}, scales from its numbers"
                notes.append(Note(site.origin, text, changed=True))
        return PassResult(len(notes), tuple(notes))


def _recovered(site: Site) -> IntegerWeight | None:
    array, spec = constant(site.weight), site.weight_spec
    if array is None or array.dtype != np.float32 or spec is None:
        return None
    axis = spec.granularity.axis
    if spec.dtype not in INTEGER_BITS or INTEGER_BITS[spec.dtype] != (8, True) or axis is None:
        return None
    found = find_grid(np.asarray(array, np.float32), axis % array.ndim)
    if found is None:
        return None
    integers, scale = found
    zero = np.zeros(scale.shape, np.int8)
    return IntegerWeight(
        integers.astype(np.int8), QParams(scale, zero, replace(spec, bits=None)), FOUND
    )
