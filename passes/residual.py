"""Which input of a residual Add is the layer's own result, and which one is the residual.

conv -> Add(conv, x)     conv's kernel adds x as it writes; x is the residual
"""

from __future__ import annotations

import onnx_ir as oir

from qcompile.ir.graph import single_consumer

__all__ = ["carried_input"]


def carried_input(node: oir.Node, carriers: tuple[str, ...]) -> int | None:
    """Index of the input that an operator of ``carriers`` computes for this node alone, or None.

    Where several do (a shortcut with a Conv of its own) the first is meant: exporters write
    ``layer(x) + shortcut(x)``.
    """
    for index, value in enumerate(node.inputs):
        producer = None if value is None else value.producer()
        if value is None or producer is None or producer.domain != "":
            continue
        if producer.op_type in carriers and single_consumer(value) is node:
            return index
    return None
