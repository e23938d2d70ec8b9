"""Operators that only move or choose values: they run on the integers themselves.

Q(move(DQ(x)))   ->  move(x)        equal parameters on both sides
move(DQ(x))      ->  DQ(move(x))    a float reader: a quarter of the bytes moved
Q(move(x))       ->  move(Q(x))     a float writer: the same, where the tensor does not shrink
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor, quantizer
from qcompile.backends.ort_rules_layout import nhwc_max_pool, repeat_rows
from qcompile.backends.ort_site import Edit, Refused, Site
from qcompile.ir.graph import constant, single_consumer

__all__ = ["MOVES", "hoist", "lower_move"]


@dataclass(frozen=True)
class _Move:
    """How a moving operator behaves.

    Attributes:
        outputs: every output carries data (False: only the first one does).
        hoist: a Q behind it may go in front (it does not shrink the tensor).
        shrinks: the output can be smaller, so a DQ in front is worth moving even when shared.
    """

    outputs: bool = False
    hoist: bool = True
    shrinks: bool = False


MOVES: dict[str, _Move] = {
    "DepthToSpace": _Move(),
    "Expand": _Move(),
    "Flatten": _Move(),
    "Gather": _Move(hoist=False, shrinks=True),
    "GatherElements": _Move(hoist=False, shrinks=True),
    "GatherND": _Move(hoist=False, shrinks=True),
    "Identity": _Move(),
    "MaxPool": _Move(hoist=False, shrinks=True),
    "Pad": _Move(),
    "ReduceMax": _Move(hoist=False, shrinks=True),
    "ReduceMin": _Move(hoist=False, shrinks=True),
    "Reshape": _Move(),
    "Resize": _Move(),
    "Slice": _Move(hoist=False, shrinks=True),
    "SpaceToDepth": _Move(),
    "Split": _Move(outputs=True, hoist=False),
    "Squeeze": _Move(),
    "Tile": _Move(),
    "Transpose": _Move(),
    "Unsqueeze": _Move(),
}


def lower_move(site: Site) -> Edit:
    """A moving operator on integers; its DQ goes behind it where a float reader follows."""
    node = site.node
    move = MOVES[node.op_type]
    x = site.need_input(0)
    site.needs(node.op_type, "", x.dtype)
    outputs = list(node.outputs) if move.outputs else [node.outputs[0]]
    if any(o.uses() or o.is_graph_output() for o in node.outputs if o not in outputs):
        raise Refused("its second output is read")
    inputs = _other_inputs(site, x)
    _check_resize(site)
    tails = [site.tail(i) for i in range(len(outputs))]
    for to in tails:
        if to is not None and (to.clamps or not to.out.same_parameters(x)):
            tails = [None] * len(outputs)
            break
    if all(t is None for t in tails):
        dq = node.inputs[0].producer() if node.inputs[0] is not None else None
        shared = dq is not None and single_consumer(dq.outputs[0]) is None
        if shared and not move.shrinks:
            raise Refused(
                "its float input has other readers, so a second DequantizeLinear would not pay"
            )
    results = _moved(site, x, inputs)
    site.edit.removes.append(node)
    for result, output, to in zip(results, outputs, tails, strict=False):
        if to is not None:
            site.finish(result, to)
            continue
        if not output.uses() and not output.is_graph_output():
            continue
        dq_inputs = [result, x.scale_value, *([] if x.zero_value is None else [x.zero_value])]
        back = site.make("DequantizeLinear", dq_inputs, suffix="dequantize")
        result.name = f"{output.name}/quantized"
        result.type = x.q.type
        result.shape = output.shape
        site.edit.takes_over.append((output, back.outputs[0]))
    return site.edit


def _moved(site: Site, x: QTensor, inputs: list[oir.Value | None]) -> list[oir.Value]:
    """What the operator writes when it runs on the integers of ``x``."""
    node = site.node
    if node.op_type == "MaxPool":
        return [nhwc_max_pool(site, x)]
    if node.op_type == "Resize":
        repeated = repeat_rows(site, x)
        if repeated is not None:
            return [repeated]
    made = site.make(
        node.op_type, [x.q, *inputs], dict(node.attributes), num_outputs=len(node.outputs)
    )
    return list(made.outputs)


def _other_inputs(site: Site, x: QTensor) -> list[oir.Value | None]:
    rest = list(site.node.inputs[1:])
    if site.node.op_type != "Pad":
        return rest
    mode = site.attribute("mode", "constant")
    if mode != "constant":
        return rest
    fill = 0.0
    if len(rest) > 1 and rest[1] is not None:
        given = constant(rest[1])
        if given is None or given.size != 1:
            raise Refused("its padding value is not constant")
        fill = float(given.reshape(-1)[0])
    step = float(x.scale.reshape(()))
    held = x.quantize(fill)
    if abs((held - int(x.zero_point.reshape(()))) * step - fill) > step / 2:
        raise Refused(f"its padding value {fill} lies outside the input's range")
    padded = site.const("pad", np.array(held, dtype=x.zero_point.dtype))
    return [rest[0] if rest else None, padded, *rest[2:]]


def _check_resize(site: Site) -> None:
    if site.node.op_type != "Resize":
        return
    if site.attribute("mode", "nearest") != "nearest":
        raise Refused("the integer Resize between pixels is half as fast as the float one")


def hoist(site: Site) -> Edit:
    """Put the Q behind a moving operator in front of it: a quarter of the bytes moved."""
    node = site.node
    value = node.inputs[0]
    if not MOVES[node.op_type].hoist or value is None or site.input(0) is not None:
        raise Refused("")
    follower = single_consumer(node.outputs[0])
    out = None if follower is None else quantizer(follower)
    if follower is None or out is None or out.axis is not None or constant(value) is not None:
        raise Refused("")
    if single_consumer(value) is not node:
        raise Refused("")
    site.needs(node.op_type, "", out.dtype)
    rest = _other_inputs(site, out)
    _check_resize(site)
    first = site.make("QuantizeLinear", [value, *follower.inputs[1:]], suffix="quantize")
    first.outputs[0].type = out.q.type
    first.outputs[0].shape = value.shape
    made = site.make(node.op_type, [first.outputs[0], *rest], dict(node.attributes))
    site.edit.takes_over.append((out.q, made.outputs[0]))
    site.edit.removes += [node, follower]
    return site.edit
