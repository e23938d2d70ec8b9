"""Which nodes can be integer under a target, and which of their tensors carry Q/DQ.

A site is a node that the target's table has a word on. A site without a reason can be integer; the
reason of any other says what keeps it float. Only the main graph is looked at: the nodes inside
If, Loop and Scan stay float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant, default_opset, is_graph_output, origin
from qcompile.ir.macs import MAC_OPERATORS
from qcompile.ir.manager import CompileState
from qcompile.ir.spec import PER_TENSOR, QuantSpec, per_axis
from qcompile.ir.target import OpSupport, Role, Target
from qcompile.passes.channel_limits import channel_limit, head_limits
from qcompile.passes.operator_limits import operator_limit
from qcompile.passes.protected import protected
from qcompile.passes.residual import carried_input
from qcompile.passes.scale_branches import is_division

__all__ = ["Site", "classify", "quantizable", "static_sites"]


@dataclass(frozen=True)
class Site:
    """A node that the target's table has a word on.

    Attributes:
        node: the node itself.
        origin: what names it in plan and report.
        op_type: its operator.
        role: of the row; for operators that the table leaves float "compute" where they have MACs.
        row: of the table, None for operators that the table leaves float.
        activations: input index -> activation that needs a Q/DQ.
        constants: input index -> constant operand that takes the activation's spec (Mul by a constant).
        outputs: outputs that are integers.
        weight: the constant weight, None where both operands are activations.
        weight_spec: what is asked of the weight.
        bias: the constant bias that becomes int32.
        reason: why it must stay float; "" when it can be integer.
    """

    node: oir.Node
    origin: str
    op_type: str
    role: Role
    row: OpSupport | None = None
    activations: Mapping[int, oir.Value] = field(default_factory=dict)
    constants: Mapping[int, oir.Value] = field(default_factory=dict)
    outputs: tuple[oir.Value, ...] = ()
    weight: oir.Value | None = None
    weight_spec: QuantSpec | None = None
    bias: oir.Value | None = None
    reason: str = ""

    @property
    def activation_names(self) -> tuple[str, ...]:
        """Names of the activations that need a Q/DQ, without repeats."""
        return tuple(dict.fromkeys(v.name or "" for v in self.activations.values()))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs that are integers."""
        return tuple(v.name or "" for v in self.outputs)

    @property
    def dynamic(self) -> bool:
        """Whether the target has a form that quantizes its activation at run time."""
        return self.row is not None and self.row.dynamic


def quantizable(model: oir.Model, target: Target) -> list[Site]:
    """Every site of the main graph in graph order, with the reason for those that must stay float."""
    sites: list[Site] = []
    seen: dict[str, int] = {}
    spelled = protected(model.graph)
    padded, unfused = head_limits(model.graph, target.attention_channels)
    for node in model.graph:
        if is_division(node):
            continue
        name = origin(node) or node.name or ""
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name = f"{name}#{seen[name]}"
        site = _site(node, name, target, default_opset(model), padded.get(node))
        if site is not None and node in unfused and not site.reason and not target.every_head:
            site = _refused(site, unfused[node])
        if site is not None and node in spelled and not site.reason:
            site = _refused(
                site, "part of a written-out GELU or normalization that runtimes fuse whole"
            )
        if site is not None:
            sites.append(site)
    return sites


def classify(state: CompileState) -> list[Site]:
    """The sites of the state's model under its target."""
    return quantizable(state.model, state.target)


def static_sites(sites: Iterable[Site]) -> list[Site]:
    """Those that can be integer."""
    return [s for s in sites if not s.reason]


def _site(node: oir.Node, name: str, target: Target, opset: int, padded: int | None) -> Site | None:
    row = target.support(node.op_type, node.domain)
    if row is None:
        if node.domain == "" and node.op_type in target.left_float:
            why = target.left_float[node.op_type]
            role: Role = "compute" if node.op_type in MAC_OPERATORS else "elementwise"
            return Site(node, name, node.op_type, role, reason=why)
        return None
    site = _operands(node, name, row, target, opset)
    if _carries_no_reals(site):
        return None
    reason = (
        _version_limit(row, target, opset)
        or _attribute_limit(node, row)
        or _output_limit(node, row)
        or _weight_limit(site, row)
        or operator_limit(node)
        or channel_limit(node, row, padded)
        or _residual_limit(site, row)
        or _tensor_limit(site)
    )
    return site if not reason else _refused(site, reason)


def _carries_no_reals(site: Site) -> bool:
    """Whether a node moves or computes shapes, indices or masks, which no one would quantize."""
    if site.role == "compute":
        return False
    types = [v.dtype for v in (*site.activations.values(), *site.constants.values())]
    return any(t is not None and not t.is_floating_point() for t in types)


def _refused(site: Site, reason: str) -> Site:
    return Site(site.node, site.origin, site.op_type, site.role, site.row, reason=reason)


def _operands(node: oir.Node, name: str, row: OpSupport, target: Target, opset: int) -> Site:
    """Sort the inputs of a node into activations, constants, weight and bias."""
    indices = list(range(len(node.inputs)) if row.activations is None else row.activations)
    if row.beside:
        carried = carried_input(node, row.beside)
        indices = [index for index in indices if index != carried]
    activations: dict[int, oir.Value] = {}
    constants: dict[int, oir.Value] = {}
    weight: oir.Value | None = None
    for index in sorted({*indices, *(() if row.weight is None else (row.weight,))}):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        if index == row.weight and constant(value) is not None:
            weight = value
        elif constant(value) is not None:
            constants[index] = value
        else:
            activations[index] = value
    bias = None
    if row.bias is not None and row.bias < len(node.inputs):
        bias = node.inputs[row.bias]
    outputs = node.outputs if row.outputs is None else [node.outputs[i] for i in row.outputs]
    return Site(
        node,
        name,
        node.op_type,
        row.role,
        row,
        activations,
        constants,
        tuple(outputs),
        weight,
        None if weight is None else _weight_spec(node, weight, row, target, opset),
        bias,
    )


def _weight_spec(
    node: oir.Node, weight: oir.Value, row: OpSupport, target: Target, opset: int
) -> QuantSpec:
    spec = target.weight
    array = constant(weight)
    rank = 0 if array is None else array.ndim
    axis = row.weight_axis
    if axis == "auto":
        axis = 0 if attribute(node, "transB", 0) else 1
    per_channel = axis is not None and opset >= target.per_channel_opset
    if row.per_channel_ranks is not None and rank not in row.per_channel_ranks:
        per_channel = False
    granularity = PER_TENSOR
    if per_channel and isinstance(axis, int):
        granularity = per_axis(axis % rank if rank else 0)
    return QuantSpec(spec.dtype, spec.symmetric, granularity, spec.narrow, spec.bits)


def _version_limit(row: OpSupport, target: Target, opset: int) -> str:
    if not row.static:
        return f"{row.op_type} has no form with fixed activation scales on {target.name}"
    needed = max(row.min_opset, target.qdq_opset)
    if opset < needed:
        return f"opset {opset} has no integer form; it needs opset {needed}"
    if row.max_opset is not None and opset > row.max_opset:
        return f"opset {opset} is newer than the integer form knows (up to {row.max_opset})"
    return ""


def _attribute_limit(node: oir.Node, row: OpSupport) -> str:
    for name, values in row.allowed.items():
        found = cast(Any, attribute(node, name))
        if isinstance(found, bytes):
            found = found.decode()
        if found not in values:
            legal = ", ".join(str(v) for v in values if v is not None)
            return f"{name}={found} has no integer kernel; needed: {legal or 'no such attribute'}"
    return ""


def _output_limit(node: oir.Node, row: OpSupport) -> str:
    if row.outputs is None:
        return ""
    for index, value in enumerate(node.outputs):
        if index not in row.outputs and (value.uses() or is_graph_output(value)):
            return (
                f"output {index} ('{value.name}') is used, and the integer kernel does not write it"
            )
    return ""


def _overridable(what: str, value: oir.Value) -> str:
    name = f"{what} '{value.name}'".lstrip()
    return f"{name} is a default that callers may override; --fix-weights fixes it"


def _not_constant(what: str, value: oir.Value | None) -> str:
    if value is not None and value.is_initializer():
        return _overridable(what, value)
    return f"{what} '{value.name if value else ''}' is computed at run time, not constant"


def _weight_limit(site: Site, row: OpSupport) -> str:
    if row.weight is None:
        return ""
    if site.weight is None:
        value = site.activations.get(row.weight)
        if value is not None and _dequantized(value):
            return "already quantized in this model"
        if row.weight_constant:
            return _not_constant("weight", value)
        if value is not None and value.is_initializer():
            return _overridable("weight", value)
        if site.bias is not None:
            return "a bias beside two activations has no integer kernel"
        return ""
    array = constant(site.weight)
    if array is None or array.dtype != np.float32:
        found = "unknown" if array is None else array.dtype.name
        return f"weight '{site.weight.name}' is {found}; needed: float32"
    if row.weight_ranks is not None and array.ndim not in row.weight_ranks:
        return f"weight '{site.weight.name}' of rank {array.ndim} has no integer kernel"
    if array.size == 0 or not np.isfinite(array).all():
        return f"weight '{site.weight.name}' is empty or holds NaN or infinity"
    return _bias_limit(site)


def _bias_limit(site: Site) -> str:
    if site.bias is None:
        return ""
    array = constant(site.bias)
    if array is None:
        if _dequantized(site.bias):
            return "already quantized in this model"
        return _not_constant("bias", site.bias)
    if array.dtype != np.float32 or not np.isfinite(array).all():
        return f"bias '{site.bias.name}' is {array.dtype.name}; needed: finite float32"
    return ""


def _residual_limit(site: Site, row: OpSupport) -> str:
    if not row.beside:
        return ""
    if carried_input(site.node, row.beside) is None:
        return f"no {' or '.join(row.beside)} whose kernel it could join"
    return "its other input is constant" if site.constants else ""


def _tensor_limit(site: Site) -> str:
    if not site.activations:
        return "reads only constants"
    for value in site.activations.values():
        if _dequantized(value):
            return "already quantized in this model"
        if value.is_initializer():
            return _overridable("", value)
    # Where shape inference gave up, a float32 weight still tells the type (both must agree).
    known = np.float32 if site.weight is not None else None
    for value in (*site.activations.values(), *site.outputs):
        if value.dtype is None and known is None:
            return f"the type of '{value.name}' is unknown"
        if value.dtype is not None and value.dtype != oir.DataType.FLOAT:
            return f"'{value.name}' is {value.dtype.name.lower()}; needed: float32"
    for value in site.constants.values():
        array = constant(value)
        if array is None or array.dtype != np.float32 or not np.isfinite(array).all():
            return f"constant '{value.name}' is not finite float32"
        if array.size == 0:
            return f"constant '{value.name}' is empty"
    for value in site.outputs:
        for use in value.uses():
            if use.node.op_type == "QuantizeLinear":
                return "already quantized in this model"
    return ""


def _dequantized(value: oir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"
