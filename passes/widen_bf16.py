"""Write bfloat16 arithmetic as float32 that is rounded, for runtimes without bfloat16 kernels.

Before:  x -> Conv (bfloat16) -> y
After:   x -> Conv (float32) -> Cast(bfloat16) -> Cast(float32) -> y

Every result is rounded as bfloat16 kernels round it when they store; sums inside a kernel keep
float32, as GPUs do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import constant, fresh_name
from qcompile.ir.manager import CompileState, PassResult

__all__ = ["WidenBf16", "widen_constant"]

_BF16, _FLOAT = oir.DataType.BFLOAT16, oir.DataType.FLOAT


@dataclass(frozen=True)
class WidenBf16:
    """Makes a model with bfloat16 tensors one that any runtime with Cast can compute."""

    name: str = "widen-bf16"

    def run(self, state: CompileState) -> PassResult:
        """Edit ``state.model``; the bfloat16 tensors left are those between two casts."""
        graph = state.model.graph
        changed = 0
        for value in list(graph.initializers.values()):
            if value.dtype == _BF16:
                widen_constant(value)
        for node in list(graph):
            for output in node.outputs:
                if output.dtype != _BF16 or _between_casts(output):
                    continue
                self._round(graph, node, output)
                changed += 1
        return PassResult(changed)

    @staticmethod
    def _round(graph: oir.Graph, node: oir.Node, output: oir.Value) -> None:
        readers = list(output.uses())
        rounded, last = output, node
        if node.op_type != "Cast":
            output.type = oir.TensorType(_FLOAT)
            rounded, last = _cast(graph, output, _BF16, node)
        wide, _ = _cast(graph, rounded, _FLOAT, last)
        for use in readers:
            use.node.replace_input_with(use.idx, wide)


def widen_constant(value: oir.Value) -> None:
    """Store an initializer of a narrower float type in float32."""
    array = constant(value)
    if array is not None:
        value.const_value = oir.tensor(array.astype(np.float32), name=value.name)
        value.type = oir.TensorType(_FLOAT)


def _between_casts(value: oir.Value) -> bool:
    producer = value.producer()
    return (
        producer is not None
        and producer.op_type == "Cast"
        and all(use.node.op_type == "Cast" for use in value.uses())
    )


def _cast(
    graph: oir.Graph, value: oir.Value, to: oir.DataType, after: oir.Node
) -> tuple[oir.Value, oir.Node]:
    base = f"{value.name}_{to.name.lower()}"
    result = oir.Value(name=fresh_name(graph, base), type=oir.TensorType(to), shape=value.shape)
    node = oir.node(
        "Cast", [value], {"to": int(to)}, outputs=[result], name=fresh_name(graph, f"{base}_Cast")
    )
    graph.insert_after(after, node)
    return result, node
