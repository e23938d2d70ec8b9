"""Outputs that a selection writes, of which an error says little.

Rows of a TopK or a non-maximum suppression change places at the least difference.
"""

from __future__ import annotations

import onnx_ir as oir

from qcompile.ir.macs import MAC_OPERATORS

__all__ = ["selected_outputs"]

SELECTIONS = frozenset({"TopK", "NonMaxSuppression", "NonZero", "Unique", "ArgMax", "ArgMin"})


def selected_outputs(model: oir.Model) -> dict[str, oir.Node]:
    """Float output -> the selection that it stands behind, with nothing computed in between.

    A selection in front of products (a mixture of experts, a decoder's queries) is part of the network.
    """
    chosen: dict[oir.Value, oir.Node] = {}
    for node in model.graph:
        found = next((chosen[v] for v in node.inputs if v in chosen), None)
        written = node.outputs
        if node.domain == "" and node.op_type in SELECTIONS and found is None:
            # the values of a TopK keep their order whatever changes places
            found, written = node, node.outputs[node.op_type == "TopK" :]
        if found is not None and node.op_type not in MAC_OPERATORS:
            chosen.update(dict.fromkeys(written, found))
    return {
        value.name or "": chosen[value]
        for value in model.graph.outputs
        if value in chosen and (value.dtype is None or value.dtype.is_floating_point())
    }
