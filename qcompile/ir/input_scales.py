"""Where a division of a tensor by one number a channel can be put without a node of its own.

* into the constant factor of a Mul (the weight of a norm that is written out),
* into scale and bias of a LayerNormalization, SimplifiedLayerNormalization or RMSNormalization,
* into the rows of the matrix that makes one factor of a Mul (the gate of a SwiGLU).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.errors import PassError
from qcompile.ir.graph import add_initializer, constant, is_graph_output, single_consumer
from qcompile.ir.matrices import Matrix

__all__ = ["Place", "divide", "find_place"]

NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")


@dataclass(frozen=True)
class Place:
    """A node that can divide its output.

    Attributes:
        node: it.
        inputs: of it, constants to divide.
        matrix: name of the matrix whose rows are divided instead, "" if none.
    """

    node: oir.Node
    inputs: tuple[int, ...] = ()
    matrix: str = ""


def find_place(
    value: oir.Value, channels: int, readers: set[oir.Node], matrices: dict[oir.Node, Matrix]
) -> Place | None:
    """Where ``value`` can be divided; None where nothing is that ``readers`` alone would notice.

    Args:
        value: what the matrices multiply.
        channels: its last axis.
        readers: nodes whose matrices are multiplied in turn.
        matrices: node -> the matrix that it alone multiplies with.
    """
    node = value.producer()
    if node is None or is_graph_output(value) or {use.node for use in value.uses()} != readers:
        return None
    if node.op_type in NORMS and len(node.outputs) == 1:
        last = node.attributes.get_int("axis", -1) == -1 or _last_axis(node, value)
        known = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
        if last and all(_vector(node.inputs[i], channels) for i in known):
            return Place(node, tuple(known))
        return None
    if node.op_type != "Mul" or node.domain:
        return None
    for i in (0, 1):
        if _vector(node.inputs[i], channels) and not _vector(node.inputs[1 - i], channels):
            return Place(node, (i,))
    for factor in node.inputs:
        made = None if factor is None else factor.producer()
        if made is None or factor is None or single_consumer(factor) is not node:
            continue
        matrix = matrices.get(made)
        if matrix is not None and matrix.shape[0] == channels and made.op_type == "MatMul":
            return Place(node, (), matrix.name)
    return None


def divide(place: Place, scale: npt.NDArray[np.float32]) -> None:
    """Divide the constants of a place, in the graph; a matrix's rows are the caller's business."""
    for i in place.inputs:
        value = place.node.inputs[i]
        stored = constant(value)
        graph = place.node.graph
        if stored is None or value is None or not isinstance(graph, oir.Graph):
            raise PassError(f"input {i} of '{place.node.name}' is no constant any more")
        # a new initializer, for others may read the old one
        made = add_initializer(
            graph, f"{value.name}_balanced", np.asarray(stored, np.float32) / scale
        )
        place.node.replace_input_with(i, made)


def _vector(value: oir.Value | None, channels: int) -> bool:
    stored = constant(value)
    return (
        stored is not None
        and stored.dtype == np.float32
        and stored.ndim >= 1
        and stored.shape[-1] == channels == stored.size
    )


def _last_axis(node: oir.Node, value: oir.Value) -> bool:
    return value.shape is not None and node.attributes.get_int("axis", -1) == len(value.shape) - 1
