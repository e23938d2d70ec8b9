"""Runs a model over all samples at once, a few nodes at a time, so that it can be changed on the way.

Each node runs once for each sample. What later nodes need is kept for all samples: memory grows with
their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    ) -> None:
        self._threads, self._custom_ops = threads, custom_ops
        self._opsets = [helper.make_opsetid(k, v) for k, v in model.opset_imports.items()]
        self._ir_version = model.ir_version
        self._functions = [oir.to_proto(function) for function in model.functions.values()]
        self.nodes: list[onnx.NodeProto] = [oir.to_proto(node) for node in model.graph]
        self.position = 0
        # Weights stay where they lie (mapped files) until the nodes run that read them.
        self._constants: dict[str, oir.TensorProtocol | Array] = {
            name: value.const_value
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
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
                del values[name]

    def _run(self, part: Sequence[onnx.NodeProto], made: set[str], kept: Sequence[str]) -> None:
        read = list(dict.fromkeys(name for node in part for name in _reads(node)))
        constants = [_stored(n, self._constants[n]) for n in read if n in self._constants]
        given = [n for n in read if n not in made and n in self.live[0]]
        inputs = [_described(name, self.live[0][name]) for name in given]
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
                found = session.run({name: values[name] for name in given}, kept)
                values.update(found)
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
        self.nodes[index] = node
        self.run_to(index + 1)
        if shift is not None:
            for values in self.live:
                values[node.output[0]] = values[node.output[0]] + shift

    def replace_constant(self, name: str, array: Array) -> None:
        """Let all nodes that have not run read ``array`` as the initializer ``name``."""
        if name not in self._constants:
            raise CalibrationError(f"'{name}' is no initializer of the model")
        self._constants[name] = array

    def held_bytes(self) -> int:
        """Of the arrays that are alive."""
        return sum(a.nbytes for values in self.live for a in values.values())


def _stored(name: str, tensor: oir.TensorProtocol | Array) -> onnx.TensorProto:
    array = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those inside its subgraphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        for graph in inner:
            for one in graph.node:
                yield from _reads(one)
            yield from (value.name for value in graph.output)


def _described(name: str, array: Any) -> onnx.ValueInfoProto:
    if not isinstance(array, np.ndarray):
        raise CalibrationError(f"'{name}' is a {type(array).__name__}, not an array")
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)
