"""Tensors that products with matrices read and others too, so that no factor can be folded: it is divided.

Behind the normalizations of a BERT a tensor goes into products and into a residual sum that no factor
passes. There the products read ``x / s`` of a Div that is put in front of them, and their weights take
``s``. The Div costs a pass over the tensor in float, so it must earn that (see ``even_out``).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, constant
from qcompile.passes.linear import Array, as_linear
from qcompile.passes.scale_regions import Region, find_regions

__all__ = ["division_name", "find_all", "insert_division", "is_division"]

SUFFIX = "_divided_by_channel"


def find_all(graph: oir.Graph) -> tuple[list[Region], list[tuple[str, str]]]:
    """All that can be scaled, by folding first; and the tensors of which nothing can be folded, with why."""
    regions, refused = find_regions(graph)
    taken = {value for region in regions for value in region.tensors}
    return [*regions, *_branches(graph, taken)], refused


def _branches(graph: oir.Graph, taken: Collection[oir.Value]) -> list[Region]:
    """For each tensor outside of ``taken`` the products with constant matrices that read it."""
    found: dict[oir.Value, Region] = {}
    for node in graph:
        linear = as_linear(node, with_bias_add=False)
        if isinstance(linear, str) or node.op_type not in ("MatMul", "Gemm"):
            continue
        value = node.inputs[0]
        if value is None or value in taken or not value.name or constant(value) is not None:
            continue
        if value.graph is not graph or linear.why_no_new_weight() is not None:
            continue
        none = np.zeros(linear.inputs)
        region = found.setdefault(
            value,
            Region(value, linear.inputs, tensors={value: -1}, least=none, fixed=none, branch=True),
        )
        region.readers.append(node)
    return list(found.values())


def division_name(tensor: str) -> str:
    """Of the Div that divides a tensor's channels."""
    return f"{tensor}{SUFFIX}"


def is_division(node: oir.Node) -> bool:
    """Whether a node was put in by ``insert_division``: it is no layer of the model, so no plan has it."""
    return node.op_type == "Div" and (node.name or "").endswith(SUFFIX)


def insert_division(graph: oir.Graph, region: Region, factor: Array) -> None:
    """Let the readers of a branch read its tensor divided by ``factor``."""
    value, first = region.seed, region.readers[0]
    name = division_name(region.name)
    weight = constant(first.inputs[1])
    kind = np.float32 if weight is None else weight.dtype
    divisor = add_initializer(graph, f"{name}_factor", factor.astype(kind))
    node = oir.node("Div", [value, divisor], name=name)
    result = node.outputs[0]
    result.name, result.type, result.shape = name, value.type, value.shape
    graph.insert_before(first, node)
    for reader in region.readers:
        reader.replace_input_with(0, result)
