"""Changes of scales that lowered operators profit from, made on Q/DQ pairs before the rules run.

* A tensor that only a Concat reads takes the Concat's scale: its producer then rounds once, to the
  scale in which it ends, and the Concat copies bytes (0.06 against 0.41 ns an element).
* Nothing is rounded between a MatMul and the Add of its bias.
* The input of a HardSwish or HardSigmoid gets a range that reaches the foot of its line; then
  clip(alpha x + beta, 0, 1) is a clip of the integers themselves, read with another scale.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_edges import QTensor, dequantized, quantizer, tail
from qcompile.backends.ort_rules_passthrough import MOVES
from qcompile.backends.ort_site import Lowering
from qcompile.ir.graph import attribute, constant, origin, single_consumer
from qcompile.ir.notes import Note

__all__ = [
    "adopt_concat_scales",
    "align_hard_activations",
    "hard_line",
    "join_biases",
    "line_steps",
]

_CONCAT_GROWTH = 2.0
"""Growth of a shared scale up to which copying bytes is worth its rounding (YOLOv8n: 0.1 dB at the
output, 2 % of the time; PP-OCRv4: nothing and 1 %)."""

_CONCAT_REACH = 1.5
"""Growth of a Concat's scale that lets its parts share it (YOLOv8n: nothing at the output)."""

_COARSER = 1.5
"""Largest growth of a scale that is worth an integer HardSwish instead of a float one."""

_FINER = 1.25
"""Largest growth of a scale that is worth a foot on a whole step (2 to 3 dB in the PP-OCR nets)."""


def hard_line(node: oir.Node) -> tuple[float, float] | None:
    """(alpha, beta) of the clipped line inside a HardSigmoid or HardSwish; None for other nodes."""
    if node.domain != "":
        return None
    if node.op_type == "HardSwish":
        return 1.0 / 6.0, 0.5
    if node.op_type != "HardSigmoid":
        return None
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    if (
        not isinstance(alpha, float)
        or not isinstance(beta, float)
        or alpha <= 0
        or not 0 < beta < 1
    ):
        return None
    return alpha, beta


def line_steps(tensor: QTensor, line: tuple[float, float]) -> tuple[int, int]:
    """Whole steps of ``tensor`` from zero down to the line's foot and up to its top."""
    alpha, beta = line
    step = float(tensor.scale.reshape(()))
    return round(beta / alpha / step), round((1 - beta) / alpha / step)


def adopt_concat_scales(lowering: Lowering, integer: Collection[str]) -> None:
    """Give what a Concat reads the scale of its output.

    Freely where nothing else reads it: the producer then rounds once instead of twice. With other
    readers where the scale grows by no more than ``_CONCAT_GROWTH``, together with all that shares
    its scale. What is enlarged for the Concat alone is quantized for it before it grows.

    Args:
        lowering: the model.
        integer: operators that may become integer ones, which then write one scale.
    """
    for node in lowering.model.graph:
        if node.op_type != "Concat" or node.domain != "":
            continue
        behind = tail(node.outputs[0])
        if behind is None:
            continue
        parts = [_Pair.of(value) for value in node.inputs]
        _reach_parts(lowering, _Pair.of_quantizer(behind.quantize), parts)
        behind = tail(node.outputs[0]) or behind
        for pair in parts:
            if pair is None or pair.tensor.same_parameters(behind.out):
                continue
            if _quantize_before(lowering, pair, behind.out, integer):
                continue
            group = pair.group()
            if any(one.seen_outside() or not _covers(behind.out, one.tensor) for one in group):
                continue
            alone = len(group) == 1 and len(pair.readers()) == 1
            growth = behind.out.scale.reshape(()) / pair.tensor.scale.reshape(())
            if alone or growth <= _CONCAT_GROWTH:
                for one in group:
                    one.set(lowering, behind.out.scale, behind.out.zero_point)


def _reach_parts(lowering: Lowering, out: _Pair | None, parts: Sequence[_Pair | None]) -> None:
    """Let a Concat's range reach what its parts reach, where that is little more than it has.

    Ranges that leave the rarest values out end a little differently for the whole than for each part,
    and a part that reaches further could not share the scale.
    """
    held = [one.tensor for one in parts if one is not None]
    if out is None or out.tied() or len(held) < len(parts):
        return
    if any(one.dtype != out.tensor.dtype for one in held):
        return
    limits = [_limits(one) for one in (out.tensor, *held)]
    low, high = min(a for a, _ in limits), max(b for _, b in limits)
    first, last = out.tensor.limits
    scale = (high - low) / (last - first)
    if not 1 < scale / float(out.tensor.scale.reshape(())) <= _CONCAT_REACH:
        return
    zero = min(max(round(first - low / scale), first), last)
    out.set(lowering, np.float32(scale), np.array(zero, out.tensor.zero_point.dtype))


def _limits(one: QTensor) -> tuple[float, float]:
    scale, zero = float(one.scale.reshape(())), int(one.zero_point.reshape(()))
    low, high = ((q - zero) * scale for q in one.limits)
    return low, high


def _quantize_before(
    lowering: Lowering, pair: _Pair, out: QTensor, integer: Collection[str]
) -> bool:
    """Let what repeats a tensor for a Concat read a Q of the Concat's scale, not the shared one."""
    grow = None if pair.quantize.inputs[0] is None else pair.quantize.inputs[0].producer()
    if grow is None or grow.op_type != "Resize" or grow.domain != "":
        return False
    if len(pair.readers()) > 1 or pair.seen_outside():
        return False
    shared = _Pair.of(grow.inputs[0])
    source = None if shared is None else shared.quantize.inputs[0]
    writer = None if source is None else source.producer()
    if shared is None or source is None or writer is None or len(shared.readers()) < 2:
        return False
    if (writer.domain == "" and writer.op_type in integer) or not _covers(out, shared.tensor):
        return False
    name = f"{shared.tensor.q.name}/{grow.name}"
    scale = lowering.constant(f"{name}_scale", out.scale.reshape(()))
    zero = lowering.constant(f"{name}_zero_point", out.zero_point.reshape(()))
    copies = []
    read: oir.Value = source
    for old, kind in ((shared.tensor.q, "QuantizeLinear"), (source, "DequantizeLinear")):
        new = oir.Node("", kind, [read, scale, zero], name=lowering.unique(f"{name}/{kind}"))
        read = new.outputs[0]
        read.name = lowering.unique(f"{name}/{kind}", values=True)
        read.type, read.shape = old.type, source.shape
        copies.append(new)
    lowering.model.graph.insert_before(grow, copies)
    grow.replace_input_with(0, read)
    pair.set(lowering, out.scale, out.zero_point)
    return True


def _covers(out: QTensor, part: QTensor) -> bool:
    """Whether the range of ``part`` lies in that of ``out``, but for one step of rounding."""
    if out.dtype != part.dtype:
        return False
    (low, high), (bottom, top) = _limits(out), _limits(part)
    step = float(out.scale.reshape(()))
    return low <= bottom + step and high >= top - step


def join_biases(lowering: Lowering) -> None:
    """Take away the pair between a MatMul and the Add of its bias: one kernel does both, in float.

    MatMulIntegerToFloat and Quantize take the time of QLinearMatMul alone; a QLinearAdd and a
    rounding are saved.
    """
    for node in list(lowering.model.graph):
        if node.op_type != "Add" or node.domain != "":
            continue
        for index, value in enumerate(node.inputs):
            pair = _Pair.of(value)
            product = None if pair is None else pair.quantize.inputs[0]
            matmul = None if product is None else product.producer()
            if pair is None or product is None or matmul is None or pair.seen_outside():
                continue
            other = node.inputs[1 - index]
            stored = dequantized(other)
            bias = constant(other if stored is None else stored.q)
            alone = len(pair.readers()) == 1 and single_consumer(product) is pair.quantize
            if matmul.op_type == "MatMul" and alone and bias is not None and bias.ndim == 1:
                node.replace_input_with(index, product)
                gone = [use.node for use in pair.tensor.q.uses()]
                lowering.model.graph.remove([*gone, pair.quantize], safe=True)
                break


def align_hard_activations(lowering: Lowering) -> list[Note]:
    """Let ranges reach down to the foot of each clipped line, and the foot lie on a whole step.

    Notes say where that cost resolution.
    """
    notes: list[Note] = []
    done: set[oir.Node] = set()
    for node in lowering.model.graph:
        line = hard_line(node)
        pair = None if line is None else _Pair.of(node.inputs[0])
        behind = tail(node.outputs[0])
        if line is None or pair is None or behind is None or behind.out.dtype != "uint8":
            continue
        if pair.tensor.dtype == "uint8" and pair.quantize not in done and not pair.tied():
            done.add(pair.quantize)
            before = float(pair.tensor.scale.reshape(()))
            found = _aligned(pair.tensor, line[1] / line[0])
            if found is not None:
                pair.set(lowering, np.float32(found[0]), np.uint8(found[1]))
                pair = _Pair.of_quantizer(pair.quantize)
                if found[0] > 1.05 * before:
                    text = f"its input's scale grew {found[0] / before:.2f} x to reach -{line[1] / line[0]:g}"
                    notes.append(Note(origin(node), text, changed=True))
        result = _Pair.of_quantizer(behind.quantize)
        if node.op_type == "HardSigmoid" and pair is not None and result is not None:
            down, up = line_steps(pair.tensor, line)
            zero = int(pair.tensor.zero_point.reshape(()))
            if 0 < down <= zero and up > 0 and not result.tied():
                result.set(lowering, np.float32(1.0 / (down + up)), np.uint8(zero - down))
    return notes


def _aligned(before: QTensor, foot: float) -> tuple[float, int] | None:
    """(scale, zero point) with ``foot`` a whole number of steps below zero, inside the range.

    None where that would cost too much: more than ``_COARSER`` to reach the foot at all, more than
    ``_FINER`` only to meet it.
    """
    scale, zero = float(before.scale.reshape(())), int(before.zero_point.reshape(()))
    low, high = -max(scale * zero, foot), scale * (255 - zero)
    steps = min(int(255 * foot / (high - low)), 255)
    while steps > 0:
        grown = foot / steps
        if math.ceil(-low / grown - 1e-6) + math.ceil(high / grown - 1e-6) <= 255:
            break
        steps -= 1
    inside = round(foot / scale) <= zero
    if steps == 0 or foot / steps > (_FINER if inside else _COARSER) * scale:
        return None
    grown = foot / steps
    return grown, math.ceil(-low / grown - 1e-6)


class _Pair:
    """A QuantizeLinear and the DequantizeLinears that read it."""

    def __init__(self, quantize: oir.Node, tensor: QTensor) -> None:
        self.quantize = quantize
        self.tensor = tensor

    @classmethod
    def of(cls, value: oir.Value | None) -> _Pair | None:
        """The pair in front of a float tensor; None without one or with parameters per channel."""
        found = dequantized(value)
        node = None if found is None else found.q.producer()
        return None if node is None else cls.of_quantizer(node)

    @classmethod
    def of_quantizer(cls, node: oir.Node) -> _Pair | None:
        """The pair of a QuantizeLinear all of whose readers dequantize with its parameters.

        None for one that came with the user's model: its saturation may stand for a Relu.
        """
        tensor = quantizer(node)
        if tensor is None or tensor.axis is not None or tensor.q.is_graph_output():
            return None
        if origin(node):
            return None
        for use in tensor.q.uses():
            back = dequantized(use.node.outputs[0])
            if back is None or not back.same_parameters(tensor):
                return None
        return cls(node, tensor)

    def readers(self) -> list[oir.Node]:
        """Who reads the dequantized tensor."""
        return [u.node for dq in self.tensor.q.uses() for u in dq.node.outputs[0].uses()]

    def tied(self) -> bool:
        """Whether other tensors must keep the same parameters, or a caller sees the result."""
        if self.seen_outside():
            return True
        source = self.quantize.inputs[0]
        producer = None if source is None else source.producer()
        if producer is not None and producer.op_type in MOVES and dequantized(producer.inputs[0]):
            return True
        return any(reader.op_type in MOVES for reader in self.readers())

    def seen_outside(self) -> bool:
        """Whether a caller sees the dequantized tensor."""
        return any(use.node.outputs[0].is_graph_output() for use in self.tensor.q.uses())

    def group(self) -> list[_Pair]:
        """Itself and the pairs that share its parameters because values only move between them."""
        found: dict[oir.Node, _Pair] = {}
        waiting = [self]
        while waiting:
            one = waiting.pop()
            if one.quantize in found:
                continue
            found[one.quantize] = one
            source = one.quantize.inputs[0]
            producer = None if source is None else source.producer()
            if producer is not None and producer.op_type in MOVES:
                before = _Pair.of(producer.inputs[0])
                if before is not None:
                    waiting.append(before)
                waiting += _Pair.behind(producer)
            for reader in one.readers():
                if reader.op_type in MOVES:
                    waiting += _Pair.behind(reader)
        return list(found.values())

    @classmethod
    def behind(cls, node: oir.Node) -> list[_Pair]:
        """The pairs behind a moving operator's outputs."""
        tails = [tail(output) for output in node.outputs]
        pairs = [cls.of_quantizer(one.quantize) for one in tails if one is not None]
        return [one for one in pairs if one is not None]

    def set(
        self, lowering: Lowering, scale: np.ndarray | np.float32, zero: np.ndarray | np.uint8
    ) -> None:
        """Give the pair other parameters; biases that hang on the scale are rewritten by their rule."""
        base = self.tensor.q.name or "q"
        made = (
            lowering.constant(f"{base}_scale", np.asarray(scale, np.float32).reshape(())),
            lowering.constant(f"{base}_zero_point", np.asarray(zero).reshape(())),
        )
        for node in [self.quantize, *(use.node for use in self.tensor.q.uses())]:
            node.replace_input_with(1, made[0])
            if len(node.inputs) > 2:
                node.replace_input_with(2, made[1])
            elif constant(made[1]) is not None and np.any(np.asarray(zero)):
                node.resize_inputs(3)
                node.replace_input_with(2, made[1])
