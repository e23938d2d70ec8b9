"""Gated activations in the forms that cost least.

Measured on AVX512-VNNI with 1.31, nanoseconds an element between two integer Convs:

    HardSwish   Clip + QLinearMul 0.25;   Dequantize, HardSwish, Quantize 0.55
    SiLU        Dequantize, QuickGelu, Quantize 0.37;   QLinearSigmoid + QLinearMul 0.48;
                Dequantize, Sigmoid, Mul, Quantize 0.80

HardSwish(x) = x * h with h = clip(x/6 + 1/2, 0, 1). With x = s (q - z) and n = 3/s rounded, h is
(clip(q, z - n, z + n) - (z - n)) / 2n: the clipped integers of x are those of h, with scale 1/2n and
zero point z - n. Rounding 3/s moves the product by at most s/4, a quarter step of the input, between
-3 and 3 and by nothing elsewhere. The same line with its own alpha and beta is HardSigmoid.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor, Tail, dequantized
from qcompile.backends.ort_kernels import MICROSOFT
from qcompile.backends.ort_scales import hard_line, line_steps
from qcompile.backends.ort_site import Edit, Lowering, Refused, Site
from qcompile.ir.graph import origin, set_origin, single_consumer

__all__ = ["fuse_silu", "lower_hard_sigmoid", "lower_hard_swish"]


def lower_hard_swish(site: Site) -> Edit:
    """HardSwish -> Clip, QLinearMul."""
    x = site.need_input(0)
    to = site.need_tail("uint8")
    site.needs("QLinearMul", MICROSOFT, "uint8")
    gate, scale, zero = _clipped_line(site, x, 1.0 / 6.0, 0.5)
    if gate is None:
        gate = x.q
    inputs = [x.q, site.scale(x), site.zero(x), gate]
    inputs += [site.const("gate_scale", np.array(scale, np.float32))]
    inputs += [site.const("gate_zero_point", np.array(zero, np.uint8))]
    inputs += [site.scale(to.out), site.zero(to.out)]
    return site.write(site.make("QLinearMul", inputs, domain=MICROSOFT, absorbed=to.absorbed), to)


def lower_hard_sigmoid(site: Site) -> Edit:
    """HardSigmoid -> Clip, where its output already has the parameters of the clipped line."""
    x = site.need_input(0)
    to = site.need_tail("uint8")
    line = hard_line(site.node)
    if line is None:
        raise Refused("its line does not rise through zero")
    gate, scale, zero = _clipped_line(site, x, *line, suffix="")
    have = to.out
    if (
        abs(float(have.scale.reshape(())) / scale - 1) > 1e-6
        or int(have.zero_point.reshape(())) != zero
    ):
        raise Refused("its output has other parameters than the clipped line")
    return _finish(site, x.q if gate is None else gate, to)


def _finish(site: Site, q: oir.Value, to: Tail) -> Edit:
    if to.clamps:
        return site.clamp(q, to, suffix="clip")
    if q.producer() not in site.edit.new:
        q = site.make("Identity", [q]).outputs[0]
    site.edit.removes.append(site.node)
    return site.finish(q, to)


def _clipped_line(
    site: Site, x: QTensor, alpha: float, beta: float, suffix: str = "gate"
) -> tuple[oir.Value | None, float, int]:
    """(integers clipped to the line's ends or None where they need no clip, their scale, zero point)."""
    if x.dtype != "uint8":
        raise Refused(f"its input is {x.dtype}; the clipped integers need uint8")
    zero = int(x.zero_point.reshape(()))
    down, up = line_steps(x, (alpha, beta))
    if down < 1 or up < 1:
        raise Refused("its line lies between two steps of its input")
    if down > zero:
        raise Refused("its input's range ends above the foot of its line")
    foot, top, scale = zero - down, min(255, zero + up), 1.0 / (down + up)
    if (foot, top) == (0, 255):
        return None, scale, foot
    site.needs("Clip", "", "uint8")
    limits = [site.const(n, np.array(v, np.uint8)) for n, v in (("low", foot), ("high", top))]
    made = site.make("Clip", [x.q, *limits], suffix=suffix)
    return made.outputs[0], scale, foot


def fuse_silu(lowering: Lowering) -> int:
    """Write x * sigmoid(x), with or without a Q/DQ pair inside, as QuickGelu; returns how many."""
    graph = lowering.model.graph
    count = 0
    for node in list(graph):
        if node.op_type != "Mul" or node.domain != "" or node.graph is None:
            continue
        for index in (0, 1):
            inside = _sigmoid_of(node.inputs[index], node.inputs[1 - index])
            x = node.inputs[1 - index]
            if inside is None or x is None:
                continue
            fused = oir.Node(
                MICROSOFT, "QuickGelu", [x], [oir.AttrFloat32("alpha", 1.0)], name=node.name
            )
            old = node.outputs[0]
            new = fused.outputs[0]
            set_origin(fused, [node, inside[0]])
            new.type, new.shape, new.name = old.type, old.shape, old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name = f"{old.name}/replaced"
            graph.insert_after(node, fused)
            graph.remove([node, *inside], safe=True)
            count += 1
            break
    return count


def _sigmoid_of(value: oir.Value | None, x: oir.Value | None) -> list[oir.Node] | None:
    """The Sigmoid of ``x`` (first) and the Q/DQ pair behind it that together write ``value``."""
    chain: list[oir.Node] = []
    while value is not None and x is not None:
        node = value.producer()
        if node is None or single_consumer(value) is None:
            return None
        chain.insert(0, node)
        if node.op_type == "Sigmoid" and node.domain == "":
            return chain if _same(node.inputs[0], x) else None
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or origin(node):
            return None
        value = node.inputs[0]
    return None


def _same(a: oir.Value | None, b: oir.Value) -> bool:
    if a is b:
        return True
    one, other = dequantized(a), dequantized(b)
    return one is not None and other is not None and one.q is other.q and one.same_parameters(other)
