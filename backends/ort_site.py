"""A node on its way to integer operators: what its rule reads, and the edit that the rule hands back.

Rules ask a ``Site`` for quantized inputs and outputs; what does not fit raises ``Refused`` with a
reason, before anything in the graph has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort_edges import EIGHT_BIT, QTensor, Tail, dequantized, tail
from qcompile.backends.ort_kernels import KernelSet
from qcompile.ir.graph import (
    attribute,
    constant,
    default_opset,
    is_graph_output,
    origin,
    register_constant,
    set_origin,
    used_names,
)

__all__ = ["Edit", "Lowering", "Refused", "Site", "apply_edit", "eight_bit_constant"]


_SHARED = 64
"""Elements up to which equal constants are stored once."""


class Refused(Exception):  # noqa: N818 - a reason, not a defect
    """Why a node stays as it is; the text becomes a note."""


@dataclass
class Edit:
    """New nodes for a site: which values they take over and which old nodes go."""

    new: list[oir.Node] = field(default_factory=list)
    takes_over: list[tuple[oir.Value, oir.Value]] = field(default_factory=list)
    removes: list[oir.Node] = field(default_factory=list)


@dataclass
class Lowering:
    """One model on its way to integer operators.

    Attributes:
        model: edited in place.
        kernels: what the runtime has.
        shared: (tensor, input channels added, output channels added) -> the widened tensor, for
            the next reader.
    """

    model: oir.Model
    kernels: KernelSet
    shared: dict[tuple[oir.Value, int, int], oir.Value] = field(default_factory=dict)
    _made: dict[tuple[str, tuple[int, ...], bytes], oir.Value] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _values: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Note the names that are taken."""
        self._names = {n.name for n in self.model.graph.all_nodes() if n.name}
        self._values = used_names(self.model.graph)

    def constant(self, base: str, array: npt.NDArray[np.generic]) -> oir.Value:
        """An initializer holding ``array``; small equal ones are shared."""
        if array.size > _SHARED:
            return self._register(base, array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._made:
            self._made[key] = self._register(base, array)
        return self._made[key]

    def _register(self, base: str, array: npt.NDArray[np.generic]) -> oir.Value:
        name = self.unique(base, values=True)
        return register_constant(self.model.graph, name, array)

    def unique(self, base: str, *, values: bool = False) -> str:
        """``base``, or ``base/2``, ``base/3`` when a node (or a value made here) has it already."""
        taken = self._values if values else self._names
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}/{count}"
        taken.add(name)
        return name

    def free(self, node: oir.Node) -> None:
        """Give the name of a removed node back."""
        if node.name:
            self._names.discard(node.name)

    def opset(self, domain: str) -> int:
        """Version of an operator set that the model uses."""
        return default_opset(self.model) if domain == "" else 1


class Site:
    """One node with the integer tensors around it; rules read it and return an ``Edit``."""

    def __init__(self, lowering: Lowering, node: oir.Node) -> None:
        self.lowering = lowering
        self.node = node
        self.edit = Edit()

    # -- reading -------------------------------------------------------------------------------

    def float_input(self, index: int) -> oir.Value | None:
        """Input ``index``, None when it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def input(self, index: int) -> QTensor | None:
        """The integers behind input ``index``, when it is dequantized from 8-bit."""
        found = dequantized(self.float_input(index))
        return found if found is not None and found.dtype in EIGHT_BIT else None

    def need_input(self, index: int, *, per_tensor: bool = True) -> QTensor:
        """As ``input``, with a reason where there is none."""
        value = self.float_input(index)
        found = self.input(index)
        if found is None:
            raise Refused(f"input {index} ('{value.name if value else ''}') is not quantized")
        if per_tensor and found.axis is not None:
            raise Refused(f"input {index} has a scale per channel; the kernel takes one per tensor")
        return found

    def tail(self, index: int = 0) -> Tail | None:
        """The Q behind output ``index``, if it is the only reader (Relu and Clip in between count)."""
        return tail(self.node.outputs[index])

    def need_tail(self, dtype: str | None = None) -> Tail:
        """As ``tail``, with a reason where there is none."""
        found = self.tail()
        name = self.node.outputs[0].name
        if found is None:
            raise Refused(f"output '{name}' is not quantized, or is also read as float")
        if dtype is not None and found.out.dtype != dtype:
            raise Refused(f"output '{name}' is {found.out.dtype}; the kernel writes {dtype}")
        return found

    def attribute(self, name: str, default: object = None) -> object:
        """An attribute's Python value."""
        return attribute(self.node, name, default)

    def attributes(self, *names: str) -> dict[str, oir.Attr]:
        """Those of the node's attributes that are present, to hand on."""
        return {n: self.node.attributes[n] for n in names if n in self.node.attributes}

    # -- writing -------------------------------------------------------------------------------

    def scale(self, tensor: QTensor) -> oir.Value:
        """The scale as an input of the new operator: a scalar, or one for each channel.

        Scale and zero point have one shape, as QGemm asks: a single channel's is a scalar too.
        """
        if tensor.axis is None and tensor.scale.ndim:
            return self._const(tensor.scale_value.name, tensor.scale.reshape(()))
        return tensor.scale_value

    def zero(self, tensor: QTensor) -> oir.Value:
        """The zero point as an input of the new operator, made where the graph left it out."""
        array = tensor.zero_point.reshape(()) if tensor.axis is None else tensor.zero_point
        given = tensor.zero_value
        if given is not None and given.shape is not None and len(given.shape) == array.ndim:
            return given
        return self._const(f"{tensor.scale_value.name}_zero_point", array)

    def const(self, suffix: str, array: npt.NDArray[np.generic]) -> oir.Value:
        """A new constant named after the node."""
        return self._const(f"{self.node.outputs[0].name}_{suffix}", array)

    def _const(self, base: str | None, array: npt.NDArray[np.generic]) -> oir.Value:
        return self.lowering.constant(base or "constant", array)

    def needs(self, op_type: str, domain: str, dtype: str) -> None:
        """Refuse where the runtime has no kernel."""
        version = self.lowering.opset(domain)
        if not self.lowering.kernels.has(op_type, domain, version, dtype):
            raise Refused(f"this ONNX Runtime has no {op_type} for {dtype} at opset {version}")

    def make(
        self,
        op_type: str,
        inputs: Sequence[oir.Value | None],
        attributes: Mapping[str, oir.Attr] | None = None,
        *,
        domain: str = "",
        suffix: str = "",
        absorbed: Iterable[oir.Node] = (),
        num_outputs: int = 1,
    ) -> oir.Node:
        """A new node named after the origin (``suffix`` for made-up ones), not yet in the graph."""
        base = origin(self.node) or self.node.name or self.node.outputs[0].name or op_type
        made = oir.Node(
            domain,
            op_type,
            inputs,
            list((attributes or {}).values()),
            num_outputs=num_outputs,
            name=f"{base}/{suffix}" if suffix else base,
        )
        for count, output in enumerate(made.outputs):
            tag = suffix or op_type
            name = f"{self.node.outputs[0].name}/{tag}" + (f"_{count}" if count else "")
            output.name = self.lowering.unique(name, values=True)
        set_origin(made, [self.node, *absorbed])
        self.edit.new.append(made)
        return made

    def write(self, last: oir.Node, to: Tail) -> Edit:
        """Finish: ``last`` writes what ``to``'s Q wrote (through an integer Clip where one is due)."""
        if to.clamps:
            return self.clamp(last.outputs[0], to, suffix="clip")
        self.edit.removes.append(self.node)
        return self.finish(last.outputs[0], to)

    def finish(self, q: oir.Value, to: Tail) -> Edit:
        """Let ``q`` be read where ``to``'s Q was; the Q and what was absorbed go."""
        self.edit.takes_over.append((to.out.q, q))
        gone = [*self.edit.removes, *to.absorbed, to.quantize]
        self.edit.removes = list(dict.fromkeys(gone))
        return self.edit

    def clamp(self, q: oir.Value, to: Tail, suffix: str = "") -> Edit:
        """Finish with an integer Clip of ``q`` to the limits that the absorbed activations set."""
        self.needs("Clip", "", to.out.dtype)
        dtype = to.out.zero_point.dtype
        limits = [
            self.const(n, np.array(v, dtype)) for n, v in (("low", to.low), ("high", to.high))
        ]
        made = self.make("Clip", [q, *limits], suffix=suffix, absorbed=to.absorbed)
        self.edit.removes.append(self.node)
        return self.finish(made.outputs[0], to)

    def write_float(self, last: oir.Node, to: oir.Value, removes: Sequence[oir.Node] = ()) -> Edit:
        """Finish: ``last`` writes the float tensor ``to``."""
        self.edit.takes_over.append((to, last.outputs[0]))
        self.edit.removes += list(dict.fromkeys([self.node, *removes]))
        return self.edit


def eight_bit_constant(site: Site, x: QTensor, dtype: str) -> list[oir.Value | None]:
    """(q, scale, zero point) of ``x``; a constant of the other 8-bit type is shifted by 128."""
    if x.dtype == dtype:
        return [x.q, site.scale(x), site.zero(x)]
    held = constant(x.q)
    if held is None:
        raise Refused(
            f"'{x.q.name}' is {x.dtype} and its partner {dtype}; the kernel takes one type"
        )
    shift = 128 if dtype == "uint8" else -128
    moved = (held.astype(np.int16) + shift).astype(dtype)
    zero = (x.zero_point.astype(np.int16) + shift).astype(dtype)
    return [site.const(dtype, moved), site.scale(x), site.const("zero_point", zero.reshape(()))]


def apply_edit(lowering: Lowering, at: oir.Node, edit: Edit) -> None:
    """Put the new nodes behind ``at``, hand the values over, remove the old nodes."""
    for node in edit.removes:
        lowering.free(node)
    for node in edit.new:
        node.name = lowering.unique(node.name or node.op_type)
    graph = lowering.model.graph
    for old, new in edit.takes_over:
        new.type = old.type
        new.shape = old.shape
        new.name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=is_graph_output(old))
        old.name = f"{old.name}/replaced"
    graph.insert_after(at, edit.new)
    graph.remove(edit.removes, safe=True)
