"""Move Transposes down through what acts on single elements, where that lets two of them cancel.

Before: ``T_p -> f -> T_q`` with ``q = p^-1``
After:  ``f``, with the constants of f transposed

Exporters from channels-last frameworks leave such pairs around every activation that they could not
turn. An Unsqueeze on the way inserts its axes where they end up. Also ``Transpose -> Reshape (m, -1) ->
MatMul W``: the rows of W are permuted instead, and the Reshape reads the tensor as it lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import (
    add_initializer,
    attribute,
    constant,
    is_graph_output,
    origin,
    single_consumer,
)
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.passes.linear import as_linear, set_constant

__all__ = ["MoveTransposes"]

UNARY = frozenset(
    {
        "Abs",
        "Cast",
        "Clip",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Tanh",
    }
)
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"})


@dataclass(frozen=True)
class MoveTransposes:
    """Cancels pairs of Transposes that have elementwise nodes between them."""

    name: str = "move-transposes"

    def run(self, state: CompileState) -> PassResult:
        """Look at each Transpose of the main graph once."""
        graph = state.model.graph
        notes: list[Note] = []
        for node in list(graph):
            if node.op_type != "Transpose" or node.graph is None:
                continue
            perm = attribute(node, "perm")
            if not isinstance(perm, tuple):
                continue
            text = _cancel(graph, node, perm) or _into_weight(graph, node, perm)
            if text is not None:
                notes.append(Note(origin(node) or node.name or "", text, True))
        return PassResult(len(notes), tuple(notes))


def _cancel(graph: oir.Graph, first: oir.Node, perm: tuple[int, ...]) -> str | None:
    """Drop ``first`` and the Transpose that undoes it behind elementwise nodes and one Unsqueeze."""
    before: list[oir.Node] = []
    after: list[oir.Node] = []
    unsqueeze: oir.Node | None = None
    axes: list[int] = []
    node = single_consumer(first.outputs[0])
    while node is not None and node.graph is graph:
        if _elementwise(node, len(perm) + len(axes)):
            (before if unsqueeze is None else after).append(node)
        elif unsqueeze is None and (found := _unsqueezed(node, len(perm))) is not None:
            unsqueeze, axes = node, found
        else:
            break
        node = single_consumer(node.outputs[0])
    chain = [*before, *([] if unsqueeze is None else [unsqueeze]), *after]
    if node is None or node.op_type != "Transpose" or node.graph is not graph or not chain:
        return None
    second = attribute(node, "perm")
    if not isinstance(second, tuple) or is_graph_output(node.outputs[0]) or first.inputs[0] is None:
        return None
    # Axis i behind the second Transpose is axis second[i] before it: new, or one of the first's.
    kept = iter(perm)
    sources = [None if i in axes else next(kept) for i in range(len(perm) + len(axes))]
    final = [sources[int(i)] for i in second]
    if [s for s in final if s is not None] != list(range(len(perm))):
        return None
    chain[0].replace_input_with(list(chain[0].inputs).index(first.outputs[0]), first.inputs[0])
    for one in before:
        _turn(graph, one, tuple(int(i) for i in np.argsort(perm)))
    if unsqueeze is not None:
        _set_axes(graph, unsqueeze, [i for i, s in enumerate(final) if s is None])
        unsqueeze.outputs[0].shape = None
    for one in after:
        _turn(graph, one, tuple(int(i) for i in second))
    chain[-1].outputs[0].shape = node.outputs[0].shape
    node.outputs[0].replace_all_uses_with(chain[-1].outputs[0])
    graph.remove([node, first], safe=True)
    return f"cancels '{node.name}' behind {len(chain)} nodes that do not mind"


def _turn(graph: oir.Graph, node: oir.Node, undo: tuple[int, ...]) -> None:
    """Let an elementwise node work on the tensor as it was before the Transpose."""
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is not None and array.size > 1 and value is not None:
            wide = array.reshape((1,) * (len(undo) - array.ndim) + array.shape)
            turned = np.transpose(wide, undo)
            node.replace_input_with(index, add_initializer(graph, f"{value.name}_turned", turned))
    out = node.outputs[0]
    if out.shape is not None and len(out.shape) == len(undo):
        out.shape = oir.Shape([out.shape[i] for i in undo])


def _unsqueezed(node: oir.Node, rank: int) -> list[int] | None:
    """The axes that an Unsqueeze of a tensor of ``rank`` inserts, None if unknown or no Unsqueeze."""
    if node.op_type != "Unsqueeze" or node.domain not in ("", "ai.onnx"):
        return None
    axes: object = attribute(node, "axes")
    if len(node.inputs) > 1:
        stored = constant(node.inputs[1])
        axes = None if stored is None else tuple(int(a) for a in stored.reshape(-1))
    if not isinstance(axes, tuple):
        return None
    return [int(a) % (rank + len(axes)) for a in axes]


def _set_axes(graph: oir.Graph, node: oir.Node, axes: list[int]) -> None:
    if len(node.inputs) > 1:
        name = f"{node.outputs[0].name}_axes"
        node.replace_input_with(1, add_initializer(graph, name, np.array(axes, np.int64)))
    else:
        node.attributes["axes"] = oir.AttrInt64s("axes", axes)


def _elementwise(node: oir.Node, rank: int) -> bool:
    """Whether the chain may go on through ``node``: one tensor, other operands constant."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in UNARY:
        return all(v is None or constant(v) is not None for v in node.inputs[1:])
    if node.op_type not in BINARY or len(node.inputs) != 2:
        return False
    arrays = [constant(v) for v in node.inputs]
    known = [a for a in arrays if a is not None]
    return len(known) == 1 and known[0].ndim <= rank


def _into_weight(graph: oir.Graph, node: oir.Node, perm: tuple[int, ...]) -> str | None:
    """Permute the rows of a weight instead of the data that are flattened in front of it."""
    source = node.inputs[0]
    reshape = single_consumer(node.outputs[0])
    layer = None if reshape is None else single_consumer(reshape.outputs[0])
    linear = as_linear(layer)
    if (
        source is None
        or reshape is None
        or isinstance(linear, str)
        or linear.node.graph is not graph
    ):
        return None
    if reshape.op_type != "Reshape":
        return None
    if linear.node.op_type.startswith("Conv") or linear.node.inputs[0] is not reshape.outputs[0]:
        return None
    shape = None if source.shape is None else list(source.shape)
    if shape is None or perm[0] != 0 or not all(isinstance(d, int) for d in shape[1:]):
        return None
    target = constant(reshape.inputs[1])
    sizes = [int(d) for d in shape[1:]]  # type: ignore[arg-type]
    rows = int(np.prod(sizes))
    if (
        target is None
        or target.size != 2
        or rows != linear.inputs
        or int(target[1]) not in (rows, -1)
    ):
        return None
    if linear.why_no_new_weight() is not None:
        return None
    # Row i of the new weight belongs to element i of the tensor before the Transpose.
    order = np.transpose(np.arange(rows).reshape(sizes), [p - 1 for p in perm[1:]]).reshape(-1)
    back = np.argsort(order)
    weight = linear.weight[:, back] if linear.transposed else linear.weight[back]
    set_constant(graph, linear.node, 1, weight)
    reshape.replace_input_with(0, source)
    graph.remove(node, safe=True)
    return f"folded into the weight of '{linear.node.name}'"
