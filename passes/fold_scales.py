"""Scale the channels of activations, and undo it in the layers that read them.

Before:  x = f(W1 y + b1)              z = W2 x + b2
After:   x / s = f(W1 / s y + b1 / s)  z = (W2 s) (x / s) + b2

with one s for each channel and f from a region (see ``scale_regions``), so the result is the same. A
tensor has one scale in integers: channels of even size lose less by rounding. Between two Convs this
is the cross-layer equalization of Nagel et al., "Data-Free Quantization Through Weight Equalization
and Bias Correction" (2019); behind a normalization, with its gain for W1, the smoothing of Xiao et
al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (2022).

Factors are powers of two: they round nothing, so that the float function stays what it was to the bit
(overflow apart), and their exponents are all that has to be recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as oir

from qcompile.ir.errors import PassError
from qcompile.ir.graph import constant
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.passes.linear import Array, Linear, as_linear, set_constant
from qcompile.passes.scale_branches import find_all, insert_division
from qcompile.passes.scale_regions import Region

__all__ = ["FoldScales", "scale_region", "why_unfit"]


@dataclass(frozen=True)
class FoldScales:
    """Applies factors that were chosen elsewhere.

    Attributes:
        exponents: name of a region -> for each channel k of its factor s = 2^k.
    """

    exponents: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    name: str = "fold-scales"

    def run(self, state: CompileState) -> PassResult:
        """Scale each named region.

        Raises:
            PassError: a name is no region of the graph, or has another number of channels.
        """
        graph = state.model.graph
        known = {region.name: region for region in find_all(graph)[0]}
        for name, exponents in self.exponents.items():
            reason = why_unfit(known.get(name), exponents)
            if reason is not None:
                raise PassError(
                    f"{len(exponents)} factors were chosen for tensor '{name}', but {reason}; "
                    "compile again without the lock"
                )
        notes = []
        for name, exponents in self.exponents.items():
            scale_region(graph, known[name], np.array(exponents))
            ends = f"2^{min(exponents)} to 2^{max(exponents)}"
            where = ", ".join(f"'{node.name}'" for node in known[name].readers)
            notes.append(Note(name, f"channels divided by {ends}, undone in {where}", changed=True))
        return PassResult(len(notes), tuple(notes))


def why_unfit(region: Region | None, exponents: Sequence[int]) -> str | None:
    """Why factors 2^exponents would change what a region computes; None where they do not."""
    if region is None:
        return "its channels cannot be scaled in this graph"
    if region.channels != len(exponents):
        return f"it has {region.channels} channels in this graph"
    chosen = np.array(exponents)
    held = region.fixed.astype(bool) & (chosen != 0)
    low = (region.least > 0) & (np.exp2(chosen.astype(np.float64)) < region.least)
    if held.any() or low.any():
        where = int(np.argmax(held | low))
        return f"a Clip may cut off its channel {where} in this graph"
    return None


def scale_region(graph: oir.Graph, region: Region, exponents: Array) -> None:
    """Divide the channels of a region's tensors by 2^exponents."""
    factor = np.exp2(exponents.astype(np.float64))
    zero = np.array(0.0)
    for node in region.layers:
        _linear(node).scale_outputs(graph, 1.0 / factor, zero)
    for node in region.readers:
        _linear(node).scale_inputs(graph, factor, zero)
    if region.branch:
        insert_division(graph, region, factor)
    for node, index, axis in region.gains:
        _scale_constant(graph, node, index, axis, 1.0 / factor)
    for node, index, axis in region.reader_gains:
        _scale_constant(graph, node, index, axis, factor)


def _linear(node: oir.Node) -> Linear:
    found = as_linear(node, with_bias_add=False)
    if isinstance(found, str):
        raise PassError(f"'{node.name}' was a layer and is none any more: {found}")
    return found


def _scale_constant(graph: oir.Graph, node: oir.Node, index: int, axis: int, factor: Array) -> None:
    array = constant(node.inputs[index])
    if array is None:
        raise PassError(f"input {index} of '{node.name}' is no constant any more")
    shape = (-1, *(1,) * (-axis - 1))
    scaled = array.astype(np.float64) * factor.reshape(shape)
    set_constant(graph, node, index, scaled.astype(array.dtype))
