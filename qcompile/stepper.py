"""Runs a model over all samples at once, a few nodes at a time, so that it can be changed on the way.

Each node runs once for each sample. What later nodes need is kept for all samples: memory grows with
their number, unless it is spilled to a folder. Large weights are read where they lie (mapped files) and
never copied; what no later node reads is let go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
from onnx import helper, numpy_helper

from qcompile.backends.ort import open_session
from qcompile.data.inputs import Feed
from qcompile.ir.errors import CalibrationError, ModelError

__all__ = ["Stepper"]

Array = npt.NDArray[Any]

LARGE = 1 << 20
"""Bytes from which a float constant is handed over as an input, which the runtime does not copy."""

SPILLED = 1 << 18
"""Bytes from which an array between nodes is worth a file."""


class Stepper:
    """A model half run.

    Attributes:
        nodes: in the order in which they run.
        position: how many of them have run.
        live: for each sample, the arrays that later nodes read.
    """

    def __init__(
        self,
        model: oir.Model,
        feeds: Sequence[Feed],
        *,
        threads: int | None = None,
        custom_ops: Any = None,
        spill: Path | None = None,
    ) -> None:
        """Begin.

        Args:
            model: stays as it is.
            feeds: samples.
            threads: inside operators.
            custom_ops: library with custom operators.
            spill: an empty folder for what is alive between nodes; None holds it in memory.
        """
        self._threads, self._custom_ops = threads, custom_ops
        self._spill, self._spilled = spill, 0
        self._opsets = [helper.make_opsetid(k, v) for k, v in model.opset_imports.items()]
        self._ir_version = model.ir_version
        self._functions = [oir.to_proto(function) for function in model.functions.values()]
        self.nodes: list[onnx.NodeProto] = [oir.to_proto(node) for node in model.graph]
        self.position = 0
        # Weights stay where they lie (mapped files) until the nodes run that read them.
        self._constants: dict[str, oir.TensorProtocol | Array | Callable[[], Array]] = {
            name: value.const_value
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self._known = set(self._constants)
        inputs = {value.name for value in model.graph.inputs}
        self.live = [{k: v for k, v in feed.items() if k in inputs} for feed in feeds]
        self._last: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            self._last.update(dict.fromkeys(_reads(node), i))
        for value in model.graph.outputs:
            self._last[value.name or ""] = len(self.nodes)

    def run_to(self, stop: int) -> None:
        """Run the nodes before ``stop`` that have not run.

        Raises:
            CalibrationError: a sample does not run, or a tensor between nodes is no array.
        """
        part = self.nodes[self.position : stop]
        made = [name for node in part for name in node.output if name]
        kept = [name for name in made if self._last.get(name, -1) >= stop]
        if kept:
            self._run(part, set(made), kept)
        self.position = max(self.position, stop)
        for values in self.live:
            for name in [n for n in values if self._last.get(n, -1) < self.position]:
                self._drop(values, name)
        for name in [n for n in self._constants if self._last.get(n, -1) < self.position]:
            del self._constants[name]

    def _drop(self, values: dict[str, Any], name: str) -> None:
        array = values.pop(name)
        path = getattr(array, "filename", None)
        del array
        if path is not None and self._spill is not None and Path(path).parent == self._spill:
            with contextlib.suppress(OSError):  # Windows keeps what is still mapped
                Path(path).unlink()

    def _kept(self, array: Any) -> Any:
        """The array, in a file where there is a folder for it."""
        if self._spill is None or not isinstance(array, np.ndarray) or array.nbytes < SPILLED:
            return array
        path = (self._spill / f"{self._spilled}.npy").resolve()
        self._spilled += 1
        np.save(path, array, allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _run(self, part: Sequence[onnx.NodeProto], made: set[str], kept: Sequence[str]) -> None:
        read = list(dict.fromkeys(name for node in part for name in _reads(node)))
        held = {n: _array(self._constants[n]) for n in read if n in self._constants}
        inner = {name for node in part for name in _captured(node)}
        large = {
            n: a
            for n, a in held.items()
            if a.nbytes >= LARGE and a.dtype == np.float32 and n not in inner
        }
        constants = [_stored(n, a) for n, a in held.items() if n not in large]
        del held
        given = [n for n in read if n not in made and n in self.live[0]]
        inputs = [_described(name, self.live[0][name]) for name in given]
        inputs += [_described(name, array, fixed=True) for name, array in large.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in kept]
        graph = helper.make_graph(part, "part", inputs, outputs, constants)
        model = helper.make_model(
            graph,
            opset_imports=self._opsets,
            ir_version=self._ir_version,
            functions=self._functions,
        )
        try:
            session = open_session(
                model.SerializeToString(),
                threads=self._threads,
                optimize=False,
                custom_ops=self._custom_ops,
                variable_shapes=True,
                keep_arena=True,
            )
            for values in self.live:
                found = session.run({name: values[name] for name in given} | large, kept)
                values.update({name: self._kept(array) for name, array in found.items()})
        except ModelError as e:
            raise CalibrationError(f"a part of the model does not run by itself: {e}") from e

    def run_next(
        self, inputs: Mapping[int, Array] | None = None, shift: Array | None = None
    ) -> None:
        """Run one node, with other constants.

        Args:
            inputs: input index -> array to read there.
            shift: added to its first output.
        """
        index = self.position
        node = onnx.NodeProto()
        node.CopyFrom(self.nodes[index])
        for at, array in (inputs or {}).items():
            name = f"qcompile_stepper_{index}_{at}"
            while len(node.input) <= at:
                node.input.append("")
            node.input[at] = name
            self._constants[name] = array
            self._known.add(name)
            self._last[name] = index
        self.nodes[index] = node
        self.run_to(index + 1)
        if shift is not None:
            for values in self.live:
                values[node.output[0]] = values[node.output[0]] + shift

    def replace_constant(self, name: str, array: Array | Callable[[], Array]) -> None:
        """Let all nodes that have not run read ``array`` as the initializer ``name``.

        A function is called whenever nodes that read it run, so that nothing is held until then.
        """
        if name not in self._known:
            raise CalibrationError(f"'{name}' is no initializer of the model")
        if self._last.get(name, -1) >= self.position:
            self._constants[name] = array

    def reads(self, index: int) -> Iterator[str]:
        """Names that a node reads, those inside its subgraphs too."""
        return _reads(self.nodes[index])

    def value(self, sample: int, name: str) -> Any:
        """What is alive under a name for one sample; a constant is the same for all."""
        live = self.live[sample]
        return live[name] if name in live else _array(self._constants[name])

    def held_bytes(self) -> int:
        """Of the arrays that are alive."""
        return sum(a.nbytes for values in self.live for a in values.values())


def _array(constant: oir.TensorProtocol | Array | Callable[[], Array]) -> Array:
    if isinstance(constant, np.ndarray):
        found = constant
    elif isinstance(constant, oir.TensorProtocol):
        found = constant.numpy()
    else:
        found = constant()
    return np.asarray(found, order="C")


def _stored(name: str, array: Array) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the subgraphs of a node read."""
    own = set(node.input)
    return (name for name in _reads(node) if name not in own)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those inside its subgraphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        for graph in inner:
            for one in graph.node:
                yield from _reads(one)
            yield from (value.name for value in graph.output)


def _described(name: str, array: Any, *, fixed: bool = False) -> onnx.ValueInfoProto:
    if not isinstance(array, np.ndarray):
        raise CalibrationError(f"'{name}' is a {type(array).__name__}, not an array")
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    shape: list[int | None] = list(array.shape) if fixed else [None] * array.ndim
    return helper.make_tensor_value_info(name, kind, shape)
