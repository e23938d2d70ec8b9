"""Some neighbouring nodes of a model as a session of their own, with large weights handed over as inputs.

What is handed over the runtime does not copy, and the next run may hand over another array.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
from onnx import helper, numpy_helper

from qcompile.backends.ort import Session, open_session
from qcompile.ir.errors import CalibrationError, ModelError

__all__ = ["LARGE", "Constant", "Nodes", "Part", "as_array", "names_read"]

Array = npt.NDArray[Any]
Constant = oir.TensorProtocol | Array | Callable[[], Array]
"""Read when it is needed."""

LARGE = 1 << 20
"""Bytes from which a float constant is handed over as an input."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a model, from which parts are made.

    Attributes:
        nodes: in the order in which they run.
        opsets: of the model.
        ir_version: of the model.
        functions: of the model.
    """

    nodes: list[onnx.NodeProto]
    opsets: list[onnx.OperatorSetIdProto]
    ir_version: int | None
    functions: list[onnx.FunctionProto]

    @classmethod
    def of(cls, model: oir.Model) -> Nodes:
        """Of a model."""
        return cls(
            [oir.serde.serialize_node(node) for node in model.graph],
            [helper.make_opsetid(k, v) for k, v in model.opset_imports.items()],
            model.ir_version,
            [oir.to_proto(function) for function in model.functions.values()],
        )


class Part:
    """A session of some nodes.

    Attributes:
        given: names that it reads and that are no constants.
        handed: large constants, by name.
    """

    def __init__(
        self,
        whole: Nodes,
        nodes: Sequence[onnx.NodeProto],
        constants: Mapping[str, Constant],
        alive: Mapping[str, Any],
        kept: Sequence[str],
        *,
        always: Collection[str] = (),
        threads: int | None = None,
        custom_ops: Any = None,
        optimize: bool = False,
    ) -> None:
        """Open it.

        Args:
            whole: what the nodes are of.
            nodes: neighbours.
            constants: by name; those that the nodes read are taken.
            alive: what was made before, by name: dtypes and ranks of the inputs.
            kept: names that it gives out.
            always: constants that are handed over whatever their size.
            threads: inside operators.
            custom_ops: library with custom operators.
            optimize: all graph optimizations.

        Raises:
            CalibrationError: the nodes are no model by themselves, or an input is no array.
        """
        read = list(dict.fromkeys(name for node in nodes for name in names_read(node)))
        made = {name for node in nodes for name in node.output if name}
        held = {n: as_array(constants[n]) for n in read if n in constants}
        inner = {name for node in nodes for name in _captured(node)}
        self.handed = {
            n: a
            for n, a in held.items()
            if n in always or (a.nbytes >= LARGE and a.dtype == np.float32 and n not in inner)
        }
        small = [numpy_helper.from_array(a, n) for n, a in held.items() if n not in self.handed]
        del held
        self.given = [n for n in read if n not in made and n in alive]
        inputs = [_described(name, alive[name]) for name in self.given]
        inputs += [_described(name, array, fixed=True) for name, array in self.handed.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in kept]
        model = helper.make_model(
            helper.make_graph(nodes, "part", inputs, outputs, small),
            opset_imports=whole.opsets,
            ir_version=whole.ir_version,
            functions=whole.functions,
        )
        self._kept = list(kept)
        try:
            self._session: Session = open_session(
                model.SerializeToString(),
                threads=threads,
                optimize=optimize,
                custom_ops=custom_ops,
                variable_shapes=True,
                keep_arena=True,
            )
        except ModelError as e:
            raise CalibrationError(f"a part of the model does not run by itself: {e}") from e

    def run(
        self, values: Mapping[str, Any], others: Mapping[str, Array] | None = None
    ) -> dict[str, Any]:
        """What it gives out, by name.

        Args:
            values: what is alive.
            others: large constants to use instead of its own.

        Raises:
            CalibrationError: the runtime fails.
        """
        feed = {name: values[name] for name in self.given} | self.handed
        feed |= {n: a for n, a in (others or {}).items() if n in self.handed}
        try:
            return self._session.run(feed, self._kept)
        except ModelError as e:
            raise CalibrationError(f"a part of the model does not run by itself: {e}") from e


def as_array(constant: Constant) -> Array:
    """The constant's values, contiguous."""
    if isinstance(constant, np.ndarray):
        found = constant
    elif callable(constant):  # what a tensor is takes long to ask of a protocol
        found = constant()
    else:
        found = constant.numpy()
    return np.asarray(found, order="C")


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those inside its subgraphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        for graph in inner:
            for one in graph.node:
                yield from names_read(one)
            yield from (value.name for value in graph.output)


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the subgraphs of a node read."""
    own = set(node.input)
    return (name for name in names_read(node) if name not in own)


def _described(name: str, array: Any, *, fixed: bool = False) -> onnx.ValueInfoProto:
    if not isinstance(array, np.ndarray):
        raise CalibrationError(f"'{name}' is a {type(array).__name__}, not an array")
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    shape: list[int | None] = list(array.shape) if fixed else [None] * array.ndim
    return helper.make_tensor_value_info(name, kind, shape)
