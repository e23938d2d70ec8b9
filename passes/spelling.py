"""The nodes that one operator is taken apart into, in the making."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, fresh_name, origin
from qcompile.ir.pattern import stand_for

__all__ = ["Spelling"]


class Spelling:
    """Parts of an operator, to be put in its place by ``qcompile.ir.pattern.replace``.

    The anchor among them stands for the operator; the others have its name as a prefix.

    Attributes:
        nodes: so far, in order.
        opset: of the model's default domain.
    """

    def __init__(self, graph: oir.Graph, node: oir.Node, opset: int) -> None:
        """Begin with no parts of ``node``."""
        self.nodes: list[oir.Node] = []
        self.opset = opset
        self._graph, self._node = graph, node

    def add(
        self,
        kind: str,
        inputs: Sequence[oir.Value | None],
        attributes: Sequence[oir.Attr] = (),
        *,
        anchor: bool = False,
        domain: str = "",
        outputs: int = 1,
    ) -> oir.Value:
        """One part; its (first) output."""
        read = list(inputs)
        while read and read[-1] is None:
            read.pop()
        new = oir.Node(domain, kind, read, list(attributes), num_outputs=outputs)
        if anchor:
            stand_for(new, [self._node])
        else:
            whole = origin(self._node) or self._node.name or self._node.op_type
            new.name = f"{whole}/{kind}_{len(self.nodes)}"
        result = self._node.outputs[0]
        for out in new.outputs:
            out.name = fresh_name(self._graph, f"{result.name}_{kind}")
            out.type = result.type
        self.nodes.append(new)
        return new.outputs[0]

    def split(self, value: oir.Value, sizes: Sequence[int]) -> list[oir.Value]:
        """``value`` in parts along its last axis."""
        axis = oir.AttrInt64("axis", -1)
        if self.opset < 13:
            self.add("Split", [value], [axis, oir.AttrInt64s("split", sizes)], outputs=len(sizes))
        else:
            base = f"{self._node.outputs[0].name}_sizes"
            lengths = add_initializer(self._graph, base, np.array(sizes, np.int64))
            self.add("Split", [value, lengths], [axis], outputs=len(sizes))
        return list(self.nodes[-1].outputs)

    def mean(self, value: oir.Value) -> oir.Value:
        """The mean of ``value`` along its last axis, which stays as one number."""
        if self.opset < 18:
            return self.add("ReduceMean", [value], [oir.AttrInt64s("axes", [-1])])
        base = f"{self._node.outputs[0].name}_axes"
        axes = add_initializer(self._graph, base, np.array([-1], np.int64))
        return self.add("ReduceMean", [value, axes])

    def constant(self, number: float) -> oir.Value:
        """A scalar of the type that the operator yields."""
        result = self._node.outputs[0]
        known = result.dtype or next((v.dtype for v in self._node.inputs if v is not None), None)
        dtype = np.dtype(np.float32) if known is None else known.numpy()
        return add_initializer(
            self._graph, f"{result.name}_constant", np.array(number).astype(dtype)
        )
