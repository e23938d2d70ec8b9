"""Constant matrices of a graph and how it uses them: multiplied with, or looked up row by row.

All uses of one initializer stand together, so that an embedding that is also the output head (tied
weights) is one matrix. Its layout here is ``(out, in)``: a MatMul's weight is turned, an embedding's
rows are ``out``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.errors import PassError
from qcompile.ir.graph import is_graph_output, origin
from qcompile.ir.notes import Note

__all__ = ["Matrix", "Use", "find_matrices"]


@dataclass(frozen=True)
class Use:
    """One node that reads a matrix.

    Attributes:
        node: MatMul, Gemm or Gather.
        op_type: of it.
        path: Transpose and Identity nodes between the initializer and the node.
    """

    node: oir.Node
    op_type: str
    path: tuple[oir.Node, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """A constant matrix.

    Attributes:
        value: the initializer.
        turned: it is stored as (in, out).
        uses: in the graph's order.
    """

    value: oir.Value
    turned: bool
    uses: tuple[Use, ...]

    @property
    def name(self) -> str:
        """Of the initializer."""
        return self.value.name or ""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        first, second = self.value.const_value.shape.numpy() if self.value.const_value else (0, 0)
        return (second, first) if self.turned else (first, second)

    @property
    def size(self) -> int:
        """Elements."""
        return self.shape[0] * self.shape[1]

    @property
    def looked_up(self) -> bool:
        """Some node reads rows of it."""
        return any(use.op_type == "Gather" for use in self.uses)

    @property
    def multiplied(self) -> bool:
        """Some node multiplies with it."""
        return any(use.op_type != "Gather" for use in self.uses)

    @property
    def origins(self) -> tuple[str, ...]:
        """Origin ids of the nodes."""
        return tuple(origin(use.node) for use in self.uses)

    def array(self) -> npt.NDArray[np.float32]:
        """(out, in), a view where the file holds it so."""
        stored = self.stored()
        return np.ascontiguousarray(stored.T) if self.turned else stored

    def some_rows(self, most: int) -> npt.NDArray[np.float32]:
        """At most so many rows of ``array``, spread over all of them; the others are not read."""
        picked = np.unique(np.linspace(0, self.shape[0] - 1, most).astype(np.intp))
        stored = self.stored()
        return np.ascontiguousarray(stored[:, picked].T if self.turned else stored[picked])

    def stored(self) -> npt.NDArray[np.float32]:
        """As the file holds it."""
        tensor = self.value.const_value
        if tensor is None:
            raise PassError(f"'{self.name}' has no value")
        return np.asarray(tensor.numpy(), np.float32)


def find_matrices(model: oir.Model) -> tuple[list[Matrix], list[Note]]:
    """The float32 matrices whose every use is known, in the order of first use; why not the rest."""
    found: list[Matrix] = []
    notes: list[Note] = []
    order = {node: i for i, node in enumerate(model.graph)}
    for value in model.graph.initializers.values():
        if value.const_value is None or len(value.const_value.shape) != 2:
            continue
        uses = list(_uses(value, False, ()))
        if not any(
            (u is not None and u[0].op_type in ("MatMul", "Gemm")) or _is_row(u) for u in uses
        ):
            continue
        reason = _refusal(value, uses) or _turning(value, uses)
        if reason:
            notes.append(Note(value.name or "", f"stays float: {reason}"))
            continue
        known = sorted((u for u in uses if u is not None), key=lambda u: order.get(u[0], -1))
        found.append(
            Matrix(value, known[0][1], tuple(Use(n, n.op_type, path) for n, _, path in known))
        )
    found.sort(key=lambda m: order.get(m.uses[0].node, -1))
    return _tied(found), notes


_COMPARED = 1 << 22
"""Elements compared at once, so that a mapped weight is not held whole."""


def _tied(found: list[Matrix]) -> list[Matrix]:
    """Join a head that was exported as a turned copy of the embedding with it: equal values, stored once."""
    result: list[Matrix] = []
    for matrix in found:
        same = next((i for i, m in enumerate(result) if _copies(m, matrix)), None)
        if same is None:
            result.append(matrix)
        else:
            first = result[same]
            result[same] = Matrix(first.value, first.turned, (*first.uses, *matrix.uses))
    return result


def _copies(a: Matrix, b: Matrix) -> bool:
    if a.shape != b.shape or a.looked_up == b.looked_up:
        return False
    first, second = (m.array() if not m.turned else m.stored().T for m in (a, b))
    step = max(1, _COMPARED // a.shape[1])
    return all(
        np.array_equal(first[i : i + step], second[i : i + step])
        for i in range(0, a.shape[0], step)
    )


_Found = tuple[oir.Node, bool, tuple[oir.Node, ...]]


def _is_row(use: _Found | None) -> bool:
    return use is not None and use[0].op_type == "Gather"


def _refusal(value: oir.Value, uses: list[_Found | None]) -> str:
    if value.dtype != oir.DataType.FLOAT:
        return f"it is {value.dtype}, and only float32 is taken"
    if value.is_graph_input() or is_graph_output(value):
        return "it is an input or output of the model"
    if any(use is None for use in uses):
        return "a node reads it that is no MatMul, Gemm or Gather of rows with it as weight"
    if len({use[1] for use in uses if use is not None}) > 1:
        return "it is read along rows and along columns"
    return ""


_MOVES = (
    "Cast",
    "Concat",
    "Expand",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def _turning(value: oir.Value, uses: list[_Found | None]) -> str:
    """Why a table is no embedding: its rows turn activations (cosines and sines of positions)."""
    tensor = value.const_value
    rows = [use[0].outputs[0] for use in uses if use is not None and _is_row(use)]
    if tensor is None or not any(map(_multiplies, rows)):
        return ""
    if float(np.abs(tensor.numpy()).max(initial=0.0)) > 1.0:
        return ""
    return "its rows multiply activations, where errors would enter every layer"


def _multiplies(rows: oir.Value) -> bool:
    """Whether rows, however moved, are factors of something that is as wide as they are."""
    for node in rows.consumers():
        if node.op_type in _MOVES and not node.domain:
            if _multiplies(node.outputs[0]):
                return True
        elif node.op_type == "RotaryEmbedding":
            return True
        elif node.op_type == "Mul" and not node.domain:
            other = next((v for v in node.inputs if v is not rows), None)
            if (
                other is not None
                and other.const_value is None
                and _width(rows) == _width(other) > 1
            ):
                return True
    return False


def _width(value: oir.Value) -> int:
    """Elements of the last axis; 0 where that is not known."""
    last = value.shape[-1] if value.shape else None
    return last if isinstance(last, int) else 0


def _uses(value: oir.Value, flipped: bool, path: tuple[oir.Node, ...]) -> Iterator[_Found | None]:
    """(node, whether (in, out) is the initializer's layout, path); None for a use that is not known."""
    if is_graph_output(value):
        yield None
    for use in value.uses():
        node, index = use.node, use.idx
        if node.graph is not value.graph:
            yield None
            continue
        if node.op_type == "Identity" and not node.domain:
            yield from _uses(node.outputs[0], flipped, (*path, node))
        elif node.op_type == "Transpose" and not node.domain and _swaps(node):
            yield from _uses(node.outputs[0], not flipped, (*path, node))
        elif node.op_type == "MatMul" and not node.domain and index == 1 and _rows(node):
            yield node, not flipped, path
        elif node.op_type == "Gemm" and not node.domain and index == 1 and _plain_gemm(node):
            yield node, (not node.attributes.get_int("transB", 0)) ^ flipped, path
        elif node.op_type == "Gather" and not node.domain and index == 0 and _first_axis(node):
            yield node, flipped, path
        else:
            yield None


def _swaps(node: oir.Node) -> bool:
    perm = node.attributes.get_ints("perm", (1, 0))
    return tuple(perm or ()) == (1, 0)


def _rows(node: oir.Node) -> bool:
    """The other factor has rows (a vector's product has another shape)."""
    other = node.inputs[0]
    return other is not None and (other.shape is None or len(other.shape) >= 2)


def _plain_gemm(node: oir.Node) -> bool:
    get = node.attributes
    return not get.get_int("transA", 0) and get.get_float("alpha", 1.0) == 1.0


def _first_axis(node: oir.Node) -> bool:
    return node.attributes.get_int("axis", 0) in (0, -2)
