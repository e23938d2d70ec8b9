"""Carries the column scales of AWQ out: chosen where they can be folded, folded when the model is lowered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.calibrators.awq import Balance, balance
from qcompile.ir.blocks import BlockSpec, BlockWeight, PackedWeight
from qcompile.ir.codebook import CodebookWeight
from qcompile.ir.errors import PassError
from qcompile.ir.input_scales import Place, divide, find_place
from qcompile.ir.matrices import Matrix
from qcompile.stream_weights import Group, groups_of

__all__ = ["balance_group", "fold_columns"]

Floats = npt.NDArray[np.float32]


def balance_group(
    group: Group,
    specs: Mapping[str, BlockSpec],
    matrices: Sequence[Matrix],
    moments: npt.NDArray[np.float64],
) -> Balance | None:
    """Scales for the columns of all matrices of a group; None where no node can take their inverse."""
    if _place(group, matrices) is None:
        return None
    arrays = [matrix.array() for matrix in group.matrices]
    return balance(arrays, [specs[m.name] for m in group.matrices], moments)


def fold_columns(
    model: oir.Model,
    matrices: Sequence[Matrix],
    columns: Mapping[str, Floats],
    weights: dict[str, BlockWeight | PackedWeight | CodebookWeight],
) -> None:
    """Divide the inputs of matrices whose columns were multiplied; edits ``model`` and ``weights``.

    Args:
        model: the graph that is lowered.
        matrices: of this very graph, those that become integers.
        columns: initializer name -> what its columns were multiplied with.
        weights: rows of the blocks in it are divided where that is the place.
    """
    for group in groups_of(model, matrices):
        scale = columns.get(group.matrices[0].name)
        if scale is None:
            continue
        place = _place(group, matrices)
        if place is None:
            raise PassError(f"nothing can divide '{group.tensor}', and its matrices were scaled")
        divide(place, scale)
        if place.matrix:
            weight = weights[place.matrix]
            if isinstance(weight, CodebookWeight):
                raise PassError(f"the rows of '{place.matrix}' have no scales of their own")
            weights[place.matrix] = replace(weight, scale=weight.scale / scale[:, None])


def _place(group: Group, matrices: Sequence[Matrix]) -> Place | None:
    single = {m.uses[0].node: m for m in matrices if len(m.uses) == 1 and not m.uses[0].path}
    value = group.matrices[0].uses[0].node.inputs[0]
    readers = {m.uses[0].node for m in group.matrices}
    if value is None:
        return None
    return find_place(value, group.matrices[0].shape[1], readers, single)
