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

from qcompile.data.inputs import Feed
from qcompile.ir.errors import CalibrationError
from qcompile.parts import Constant, Nodes, Part, as_array, names_read

__all__ = ["Stepper"]

Array = npt.NDArray[Any]

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
        self._whole = Nodes.of(model)
        self.nodes = self._whole.nodes
        self.position = 0
        # Weights stay where they lie (mapped files) until the nodes run that read them.
        self._constants: dict[str, Constant] = {
            name: value.const_value
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self._known = set(self._constants)
        inputs = {value.name for value in model.graph.inputs}
        self.live = [{k: v for k, v in feed.items() if k in inputs} for feed in feeds]
        self._last: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            self._last.update(dict.fromkeys(names_read(node), i))
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
            self._run(part, kept)
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

    def _run(self, part: Sequence[onnx.NodeProto], kept: Sequence[str]) -> None:
        opened = Part(
            self._whole,
            part,
            self._constants,
            self.live[0],
            kept,
            threads=self._threads,
            custom_ops=self._custom_ops,
        )
        for values in self.live:
            found = opened.run(values)
            values.update({name: self._kept(array) for name, array in found.items()})

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
        return names_read(self.nodes[index])

    def value(self, sample: int, name: str) -> Any:
        """What is alive under a name for one sample; a constant is the same for all."""
        live = self.live[sample]
        return live[name] if name in live else as_array(self._constants[name])

    def held_bytes(self) -> int:
        """Of the arrays that are alive."""
        return sum(a.nbytes for values in self.live for a in values.values())
