"""A branch of an If that owns its constants.

ONNX Runtime packs weights and fuses nodes inside a branch only when the constants stand in it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import constant

__all__ = ["Branch"]


@dataclass
class Branch:
    """A subgraph under construction; constants that its nodes read become its own.

    Attributes:
        fresh: gives a name that nothing in the model uses.
        nodes: in order.
    """

    fresh: Callable[[str], str]
    nodes: list[oir.Node] = field(default_factory=list)
    _constants: dict[oir.Value | bytes, oir.Value] = field(default_factory=dict)

    def add(
        self,
        op_type: str,
        inputs: Sequence[oir.Value | None],
        outputs: Sequence[oir.Value],
        *attributes: oir.Attr,
        name: str = "",
        domain: str = "",
    ) -> oir.Node:
        """Append a node; constants of the outer graph among its inputs are copied in."""
        own = [self._own(value) for value in inputs]
        node = oir.Node(
            domain,
            op_type,
            own,
            attributes,
            outputs=outputs,
            name=self.fresh(name or op_type),
        )
        self.nodes.append(node)
        return node

    def constant(self, base: str, array: npt.NDArray[np.generic]) -> oir.Value:
        """A constant of the branch."""
        name = self.fresh(base)
        tensor = oir.tensor(array, name=name)
        return self._register(name, tensor, oir.Shape(array.shape))

    def graph(self, outputs: Sequence[oir.Value]) -> oir.Graph:
        """The finished subgraph."""
        return oir.Graph(
            [],
            outputs,
            nodes=self.nodes,
            initializers=list(self._constants.values()),
            name=self.fresh("branch"),
        )

    def _own(self, value: oir.Value | None) -> oir.Value | None:
        if value is None or constant(value) is None or value in self._constants.values():
            return value
        if value not in self._constants:
            tensor = oir.convenience.get_const_tensor(value)
            if tensor is None:
                return value
            shape = oir.Shape(tensor.numpy().shape)
            self._register(self.fresh(value.name or "constant"), tensor, shape, value)
        return self._constants[value]

    def _register(
        self, name: str, tensor: oir.TensorProtocol, shape: oir.Shape, key: oir.Value | None = None
    ) -> oir.Value:
        own = oir.Value(
            name=name, type=oir.TensorType(tensor.dtype), shape=shape, const_value=tensor
        )
        self._constants[own if key is None else key] = own
        return own
