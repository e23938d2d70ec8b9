"""A portable Q/DQ model -> explicit integer operators of ONNX Runtime's CPU provider.

No rule changes a number by more than the rounding of a requantization (one step of the output's
scale). What a rule cannot express is computed in float, with a note: Q/DQ pairs that no integer
operator reads are removed, and only conversions between float and integer regions remain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as oir

from qcompile.backends.ort_dynamic import lower_dynamic
from qcompile.backends.ort_edges import dequantized, quantizer
from qcompile.backends.ort_fuse_float import fuse_float
from qcompile.backends.ort_guard import fold_constant_dequantize, guard_float
from qcompile.backends.ort_kernels import MICROSOFT, KernelSet, installed_kernels
from qcompile.backends.ort_rules_activation import (
    fuse_silu,
    lower_hard_sigmoid,
    lower_hard_swish,
)
from qcompile.backends.ort_rules_compute import lower_conv, lower_gemm, lower_matmul
from qcompile.backends.ort_rules_concat import lower_concat
from qcompile.backends.ort_rules_elementwise import (
    lower_binary,
    lower_clip,
    lower_global_average_pool,
    lower_reduce_mean,
    lower_softmax,
    lower_unary,
    lower_where,
)
from qcompile.backends.ort_rules_layout import lower_average_pool
from qcompile.backends.ort_rules_passthrough import MOVES, hoist, lower_move
from qcompile.backends.ort_scales import adopt_concat_scales, align_hard_activations, join_biases
from qcompile.backends.ort_site import Edit, Lowering, Refused, Site, apply_edit
from qcompile.backends.ort_tidy import slice_lone_outputs
from qcompile.ir.graph import constant, drop_unused, origin, replace_value
from qcompile.ir.notes import Note
from qcompile.ir.plan import FLOAT, PrecisionPlan

__all__ = ["RULES", "LowerResult", "lower_ort"]

Rule = Callable[[Site], Edit]

RULES: Mapping[str, Rule] = {
    "Add": lower_binary,
    "AveragePool": lower_average_pool,
    "Clip": lower_clip,
    "Concat": lower_concat,
    "Conv": lower_conv,
    "Gemm": lower_gemm,
    "GlobalAveragePool": lower_global_average_pool,
    "HardSigmoid": lower_hard_sigmoid,
    "HardSwish": lower_hard_swish,
    "LeakyRelu": lower_unary,
    "MatMul": lower_matmul,
    "Mul": lower_binary,
    "ReduceMean": lower_reduce_mean,
    "Relu": lower_clip,
    "Sigmoid": lower_unary,
    "Softmax": lower_softmax,
    "Where": lower_where,
    **dict.fromkeys(MOVES, lower_move),
}
"""ONNX operator -> the rule that writes its integer form."""


@dataclass(frozen=True)
class LowerResult:
    """The lowered model, and notes: what stayed float and why."""

    model: oir.Model
    notes: tuple[Note, ...]


def lower_ort(
    model: oir.Model,
    plan: PrecisionPlan | None = None,
    kernels: KernelSet | None = None,
    weight_bits: int | None = None,
) -> LowerResult:
    """Write a Q/DQ model in explicit integer operators; ``model`` stays as it is.

    Args:
        model: portable Q/DQ model.
        plan: needed for layers labelled "int8-dynamic", whose activations carry no Q/DQ.
        kernels: what the runtime has; by default the installed one is asked.
        weight_bits: significant bits of weights that are rounded here, those of "int8-dynamic"
            layers (7 on x86 without VNNI); None for all 8.
    """
    model = model.clone()
    lowering = Lowering(model, kernels or installed_kernels())
    notes: list[Note] = []
    if plan is not None:
        notes += lower_dynamic(lowering, plan, weight_bits)
    planned = None
    if plan is not None:
        planned = {layer.origin for layer in plan.layers if layer.precision != FLOAT}
    _cancel(lowering)
    fuse_silu(lowering)
    join_biases(lowering)
    adopt_concat_scales(lowering, RULES)
    notes += align_hard_activations(lowering)
    _hoist(lowering)
    for node in list(model.graph):
        rule = RULES.get(node.op_type) if node.domain == "" else None
        if rule is None or node.graph is None or not _quantized(node):
            continue
        site = Site(lowering, node)
        try:
            edit = rule(site)
        except Refused as reason:
            where = origin(node) or node.name or node.outputs[0].name or ""
            if planned is not None and where not in planned:
                continue
            notes.append(Note(where, f"{node.op_type} stays float: {reason}"))
            continue
        apply_edit(lowering, node, edit)
    _cancel(lowering)
    _drop_idle_pairs(lowering)
    drop_unused(model)
    slice_lone_outputs(lowering)
    fold_constant_dequantize(lowering)
    notes += guard_float(lowering)
    notes += fuse_float(model)
    drop_unused(model)
    if any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.graph.opset_imports.setdefault(MICROSOFT, 1)
    return LowerResult(model, tuple(notes))


def _quantized(node: oir.Node) -> bool:
    """Whether a node reads an integer activation, so that a rule has something to say."""
    for value in node.inputs:
        found = dequantized(value)
        if found is not None and constant(found.q) is None:
            return True
    return False


def _cancel(lowering: Lowering) -> None:
    """DQ -> Q with equal parameters is nothing: readers take the integers before the DQ."""
    for node in list(lowering.model.graph):
        out = quantizer(node)
        before = None if out is None else dequantized(node.inputs[0])
        if out is not None and before is not None and before.same_parameters(out):
            if out.q.is_graph_output():
                continue
            replace_value(out.q, before.q)
            lowering.model.graph.remove(node, safe=True)


def _hoist(lowering: Lowering) -> None:
    """Move each Q in front of moving operators, last operators first so that chains follow."""
    for node in reversed(list(lowering.model.graph)):
        if node.op_type in MOVES and node.domain == "" and node.graph is not None:
            try:
                edit = hoist(Site(lowering, node))
            except Refused:
                continue
            apply_edit(lowering, node, edit)


def _drop_idle_pairs(lowering: Lowering) -> None:
    """Remove Q -> DQ pairs that no integer operator reads: rounding that would save no time.

    Those that came with the user's model (they have an origin) stay: their saturation may stand for
    a Relu that another tool took away.
    """
    graph = lowering.model.graph
    for node in list(graph):
        source = node.inputs[0] if quantizer(node) is not None else None
        if source is None or node.outputs[0].is_graph_output() or origin(node):
            continue
        readers = [use.node for use in node.outputs[0].uses()]
        if not readers or any(r.op_type != "DequantizeLinear" for r in readers):
            continue
        ends = sum(reader.outputs[0].is_graph_output() for reader in readers)
        if ends and (ends > 1 or source.producer() is None or source.is_graph_output()):
            continue
        for reader in sorted(readers, key=lambda r: not r.outputs[0].is_graph_output()):
            replace_value(reader.outputs[0], source)
