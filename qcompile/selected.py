"""Outputs that a selection writes: judged by what the selection reads instead.

Rows of a TopK or a non-maximum suppression change places at the least difference, and which of a
detector's many near-empty boxes come last is chance: the error of such an output says little about the
artifact. So the boxes and scores that go into the selection are outputs, too, while a model is compiled;
they and not the selected rows are compared, and the artifact that is written gives out what the user's
model does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as oir

from qcompile.ir.graph import constant, is_graph_output, origin
from qcompile.ir.load import load_model
from qcompile.ir.macs import MAC_OPERATORS
from qcompile.ir.save import save_model

__all__ = ["NONE_SELECTED", "Selected", "expose", "exposed_pair", "find_selected", "hide"]

SELECTIONS = frozenset({"TopK", "NonMaxSuppression", "NonZero", "Unique", "ArgMax", "ArgMin"})


@dataclass(frozen=True)
class Selected:
    """What a selection at the end of a model writes and reads.

    Attributes:
        outputs: float output -> origin and operator of the selection that it stands behind.
        before: float tensors that the selections and what follows them read.
    """

    outputs: Mapping[str, str]
    before: tuple[str, ...]

    def judged(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs that are compared."""
        return {name: value for name, value in outputs.items() if name not in self.outputs}

    def findings(self) -> tuple[str, ...]:
        """For people."""
        read = ", ".join(f"'{name}'" for name in self.before)
        found = []
        for node in dict.fromkeys(self.outputs.values()):
            names = ", ".join(f"'{n}'" for n, one in self.outputs.items() if one == node)
            found.append(
                f"{node} selects what stands in {names}, and rows change places at the least "
                f"difference: judged by what is selected from, {read}"
            )
        return tuple(found)


NONE_SELECTED = Selected({}, ())


def find_selected(model: oir.Model) -> Selected:
    """Float outputs that stand behind a selection with nothing computed in between.

    A selection in front of products (a mixture of experts, a decoder's queries) is part of the network.
    """
    chosen: dict[oir.Value, oir.Node] = {}
    behind: dict[oir.Node, oir.Node] = {}
    for node in model.graph:
        found = next((chosen[v] for v in node.inputs if v in chosen), None)
        written = node.outputs
        if node.domain == "" and node.op_type in SELECTIONS and found is None:
            # the values of a TopK keep their order whatever changes places
            found, written = node, node.outputs[node.op_type == "TopK" :]
        if found is not None and node.op_type not in MAC_OPERATORS:
            chosen.update(dict.fromkeys(written, found))
            behind[node] = found
    told = {
        value.name or "": chosen[value]
        for value in model.graph.outputs
        if value in chosen and value.dtype == oir.DataType.FLOAT
    }
    ends = set(told.values())
    read = (v for node, end in behind.items() if end in ends for v in node.inputs)
    before = dict.fromkeys(v for v in read if v is not None and v not in chosen and _computed(v))
    if not before:
        return NONE_SELECTED
    named = {name: f"'{origin(node)}' ({node.op_type})" for name, node in told.items()}
    return Selected(named, tuple(v.name or "" for v in before))


def _computed(value: oir.Value) -> bool:
    made = value.producer() is not None and constant(value) is None
    return made and value.dtype == oir.DataType.FLOAT


def expose(model: oir.Model, names: Collection[str]) -> None:
    """Let the model give out these tensors, too."""
    for value in (v for node in model.graph for v in node.outputs):
        if value.name in names and not is_graph_output(value):
            if value.type is None:  # behind operators that shape inference does not know
                value.type = oir.TensorType(oir.DataType.FLOAT)
            model.graph.outputs.append(value)


def hide(model: oir.Model, names: Collection[str]) -> None:
    """Take back what ``expose`` did."""
    for index in reversed(range(len(model.graph.outputs))):
        if model.graph.outputs[index].name in names:
            del model.graph.outputs[index]


def exposed_pair(
    float_model: Path, exact: oir.Model, artifact: Path, work: Path
) -> tuple[Path, Path, Selected]:
    """Copies of two models that give out what the first one's selections read, and which those are.

    The models themselves where nothing is selected, or where the artifact has no such tensors.

    Args:
        float_model: its file.
        exact: the same, loaded; its outputs are changed.
        artifact: the other's file.
        work: folder for the copies.

    Raises:
        ModelError: the artifact cannot be read.
    """
    selected = find_selected(exact)
    if not selected.before:
        return float_model, artifact, NONE_SELECTED
    other = load_model(artifact).model
    written = {v.name for node in other.graph for v in node.outputs}
    if not written.issuperset(selected.before):
        return float_model, artifact, NONE_SELECTED
    paths = work / "float.onnx", work / "artifact.onnx"
    for model, path in zip((exact, other), paths, strict=True):
        expose(model, selected.before)
        save_model(model, path)
    return *paths, selected
