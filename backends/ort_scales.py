"""Changes of scales that lowered operators profit from, made on Q/DQ pairs before the rules run.

* A tensor that only a Concat reads takes the Concat's scale: its producer then rounds once, to the
  scale in which it ends, and the Concat copies bytes (0.06 against 0.41 ns an element).
* The input of a HardSwish or HardSigmoid gets a scale in which the line's foot lies on an integer;
  then clip(alpha x + beta, 0, 1) is a clip of the integers themselves, read with another scale.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort_edges import Lowering, QTensor, dequantized, quantizer, tail
from qcompile.backends.ort_rules_passthrough import MOVES
from qcompile.ir.graph import attribute, constant, origin
from qcompile.ir.notes import Note

__all__ = ["adopt_concat_scales", "align_hard_activations", "hard_line"]

_COARSER = 1.5
"""Largest growth of a scale that is worth an integer HardSwish instead of a float one."""


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


def adopt_concat_scales(lowering: Lowering) -> None:
    """Give tensors that one Concat alone reads the scale of its output."""
    for node in lowering.model.graph:
        if node.op_type != "Concat" or node.domain != "":
            continue
        behind = tail(node.outputs[0])
        if behind is None:
            continue
        for value in node.inputs:
            pair = _Pair.of(value)
            if pair is not None and len(pair.readers()) == 1 and not pair.tied():
                pair.set(lowering, behind.out.scale, behind.out.zero_point)


def align_hard_activations(lowering: Lowering) -> list[Note]:
    """Move scales so that the foot of each clipped line is an integer; says where that cost range."""
    notes: list[Note] = []
    done: set[oir.Value] = set()
    for node in lowering.model.graph:
        line = hard_line(node)
        pair = None if line is None else _Pair.of(node.inputs[0])
        behind = tail(node.outputs[0])
        if line is None or pair is None or behind is None or behind.out.dtype != "uint8":
            continue
        before = pair.tensor
        if before.q in done or before.dtype != "uint8" or pair.tied():
            continue
        found = _aligned(before, line[1] / line[0])
        if found is None:
            continue
        scale, zero, steps = found
        done.add(before.q)
        pair.set(lowering, np.float32(scale), np.uint8(zero))
        growth = scale / float(before.scale.reshape(()))
        if growth > 1.05:
            notes.append(
                Note(
                    origin(node),
                    f"its input's scale grew {growth:.2f} x to reach -{line[1] / line[0]:g}",
                )
            )
        result = _Pair.of_quantizer(behind.quantize)
        if node.op_type == "HardSigmoid" and result is not None and not result.tied():
            result.set(lowering, np.float32(scale * line[0]), np.uint8(zero - steps))
    return notes


def _aligned(before: QTensor, foot: float) -> tuple[float, int, int] | None:
    """(scale, zero point, steps from zero down to ``-foot``) with ``foot`` a whole number of steps."""
    scale, zero = float(before.scale.reshape(())), int(before.zero_point.reshape(()))
    low, high = -max(scale * zero, foot), scale * (255 - zero)
    steps = min(int(255 * foot / (high - low)), 255)
    while steps > 0:
        grown = foot / steps
        if math.ceil(-low / grown - 1e-6) + math.ceil(high / grown - 1e-6) <= 255:
            break
        steps -= 1
    if steps == 0 or foot / steps > _COARSER * scale:
        return None
    grown = foot / steps
    return grown, math.ceil(-low / grown - 1e-6), steps


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
        """The pair of a QuantizeLinear all of whose readers dequantize with its parameters."""
        tensor = quantizer(node)
        if tensor is None or tensor.axis is not None or tensor.q.is_graph_output():
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
        if any(use.node.outputs[0].is_graph_output() for use in self.tensor.q.uses()):
            return True
        source = self.quantize.inputs[0]
        producer = None if source is None else source.producer()
        if producer is not None and producer.op_type in MOVES and dequantized(producer.inputs[0]):
            return True
        return any(reader.op_type in MOVES for reader in self.readers())

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
