"""What the rules of an opset upgrade are written with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import attribute, fresh_name, origins, set_origin

__all__ = ["BlockedError", "Edit", "Editor", "input_of", "int_of", "ints_of", "set_input"]

Edit = Callable[[], None]
"""Carries out what a rule has decided."""


class BlockedError(Exception):
    """The node cannot be written in the new opset; the text continues "NODE ..."."""


@dataclass(frozen=True)
class Editor:
    """Makes constants and nodes with names that are free in the whole graph.

    Attributes:
        root: the outermost graph.
        function: it is a function's body, which holds no initializers.
    """

    root: oir.Graph
    function: bool = False

    def constant(self, node: oir.Node, what: str, array: npt.NDArray[np.generic]) -> oir.Value:
        """A constant input for ``node``, in the graph in which it stands."""
        name = fresh_name(self.root, f"{node.name or node.op_type}_{what}")
        tensor = oir.tensor(np.asarray(array, order="C"), name=name)
        if self.function or node.graph is None:
            made = oir.node("Constant", [], {"value": tensor}, name=name)
            made.outputs[0].name = name
            node.prepend(made)
            return made.outputs[0]
        value = oir.Value(
            name=name,
            type=oir.TensorType(tensor.dtype),
            shape=oir.Shape(array.shape),
            const_value=tensor,
        )
        node.graph.register_initializer(value)
        return value

    def ints(self, node: oir.Node, what: str, values: tuple[int, ...]) -> oir.Value:
        """A constant int64 vector."""
        return self.constant(node, what, np.array(values, dtype=np.int64))

    def node(
        self,
        like: oir.Node,
        op: str,
        inputs: list[oir.Value | None],
        attributes: dict[str, int] | None = None,
    ) -> oir.Node:
        """A node that stands for the same origin as ``like``; not inserted."""
        name = fresh_name(self.root, f"{like.name or like.op_type}_{op.lower()}")
        made = oir.node(op, inputs, attributes or {}, name=name)
        made.outputs[0].name = name
        set_origin(made, origins(like))
        return made


def ints_of(node: oir.Node, name: str) -> tuple[int, ...] | None:
    """An attribute of integers, None when absent."""
    value = attribute(node, name)
    return tuple(int(v) for v in value) if isinstance(value, tuple) else None


def int_of(node: oir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    value = attribute(node, name, default)
    return value if isinstance(value, int) else default


def input_of(node: oir.Node, index: int) -> oir.Value | None:
    """An input, None when left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def set_input(node: oir.Node, index: int, value: oir.Value | None) -> None:
    """Let an input be ``value``; inputs between are left out."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
