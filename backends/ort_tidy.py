"""What the rules leave behind: a Split of which one output is read copies that one alone.

Split(q; a, b), only b read  ->  Slice(q)       9 nodes of YOLOv8n: 2 % of its time
"""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_site import Lowering
from qcompile.ir.graph import attribute, constant, replace_value, set_origin

__all__ = ["slice_lone_outputs"]


def slice_lone_outputs(lowering: Lowering) -> int:
    """Write each 8-bit Split with one output in use as a Slice; returns how many."""
    graph, count = lowering.model.graph, 0
    for node in list(graph):
        if node.op_type != "Split" or node.domain != "" or len(node.outputs) < 2:
            continue
        value, used = node.inputs[0], [o for o in node.outputs if o.uses() or o.is_graph_output()]
        sizes = _sizes(node)
        if value is None or len(used) != 1 or sizes is None or used[0].is_graph_output():
            continue
        if value.dtype not in (oir.DataType.UINT8, oir.DataType.INT8):
            continue
        index = list(node.outputs).index(used[0])
        start = sum(sizes[:index])
        axis = attribute(node, "axis", 0)
        limits = {"starts": start, "ends": start + sizes[index], "axes": axis}
        constants = [
            lowering.constant(f"{used[0].name}_{name}", np.array([limit], np.int64))
            for name, limit in limits.items()
        ]
        made = oir.Node("", "Slice", [value, *constants], name=node.name)
        set_origin(made, [node])
        out = made.outputs[0]
        out.type, out.shape, name = value.type, used[0].shape, used[0].name
        used[0].name = f"{name}/replaced"
        out.name = name
        graph.insert_after(node, made)
        replace_value(used[0], out)
        graph.remove(node, safe=True)
        count += 1
    return count


def _sizes(node: oir.Node) -> list[int] | None:
    """Lengths of the outputs along the axis, where they are constant."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        return None if array is None else [int(n) for n in array.reshape(-1)]
    given = attribute(node, "split")
    if isinstance(given, tuple):
        return [int(n) for n in given]
    value, axis = node.inputs[0], attribute(node, "axis", 0)
    if value is None or value.shape is None or not isinstance(axis, int):
        return None
    length = value.shape[axis]
    count = len(node.outputs)
    if not isinstance(length, int):
        return None
    each = -(-length // count)
    return [*[each] * (count - 1), length - each * (count - 1)]
