"""Apply what acts on the rows of an embedding to its table, once.

Before: ``f(Gather(T (n, d), ids))`` where f maps each element (or each row) by itself
After:  ``Gather(f(T), ids)``

f is a function of one element, arithmetic with a constant along the last axis, or a
LayerNormalization of it. A table that others read too, or rows that are also read as they are,
stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
from onnx.reference import ReferenceEvaluator

from qcompile.ir.graph import attribute, constant, default_opset, origin, single_consumer
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.ir.pattern import absorb
from qcompile.passes.linear import set_constant

__all__ = ["FoldTable"]

# fmt: off
UNARY = frozenset({
    "Clip", "Elu", "Erf", "Exp", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Neg", "Relu",
    "Sigmoid", "Sqrt", "Tanh",
})
# fmt: on
BINARY = frozenset({"Add", "Sub", "Mul", "Div"})
MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class FoldTable:
    """Folds row-wise functions into embedding tables of the main graph."""

    name: str = "fold-table"

    def run(self, state: CompileState) -> PassResult:
        """Fold one function after the other into each Gather of constant rows."""
        graph = state.model.graph
        notes: list[Note] = []
        for node in list(graph):
            table = constant(node.inputs[0]) if node.op_type == "Gather" else None
            if table is None or attribute(node, "axis", 0) != 0 or table.dtype != np.float32:
                continue
            value = node.inputs[0]
            follower = single_consumer(node.outputs[0])
            if (
                table.ndim != 2
                or value is None
                or len(value.uses()) > 1
                or table.nbytes > MAX_BYTES
            ):
                continue
            while follower is not None and follower.graph is graph:
                made = _apply(state, follower, node.outputs[0], table)
                if made is None:
                    break
                table = made
                notes.append(
                    Note(origin(follower) or "", f"folded into the table of '{node.name}'", True)
                )
                set_constant(graph, node, 0, table)
                absorb(node, [follower])
                follower = single_consumer(node.outputs[0])
        return PassResult(len(notes), tuple(notes))


def _apply(
    state: CompileState, node: oir.Node, rows: oir.Value, table: npt.NDArray[np.generic]
) -> npt.NDArray[np.generic] | None:
    """The table behind ``node``, None if it does not map row by row."""
    feeds: dict[str, npt.NDArray[np.generic]] = {}
    for value in node.inputs:
        if value is None or value is rows:
            continue
        array = constant(value)
        if array is None:
            return None
        feeds[str(value.name)] = array
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        return None
    width = table.shape[1]
    rank = None if rows.shape is None else len(rows.shape)
    if node.op_type in BINARY:
        operand = next(iter(feeds.values())) if len(feeds) == 1 else None
        if operand is None or operand.shape[-1:] not in ((), (1,), (width,)):
            return None
        if operand.size not in (1, width) or operand.ndim > (2 if rank is None else rank):
            return None
        feeds = {n: a.reshape(-1) for n, a in feeds.items()}
    elif node.op_type == "LayerNormalization":
        last = None if rank is None else rank - 1
        if attribute(node, "axis", -1) not in (-1, last) or any(v.uses() for v in node.outputs[1:]):
            return None
    elif node.op_type not in UNARY:
        return None
    return _evaluate(state, node, rows, {**feeds, str(rows.name): table})


def _evaluate(
    state: CompileState, node: oir.Node, rows: oir.Value, feeds: dict[str, npt.NDArray[np.generic]]
) -> npt.NDArray[np.generic] | None:
    proto = oir.to_proto(node)
    opset = default_opset(state.model)
    if node.domain == "com.microsoft":
        if node.op_type not in ("Gelu", "FastGelu"):
            return None
        approximate = "tanh" if node.op_type == "FastGelu" else "none"
        name = str(node.outputs[0].name)
        proto = onnx.helper.make_node("Gelu", [str(rows.name)], [name], approximate=approximate)
        opset = 20
    elif node.op_type == "LayerNormalization":
        proto.attribute.extend(
            [] if "axis" in node.attributes else [onnx.helper.make_attribute("axis", -1)]
        )
        for one in proto.attribute:
            one.i = -1 if one.name == "axis" else one.i
    inputs = [onnx.helper.make_tensor_value_info(n, 0, None) for n in feeds]
    output = onnx.helper.make_tensor_value_info(proto.output[0], 0, None)
    graph = onnx.helper.make_graph([proto], "rows", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        (result,) = ReferenceEvaluator(model).run([proto.output[0]], feeds)
    table = np.asarray(result, np.float32)
    return table if np.isfinite(table).all() else None
