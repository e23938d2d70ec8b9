"""Tags in the names of a model's nodes and tensors, that survive ONNX Runtime's optimizations.

ONNX Runtime drops node metadata, and names what a fusion makes after a node of it *or* after its
output tensor, with additions ("..._nchwc", "..._token_4", "fused ..."). Names of a model may also
be parts of each other. So a copy of the model is opened whose names are unmistakable: ``zqc12n`` is
node 12, ``zqc12t0z`` its first output. Structure and weights are the same, so is what is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from qcompile.ir.errors import ModelError
from qcompile.ir.graph import ORIGIN_KEY

__all__ = ["EXTERNAL_FOLDER", "Source", "Tagged", "tag_model", "tags"]

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""Session option: where a model given as bytes finds its external data."""

_TAG = re.compile(r"zqc(\d+)(?:n|t\d+z)")
_WORD = re.compile(r"zqc(\d+)n")


@dataclass(frozen=True)
class Source:
    """A node of the model file.

    Attributes:
        index: position over all graphs, as the tags count.
        op_type: operator.
        domain: of the operator.
        name: in the file.
        origins: origin ids in its metadata, else its name (first output, when it has none).
        inputs: tensors read, by the file's names, "" for an input left out.
        outputs: tensors written.
        inner: whether it stands in a subgraph.
    """

    index: int
    op_type: str
    domain: str
    name: str
    origins: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    inner: bool


@dataclass(frozen=True)
class Tagged:
    """A model under tagged names.

    Attributes:
        model: serialized; external data stay where they are.
        folder: of the model's file, for external data.
        sources: its nodes; index = tag.
        outputs: graph output (these keep their names) -> index of the node that writes it.
        constants: initializers, and outputs of Constant nodes.
        shapes: initializer -> its shape.
    """

    model: bytes
    folder: Path
    sources: tuple[Source, ...]
    outputs: Mapping[str, int]
    constants: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]

    def plain(self, text: str) -> str:
        """A message of the runtime with the file's names in place of tags."""
        return _WORD.sub(lambda found: self.sources[int(found[1])].name or found[0], text)

    def found(self, names: Iterable[str]) -> tuple[int, ...]:
        """The nodes whose tags stand in any of ``names``, or that write a graph output of them."""
        hits: dict[int, None] = {}
        for name in names:
            if name in self.outputs:
                hits[self.outputs[name]] = None
            hits.update(dict.fromkeys(tags(name)))
        return tuple(hits)


def tags(name: str) -> tuple[int, ...]:
    """Indices of the nodes whose tags stand in a name.

    >>> tags("fused zqc3n_zqc12t0z_nchwc")
    (3, 12)
    """
    return tuple(int(found) for found in _TAG.findall(name))


def tag_model(path: Path) -> Tagged:
    """Read a model and give its nodes and tensors tagged names; the file stays as it is.

    Raises:
        ModelError: not readable as ONNX.
    """
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as e:
        raise ModelError(f"'{path}' cannot be read as ONNX: {e}") from e
    tagger = _Tagger({o.name for o in model.graph.output})
    tagger.visit(model.graph, {}, inner=False)
    return Tagged(
        model=model.SerializeToString(),
        folder=Path(path).resolve().parent,
        sources=tuple(tagger.sources),
        outputs=tagger.outputs,
        constants=frozenset(tagger.constants),
        shapes=tagger.shapes,
    )


class _Tagger:
    def __init__(self, keep: set[str]) -> None:
        self.keep = keep
        self.sources: list[Source] = []
        self.outputs: dict[str, int] = {}
        self.constants: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}

    def visit(self, graph: onnx.GraphProto, outer: Mapping[str, str], *, inner: bool) -> None:
        """Rename in place; a subgraph sees the renamed tensors of the graphs around it."""
        renamed = dict(outer)
        # a name that the subgraph defines itself hides the outer one
        own = [i.name for i in graph.input] + [t.name for t in graph.initializer]
        for name in own:
            renamed.pop(name, None)
        self.constants.update(t.name for t in graph.initializer)
        self.shapes.update((t.name, tuple(t.dims)) for t in graph.initializer)
        self.constants.update(t.values.name for t in graph.sparse_initializer)
        for node in graph.node:
            index = len(self.sources)
            self.sources.append(_source(index, node, inner))
            if node.op_type == "Constant":
                self.constants.update(node.output)
                for one in node.attribute:
                    if one.name == "value":
                        self.shapes[node.output[0]] = tuple(one.t.dims)
            node.name = f"zqc{index}n"
            _replace(node.input, [renamed.get(name, name) for name in node.input])
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self.visit(attribute.g, renamed, inner=True)
                for one in attribute.graphs:
                    self.visit(one, renamed, inner=True)
            for position, name in enumerate(node.output):
                if not inner and name in self.keep:
                    self.outputs[name] = index
                elif name:
                    renamed[name] = f"zqc{index}t{position}z"
                    node.output[position] = renamed[name]
        for value in [*graph.value_info, *(graph.output if inner else [])]:
            value.name = renamed.get(value.name, value.name)


def _replace(field: object, names: list[str]) -> None:
    del field[:]  # type: ignore[attr-defined]
    field.extend(names)  # type: ignore[attr-defined]


def _source(index: int, node: onnx.NodeProto, inner: bool) -> Source:
    recorded = next((p.value for p in node.metadata_props if p.key == ORIGIN_KEY), "")
    first = next((name for name in node.output if name), "")
    return Source(
        index=index,
        op_type=node.op_type,
        domain="" if node.domain == "ai.onnx" else node.domain,
        name=node.name,
        origins=tuple(recorded.split("\n")) if recorded else (node.name or first,),
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        inner=inner,
    )
