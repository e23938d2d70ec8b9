"""Weight-only quantization in ONNX Runtime's own operators: MatMulNBits, GatherBlockQuantized, MatMulBnb4.

A matrix that is multiplied with and looked up (a tied embedding) is stored once: the lookup reads the
product's packed weight through a Reshape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as oir

from qcompile.ir.blocks import BlockWeight, PackedWeight
from qcompile.ir.codebook import CodebookWeight
from qcompile.ir.errors import PassError
from qcompile.ir.graph import (
    add_initializer,
    constant,
    drop_unused,
    fresh_name,
    is_graph_output,
    origin,
    replace_value,
    set_origin,
    single_consumer,
)
from qcompile.ir.matrices import Matrix, Use

__all__ = ["MICROSOFT", "Stored", "lower_weights"]

MICROSOFT = "com.microsoft"

Stored = BlockWeight | PackedWeight | CodebookWeight


def lower_weights(
    model: oir.Model,
    matrices: Sequence[Matrix],
    weights: Mapping[str, Stored],
    accuracy_level: int,
) -> None:
    """Replace every matrix of ``weights`` (by initializer name) in ``model``, which is edited.

    Args:
        model: float graph.
        matrices: of this very graph.
        weights: what the matrices become; the others stay float.
        accuracy_level: of MatMulNBits: 4 rounds activations to 8 bits inside the kernel.

    Raises:
        PassError: a lookup into a matrix whose rows are no whole number of blocks.
    """
    graph = model.graph
    for matrix in matrices:
        weight = weights.get(matrix.name)
        if weight is None:
            continue
        if isinstance(weight, CodebookWeight):
            _codebook(graph, matrix, weight)
        else:
            _blocks(graph, matrix, weight, accuracy_level)
    drop_unused(model)
    graph.opset_imports.setdefault(MICROSOFT, 1)


def _blocks(
    graph: oir.Graph, matrix: Matrix, weight: BlockWeight | PackedWeight, accuracy_level: int
) -> None:
    spec = weight.spec
    packed = weight.packed()
    flat = packed.reshape(len(packed), -1)
    data = add_initializer(
        graph, f"{matrix.name}_int{spec.storage}", packed if matrix.multiplied else flat
    )
    rest = [add_initializer(graph, f"{matrix.name}_scale", weight.scale)]
    zero = weight.packed_zero()
    if zero is not None:
        rest.append(add_initializer(graph, f"{matrix.name}_zero", zero))
    table: oir.Value | None = None if matrix.multiplied else data
    for use in matrix.uses:
        if use.op_type == "Gather":
            if weight.width % spec.block:
                raise PassError(
                    f"rows of '{matrix.name}' have {weight.width} elements, no whole number of "
                    f"blocks of {spec.block}"
                )
            if table is None:
                table = _reshaped(graph, data, flat.shape)
            _lookup(graph, use, [table, use.node.inputs[1], *rest], spec.storage, spec.block)
        else:
            attributes = {
                "K": weight.width,
                "N": len(packed),
                "bits": spec.storage,
                "block_size": spec.block,
                "accuracy_level": accuracy_level,
            }
            last, bias = _bias(use, len(packed))
            inputs: list[oir.Value | None] = [use.node.inputs[0], data, *rest]
            if bias is not None:
                inputs += [None] * (5 - len(inputs)) + [bias]
            _replace(graph, use, last, "MatMulNBits", inputs, attributes)


def _codebook(graph: oir.Graph, matrix: Matrix, weight: CodebookWeight) -> None:
    data = add_initializer(graph, f"{matrix.name}_nf4", weight.packed())
    absmax = add_initializer(graph, f"{matrix.name}_absmax", weight.absmax.reshape(-1))
    attributes = {
        "K": weight.width,
        "N": weight.rows,
        "block_size": weight.block,
        "quant_type": 1,
    }
    for use in matrix.uses:
        node = use.node
        bias = node.inputs[2] if use.op_type == "Gemm" and len(node.inputs) > 2 else None
        made = _replace(graph, use, node, "MatMulBnb4", [node.inputs[0], data, absmax], attributes)
        if bias is not None:
            _add(graph, made, bias, node.attributes.get_float("beta", 1.0))


def _reshaped(graph: oir.Graph, data: oir.Value, shape: Sequence[int]) -> oir.Value:
    wanted = add_initializer(graph, f"{data.name}_rows", np.array(shape, np.int64))
    node = oir.node("Reshape", [data, wanted], name=fresh_name(graph, f"{data.name}_as_rows"))
    node.outputs[0].name = fresh_name(graph, f"{data.name}_table")
    node.outputs[0].dtype = oir.DataType.UINT8
    node.outputs[0].shape = oir.Shape(list(shape))
    graph.insert_before(next(iter(graph)), node)
    return node.outputs[0]


def _lookup(
    graph: oir.Graph, use: Use, inputs: Sequence[oir.Value | None], bits: int, block: int
) -> None:
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": bits}
    _replace(graph, use, use.node, "GatherBlockQuantized", inputs, attributes)


def _bias(use: Use, out: int) -> tuple[oir.Node, oir.Value | None]:
    """The node whose result is the layer's, and a bias (out,) that the kernel can add itself."""
    node = use.node
    if use.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            return node, None
        stored = constant(bias)
        beta = node.attributes.get_float("beta", 1.0)
        if stored is not None and stored.size in (1, out) and stored.dtype == np.float32:
            full = np.broadcast_to(stored.reshape(-1) * np.float32(beta), (out,))
            return node, add_initializer(_graph(node), f"{bias.name}_vector", np.array(full))
        raise PassError(f"the bias of '{origin(node)}' is no constant vector")
    after = single_consumer(node.outputs[0])
    if after is None or after.op_type != "Add" or after.domain:
        return node, None
    other = next((v for v in after.inputs if v is not node.outputs[0]), None)
    stored = constant(other)
    if stored is None or stored.dtype != np.float32 or stored.shape[-1:] != (out,):
        return node, None
    if stored.size != out or other is None:
        return node, None
    if stored.ndim == 1 and other.is_initializer():
        return after, other
    return after, add_initializer(_graph(node), f"{other.name}_vector", stored.reshape(-1))


def _graph(node: oir.Node) -> oir.Graph:
    graph = node.graph
    if not isinstance(graph, oir.Graph):
        raise PassError(f"node '{origin(node)}' belongs to no graph")
    return graph


def _replace(
    graph: oir.Graph,
    use: Use,
    last: oir.Node,
    op_type: str,
    inputs: Sequence[oir.Value | None],
    attributes: Mapping[str, int],
) -> oir.Node:
    """Put a node in the place of ``use.node`` to ``last``; it stands where the last one stood."""
    node = oir.node(
        op_type,
        list(inputs),
        attributes=dict(attributes),
        domain=MICROSOFT,
        name=fresh_name(graph, f"{use.node.name or origin(use.node)}_{op_type}"),
    )
    old = last.outputs[0]
    node.outputs[0].name = fresh_name(graph, f"{old.name}_{op_type}")
    # behind an operator of ONNX Runtime's own no type may be known, but only float32 was taken
    node.outputs[0].type = old.type or oir.TensorType(oir.DataType.FLOAT)
    node.outputs[0].shape = old.shape
    set_origin(node, [use.node] if last is use.node else [use.node, last])
    graph.insert_after(last, node)
    replace_value(old, node.outputs[0])
    graph.remove(last, safe=True)
    if use.node is not last and not is_graph_output(use.node.outputs[0]):
        graph.remove(use.node, safe=True)
    if not is_graph_output(node.outputs[0]):
        node.outputs[0].name = old.name  # the same tensor, under the name by which it is compared
    return node


def _add(graph: oir.Graph, made: oir.Node, bias: oir.Value, beta: float) -> None:
    if beta != 1.0:
        stored = constant(bias)
        if stored is None:
            raise PassError(f"the bias of '{made.name}' is scaled and no constant")
        bias = add_initializer(graph, f"{bias.name}_scaled", stored * np.float32(beta))
    value = made.outputs[0]
    inner = oir.node("Add", [value, bias], name=fresh_name(graph, f"{made.name}_bias"))
    inner.outputs[0].name = fresh_name(graph, f"{value.name}_biased")
    inner.outputs[0].type, inner.outputs[0].shape = value.type, value.shape
    graph.insert_after(made, inner)
    replace_value(value, inner.outputs[0])
    inner.replace_input_with(0, value)
