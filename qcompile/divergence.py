"""Where two models part: the error of each inner tensor, and the first node that is bad.

Tensors are matched by name, and taken as their readers get them: rounded and clipped where they are
quantized. The error of a tensor is what has gathered up to there; its *drop* is how
many dB it lies below the worst of the compared tensors that it is computed from. Bisection assumes
that error grows along the way to a bad output; what it finds is then followed upwards until everything
that the node reads is good, so the answer holds where errors cross branches too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as oir

from qcompile.capture import capture, tensor_sizes
from qcompile.compare import OutputComparison
from qcompile.data.inputs import Feed
from qcompile.ir.errors import CalibrationError
from qcompile.ir.graph import is_graph_output, origin

__all__ = ["Divergence", "TensorError"]

GROUP_BYTES = 256_000_000
"""Tensors of one sample that are held at a time, of each model."""

_LIMITING = ("Relu", "Clip")


@dataclass(frozen=True)
class TensorError:
    """One tensor in both models.

    Attributes:
        tensor: its name.
        node: the node of the second model that writes it.
        op_type: that node's operator.
        sqnr_db: over all samples.
        reads_db: least SQNR of the compared tensors that it is computed from; None when it is
            computed from inputs and constants alone.
    """

    tensor: str
    node: str
    op_type: str
    sqnr_db: float
    reads_db: float | None

    @property
    def drop_db(self) -> float:
        """How much worse it is than what it is computed from (exact inputs count as 100 dB)."""
        return min(100.0, 100.0 if self.reads_db is None else self.reads_db) - self.sqnr_db


class Divergence:
    """Compares inner tensors of two models on the same samples; measures each tensor once.

    Args:
        reference: the model that is right.
        other: the model in question.
        feeds: samples.
        work: a temporary folder.
        as_written: run Q/DQ pairs of ``other`` as they are written, not as integer kernels.
        custom_ops: library with custom operators.
    """

    def __init__(
        self,
        reference: oir.Model,
        other: oir.Model,
        feeds: Sequence[Feed],
        work: Path,
        *,
        as_written: bool = False,
        custom_ops: Path | None = None,
    ) -> None:
        self._reference, self._other = reference, other
        self._feeds, self._work = feeds, work
        self._as_written, self._custom_ops = as_written, custom_ops
        self._found: dict[str, float] = {}
        there = {v.name: v for n in reference.graph for v in n.outputs if _is_float(v)}
        self._values = {
            v.name: v
            for n in other.graph
            for v in n.outputs
            if v.name and _is_float(v) and v.name in there and n.op_type != "Constant"
            if not _absorbed(there[v.name], v)
        }
        self._taken = {name: _as_read(v) for name, v in self._values.items()}
        self._reads = {name: tuple(self._nearest(v)) for name, v in self._values.items()}

    @property
    def tensors(self) -> tuple[str, ...]:
        """Float tensors that both models have, in the order of the second."""
        return tuple(self._values)

    def layers(self, progress: Callable[[float, float], None] | None = None) -> list[TensorError]:
        """The error of every tensor that both have, in graph order."""
        done = 0
        for group in self._groups():
            self._measure(group)
            done += len(group)
            if progress is not None:
                progress(done, len(self._values))
        return [self._row(name) for name in self._values]

    def first_bad(
        self, output: str, limit_db: float, progress: Callable[[float, float], None] | None = None
    ) -> TensorError | None:
        """The first node on the way to ``output`` that is below the limit while all it reads is not.

        None where no compared tensor on the way is bad: then the fault lies behind the last of them.
        """
        way = self._way(output)
        low, high, asked = -1, len(way), 0
        while high - low > 1:
            middle = (low + high) // 2
            if self._bad(way[middle], limit_db):
                high = middle
            else:
                low = middle
            asked += 1
            if progress is not None:
                progress(asked, max(asked, len(way).bit_length()))
        if high == len(way):
            return None
        name = way[high]
        while True:
            worse = next((r for r in self._reads[name] if self._bad(r, limit_db)), None)
            if worse is None:
                return self._row(name)
            name = worse

    def earliest_bad(self, output: str, limit_db: float) -> TensorError | None:
        """As ``first_bad``, but the earliest in graph order of all such nodes: measures every tensor."""
        self.layers()
        return next(
            (
                self._row(name)
                for name in self._way(output)
                if self._bad(name, limit_db)
                and not any(self._bad(r, limit_db) for r in self._reads[name])
            ),
            None,
        )

    def _bad(self, name: str, limit_db: float) -> bool:
        if name not in self._found:
            self._measure([name, *self._reads[name]])
        return self._found[name] < limit_db

    def _row(self, name: str) -> TensorError:
        missing = [n for n in (name, *self._reads[name]) if n not in self._found]
        if missing:
            self._measure(missing)
        node = self._values[name].producer()
        reads = [self._found[n] for n in self._reads[name]]
        return TensorError(
            name,
            (origin(node) or node.name or name) if node else name,
            node.op_type if node else "",
            self._found[name],
            min(reads, default=None),
        )

    def _measure(self, names: Sequence[str]) -> None:
        wanted = [n for n in dict.fromkeys(names) if n not in self._found]
        if not wanted:
            return
        sums = {name: OutputComparison(name, "float") for name in wanted}
        for index, (ref, got) in enumerate(zip(*self._runs(wanted), strict=True)):
            for name, one in sums.items():
                one.update(str(index), None, ref[name], got[self._taken[name]])
        for name, one in sums.items():
            result = one.result()
            self._found[name] = result.sqnr_db if result.sqnr_db is not None else 0.0

    def _runs(self, names: Sequence[str]) -> tuple[Iterator[Feed], Iterator[Feed]]:
        def run(
            model: oir.Model, tensors: Sequence[str], side: str, optimize: bool
        ) -> Iterator[Feed]:
            path = self._work / f"{side}.onnx"
            return capture(
                model, tensors, self._feeds, path, custom_ops=self._custom_ops, optimize=optimize
            )

        taken = [self._taken[name] for name in names]
        return (
            run(self._reference, names, "reference", True),
            run(self._other, taken, "other", not self._as_written),
        )

    def _groups(self) -> Iterator[list[str]]:
        """All tensors in lots that fit into memory together."""
        if not self._values:
            return
        path = self._work / "sizes.onnx"
        sizes = tensor_sizes(
            self._other, self.tensors, self._feeds[0], path, custom_ops=self._custom_ops
        )
        group: list[str] = []
        held = 0
        for name in self._values:
            if group and held + sizes[name] > GROUP_BYTES:
                yield group
                group, held = [], 0
            group.append(name)
            held += sizes[name]
        yield group

    def _nearest(self, value: oir.Value) -> Iterator[str]:
        """The compared tensors that a value is computed from, through those that are not compared."""
        for found in _upwards(value, lambda v: v.name not in self._values):
            if found.name in self._values and found.name:
                yield found.name

    def _way(self, output: str) -> list[str]:
        """The compared tensors that ``output`` depends on, itself included, in graph order."""
        value = next((v for v in self._other.graph.outputs if v.name == output), None)
        if value is None:
            raise CalibrationError(f"output '{output}' is not in the second model")
        above = {v.name for v in _upwards(value, lambda _: True)} | {output}
        return [name for name in self._values if name in above]


def _as_read(value: oir.Value) -> str:
    """The tensor that a value's readers get: behind its Q and DQ where all of them read that."""
    quantized = [u.node for u in value.uses()]
    if (
        len(quantized) == 1
        and quantized[0].op_type == "QuantizeLinear"
        and not is_graph_output(value)
    ):
        back = [u.node for u in quantized[0].outputs[0].uses()]
        if len(back) == 1 and back[0].op_type == "DequantizeLinear":
            return back[0].outputs[0].name or value.name or ""
    return value.name or ""


def _absorbed(reference: oir.Value, other: oir.Value) -> bool:
    """Whether a Relu or Clip behind a tensor became part of its range, so that it holds less."""
    return any(u.node.op_type in _LIMITING for u in reference.uses()) and not any(
        u.node.op_type in _LIMITING for u in other.uses()
    )


def _is_float(value: oir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _upwards(value: oir.Value, through: Callable[[oir.Value], bool]) -> Iterator[oir.Value]:
    """Values that ``value`` is computed from, nearest first; past one only where ``through`` says so."""
    seen: set[oir.Value] = set()
    todo = list(_inputs(value))
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        yield one
        if through(one):
            todo += _inputs(one)


def _inputs(value: oir.Value) -> list[oir.Value]:
    """What a value's node reads, the reads of the graphs within it included."""
    node = value.producer()
    if node is None:
        return []
    inner = [
        v
        for attr in node.attributes.values()
        if not attr.is_ref() and attr.type == oir.AttributeType.GRAPH
        for n in attr.as_graph().all_nodes()
        for v in n.inputs
    ]
    return [v for v in (*node.inputs, *inner) if v is not None]
