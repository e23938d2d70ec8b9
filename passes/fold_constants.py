"""Evaluate what does not depend on the inputs.

Before: ``y = f(c1, c2, ...)`` with constant operands; ``Shape(x)`` of a tensor whose shape is static.
After: ``y`` is an initializer; Constant nodes are initializers under the name of their output.

Quantize and Dequantize nodes stay (a model that arrives quantized is kept as it is), as do nodes
with random results or subgraphs, and results that would make the file much bigger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
from onnx.reference import ReferenceEvaluator

from qcompile.ir.graph import constant, drop_unused, is_graph_output, origin
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.ir.on_disk import kept

__all__ = ["FoldConstants"]

KEPT = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)
SMALL_BYTES = 1 << 20


@dataclass(frozen=True)
class FoldConstants:
    """Turns constant subgraphs of the main graph into initializers.

    Attributes:
        max_growth: bytes that one result may exceed twice the size of its operands by.
    """

    max_growth: int = SMALL_BYTES
    name: str = "fold-constants"

    def run(self, state: CompileState) -> PassResult:
        """Fold in graph order, so that chains collapse in one run."""
        graph = state.model.graph
        notes: list[Note] = []
        changed = 0
        for node in list(graph):
            if node.domain not in ("", "ai.onnx"):
                continue
            if any(is_graph_output(v) for v in node.outputs):
                continue
            if node.op_type == "Constant":
                tensor = oir.convenience.get_const_tensor(node.outputs[0])
                results = None if tensor is None else [tensor]
            else:
                results, reason = self._evaluate(state, node)
                if reason is not None:
                    notes.append(Note(origin(node) or node.name or "", reason))
            if results is None:
                continue
            _become_initializers(graph, node, results)
            changed += 1
        if changed:
            drop_unused(state.model)
        return PassResult(changed, tuple(notes))

    def _evaluate(
        self, state: CompileState, node: oir.Node
    ) -> tuple[list[oir.TensorProtocol] | None, str | None]:
        shape = _static_shape(state.model.graph, node)
        if shape is not None:
            return [oir.tensor(shape)], None
        if node.op_type in KEPT or any(_is_subgraph(a) for a in node.attributes.values()):
            return None, None
        feeds: dict[str, npt.NDArray[np.generic]] = {}
        for value in node.inputs:
            if value is None:
                continue
            array = constant(value)
            if array is None:
                return None, None
            feeds[str(value.name)] = array
        if not feeds:
            return None, None
        try:
            arrays = _run(state, node, feeds)
        except Exception as e:  # noqa: BLE001 - the reference evaluator raises whatever it likes
            return None, f"constant, but not evaluated ({type(e).__name__}: {e})"
        if any(not isinstance(a, np.ndarray) or a.dtype == object for a in arrays):
            return None, "constant, but its result is no plain tensor"
        grown = sum(a.nbytes for a in arrays) - 2 * sum(a.nbytes for a in feeds.values())
        if grown > self.max_growth:
            return None, f"constant, but the result would add {grown >> 20} MB to the model"
        return [oir.tensor(kept(a)) for a in arrays], None


def _static_shape(graph: oir.Graph, node: oir.Node) -> npt.NDArray[np.int64] | None:
    """The result of a Shape node whose input has a fully known shape.

    Where an input of the model is dynamic, only the shapes of inputs and constants count: those
    stated for inner tensors may be left over from a fixed size (fold-shapes knows better).
    """
    source = node.inputs[0] if node.op_type == "Shape" else None
    if source is None or source.shape is None:
        return None
    fixed = all(v.shape is not None and v.shape.is_static() for v in graph.inputs)
    if not fixed and not source.is_graph_input() and not source.is_initializer():
        return None
    dims = list(source.shape)
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(dims))
    numbers = [d for d in dims[slice(start, end)] if isinstance(d, int)]
    return np.array(numbers, np.int64) if len(numbers) == len(dims[slice(start, end)]) else None


def _is_subgraph(attribute: oir.Attr) -> bool:
    return attribute.type in (oir.AttributeType.GRAPH, oir.AttributeType.GRAPHS)


def _run(
    state: CompileState, node: oir.Node, feeds: dict[str, npt.NDArray[np.generic]]
) -> list[npt.NDArray[np.generic]]:
    inputs = [onnx.helper.make_tensor_value_info(n, 0, None) for n in feeds]
    outputs = [
        onnx.helper.make_tensor_value_info(str(v.name), 0, None) for v in node.outputs if v.name
    ]
    graph = onnx.helper.make_graph([oir.to_proto(node)], "constant", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", state.model.opset_imports.get("", 1))]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, feeds))


def _become_initializers(
    graph: oir.Graph, node: oir.Node, results: Sequence[oir.TensorProtocol]
) -> None:
    for old, tensor in zip([v for v in node.outputs if v.name], results, strict=True):
        name = str(old.name)
        new = oir.Value(
            name=name,
            type=oir.TensorType(tensor.dtype),
            shape=oir.Shape(tensor.numpy().shape),
            const_value=oir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name),
        )
        old.replace_all_uses_with(new)
        old.name = None
        graph.register_initializer(new)
    graph.remove(node, safe=True)
