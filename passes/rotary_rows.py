"""ONNX Runtime's RotaryEmbedding for a rotation whose cosines and sines are tensors of any shape.

The operator reads tables of one row for each position and which row each position has. Rows are made of
the tensors that the model has: all that occur, in order, so that their numbers say which is whose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, attribute, constant, fresh_name, new_value
from qcompile.passes.dims import Dims
from qcompile.passes.equal_halves import halves_equal
from qcompile.passes.tracker import Tracker

__all__ = ["RotaryRows", "Rotation"]

WHOLE = oir.DataType.INT64
UNIT_AXES = ("Identity", "Squeeze", "Unsqueeze")
"""What leaves the order of the numbers as it is."""


@dataclass(frozen=True)
class Rotation:
    """What is rotated, and by which cosines and sines.

    Attributes:
        x: (B, N, S, H), or (B, S, N, H).
        cos: broadcast to x along its heads N and perhaps its samples B.
        sin: as cos.
        twice: cos and sin have a number for each channel, not for each pair.
    """

    x: oir.Value
    cos: oir.Value
    sin: oir.Value
    twice: bool


@dataclass
class RotaryRows:
    """Rows of cosines and sines, each made once however many rotations read it.

    Attributes:
        graph: the main graph.
        tracker: which dimensions are the same number.
    """

    graph: oir.Graph
    tracker: Tracker
    _made: dict[tuple[Any, ...], oir.Value] = field(default_factory=dict)
    _new: list[oir.Node] = field(default_factory=list)

    def misfit(self, found: Rotation) -> str | None:
        """Why the operator would not compute the same, None where it does."""
        x = found.x
        dims = self.tracker.dims(x)
        if x.dtype != oir.DataType.FLOAT:
            return f"'{x.name}' is not float32"
        if dims is None or len(dims) != 4 or not isinstance(width := dims[-1], int) or width % 2:
            return f"'{x.name}' has not four axes, the last of an even size"
        for table in (found.cos, found.sin):
            have = self._aligned(table)
            if have is None or have[-1] != (width if found.twice else width // 2):
                return f"'{table.name}' has not a number for each channel of '{x.name}'"
            if _heads_axis(have, dims) is None:
                return (
                    f"'{table.name}' is not certain to have a row for each position of '{x.name}'"
                )
            if found.twice and not halves_equal(table, self.tracker):
                return f"the halves of '{table.name}' are not certain to be equal"
        rows = self._aligned(found.cos)
        if rows is None or rows != self._aligned(found.sin):
            return f"'{found.cos.name}' and '{found.sin.name}' differ in shape"
        if _heads_axis(rows, dims) == 2 and not isinstance(dims[2], int):
            return f"how many heads '{x.name}' has is not known"
        return None

    def written(self, found: Rotation, root: oir.Node) -> list[oir.Node]:
        """The nodes that a rotation without a misfit becomes, the last of which yields it.

        Args:
            found: the rotation.
            root: whose place they take.
        """
        x, self._new = found.x, []
        dims, table = self.tracker.dims(x), self._aligned(found.cos)
        if dims is None or table is None:
            raise TypeError(f"'{x.name}' was not checked")
        heads = _heads_axis(table, dims)
        cos, sin = (self._rows(value, found.twice) for value in (found.cos, found.sin))
        places = self._places(found.cos, table, 2 if heads == 1 else 1)
        base = root.outputs[0].name or "rotary"
        if heads == 2:
            sizes = [int(d) for d in dims[2:]]
            x = self._reshaped(x, [0, 0, math.prod(sizes)], f"{base}_joined")
        rotary = oir.Node("com.microsoft", "RotaryEmbedding", [x, places, cos, sin])
        self._new.append(rotary)
        if heads == 2:
            out = rotary.outputs[0]
            out.name, out.type = fresh_name(self.graph, f"{base}_rotated"), x.type
            rotary.name = fresh_name(self.graph, f"{root.name}/rotated")
            self._reshaped(out, [0, 0, *sizes], f"{base}_apart")
        return self._new

    def _aligned(self, table: oir.Value) -> Dims | None:
        """The shape of a table as it meets x, missing axes being 1."""
        dims = self.tracker.dims(table)
        return None if dims is None or not 0 < len(dims) <= 4 else (1,) * (4 - len(dims)) + dims

    def _rows(self, table: oir.Value, twice: bool) -> oir.Value:
        """(rows, H / 2): the first half of each row, rows in order."""
        source, width = table, (self.tracker.dims(table) or (0,))[-1]
        while (node := source.producer()) is not None and node.op_type in UNIT_AXES:
            read = node.inputs[0]
            if read is None or (self.tracker.dims(read) or (0,))[-1] != width:
                break
            source = read
        key = source, twice
        if key not in self._made:
            self._made[key] = self._made_rows(source, twice)
        return self._made[key]

    def _made_rows(self, source: oir.Value, twice: bool) -> oir.Value:
        array, dims, base = constant(source), self.tracker.dims(source), f"{source.name}_rows"
        if dims is None or not isinstance(width := dims[-1], int):
            raise TypeError(f"'{source.name}' was not checked")
        half = width // 2 if twice else width
        if array is not None:
            return add_initializer(self.graph, base, array[..., :half].reshape(-1, half).copy())
        node = source.producer()
        if twice and node is not None and node.op_type == "Concat" and len(node.inputs) == 2:
            same = node.inputs[0] if node.inputs[0] is node.inputs[1] else None
            if same is not None and attribute(node, "axis") in (-1, len(dims) - 1):
                source, twice = same, False
        if twice:
            ends = [self._constant(f"rotary_at_{n}", [n]) for n in (0, half, -1)]
            source = self._node("Slice", [source, *ends], oir.DataType.FLOAT, base)
        return source if len(dims) == 2 else self._reshaped(source, [-1, half], base)

    def _places(self, table: oir.Value, dims: Dims, sequence: int) -> oir.Value:
        """Which row each position has: (1,) where every sample begins at the first, else (B, S)."""
        if dims[0] == 1:
            return self._constant("rotary_first_row", [0])
        key = "places", dims[0], dims[sequence]
        if key not in self._made:
            base = f"{table.name}_places"
            shape = self._node("Shape", [table], WHOLE, base)
            axes = self._constant(f"rotary_axes_{sequence}", [0, sequence])
            sizes = self._node("Gather", [shape, axes], WHOLE, base)
            count = self._node("ReduceProd", [sizes], WHOLE, base, keepdims=0)
            zero, one = (self._constant(f"rotary_{n}", n) for n in (0, 1))
            numbers = self._node("Range", [zero, count, one], WHOLE, base)
            self._made[key] = self._node("Reshape", [numbers, sizes], WHOLE, base)
        return self._made[key]

    def _reshaped(self, x: oir.Value, target: list[int], base: str) -> oir.Value:
        shape = self._constant(f"rotary_shape_{'_'.join(map(str, target))}", target)
        return self._node("Reshape", [x, shape], oir.DataType.FLOAT, base)

    def _constant(self, name: str, numbers: int | Sequence[int]) -> oir.Value:
        key = "constant", name
        if key not in self._made:
            array: npt.NDArray[np.int64] = np.array(numbers, np.int64)
            self._made[key] = add_initializer(self.graph, name, array)
        return self._made[key]

    def _node(
        self,
        op_type: str,
        inputs: Sequence[oir.Value],
        dtype: oir.DataType,
        base: str,
        **attributes: int,
    ) -> oir.Value:
        node, out = new_value(self.graph, op_type, inputs, dtype, base, **attributes)
        self._new.append(node)
        return out


def _heads_axis(table: Dims, x: Dims) -> int | None:
    """Which axis of x counts heads: 1 or 2, the other being positions; None if it fits neither."""
    if table[0] not in (1, x[0]):
        return None
    if table[1] == 1 and table[2] == x[2]:
        return 1
    return 2 if table[2] == 1 and table[1] == x[1] else None
