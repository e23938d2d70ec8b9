"""Acts on a graph: origin ids, constants, insertion and replacement. The only module that edits edges.

The graph is an ``onnx_ir.Model`` (imported as ``oir`` throughout): it keeps what a model holds
(metadata, quantization annotations, overridable initializers, external data as memory maps).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.errors import PassError
from qcompile.ir.on_disk import kept

__all__ = [
    "ORIGIN_KEY",
    "add_initializer",
    "attribute",
    "constant",
    "default_opset",
    "drop_unused",
    "forget_names",
    "fresh_name",
    "insert_after_value",
    "is_graph_output",
    "new_value",
    "node_order",
    "origin",
    "origins",
    "register_constant",
    "replace_value",
    "set_origin",
    "single_consumer",
    "subgraphs_of",
    "used_names",
    "writer_past_cast",
]

ORIGIN_KEY = "qcompile.origin"
"""metadata_props key: the origin ids a node stands for, joined by a newline; the first names it."""


def origins(node: oir.Node) -> tuple[str, ...]:
    """All origin ids that a node stands for (several after a fusion), the anchor first."""
    text = node.metadata_props.get(ORIGIN_KEY, "")
    return tuple(text.split("\n")) if text else ()


def origin(node: oir.Node) -> str:
    """The origin id that names a node in plan and report; "" for nodes that a pass made up."""
    return next(iter(origins(node)), "")


def set_origin(node: oir.Node, sources: Iterable[oir.Node | str]) -> None:
    """Let a node stand for ``sources`` (nodes or ids), the first being its anchor; drops repeats."""
    ids: dict[str, None] = {}
    for source in sources:
        for one in (source,) if isinstance(source, str) else origins(source):
            ids[one] = None
    if ids:
        node.metadata_props[ORIGIN_KEY] = "\n".join(ids)


def default_opset(model: oir.Model) -> int:
    """Version of the default operator set that the model imports."""
    return int(model.opset_imports.get("", 1))


def constant(value: oir.Value | None) -> npt.NDArray[np.generic] | None:
    """The array of a constant (initializer that no caller may override, or Constant node), else None.

    The array may be a read-only view of mapped external data; copy before writing.
    """
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None and (value.is_initializer() or _constant_node(value)):
        return value.const_value.numpy()
    node = _constant_node(value)
    if node is None:
        return None
    tensor = oir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _constant_node(value: oir.Value) -> oir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == "Constant" and node.domain == "" else None


def attribute(node: oir.Node, name: str, default: object = None) -> object:
    """The Python value of an attribute (tuples for lists), or ``default`` when absent."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value: object = found.value
    return tuple(value) if isinstance(value, (list, tuple)) else value


def is_graph_output(value: oir.Value) -> bool:
    """Whether the value is an output of its graph."""
    return bool(value.is_graph_output())


def single_consumer(value: oir.Value) -> oir.Node | None:
    """The only node that reads a value (which is no graph output), else None.

    A reader within a subgraph does not count: it may run never, or many times.
    """
    uses = list(value.uses())
    if len(uses) != 1 or is_graph_output(value):
        return None
    node = uses[0].node
    return node if node.graph is value.graph else None


_taken: weakref.WeakKeyDictionary[oir.Graph, set[str]] = weakref.WeakKeyDictionary()


def fresh_name(graph: oir.Graph, base: str) -> str:
    """A value name that nothing in the graph or its subgraphs uses: ``base``, else ``base_1``, ...

    The name counts as taken from now on. All names are collected once and remembered until
    ``forget_names`` (the verifier does that), so thousands of names cost one look at the graph.
    A pass that names values by itself must not rely on ``fresh_name`` knowing them.
    """
    taken = _taken.get(graph)
    if taken is None:
        taken = _taken[graph] = used_names(graph)
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


def forget_names(graph: oir.Graph) -> None:
    """Let the next ``fresh_name`` collect all names anew."""
    _taken.pop(graph, None)


def used_names(graph: oir.Graph) -> set[str]:
    """Every value name in the graph and its subgraphs."""
    names = {v.name for v in graph.inputs if v.name} | set(graph.initializers)
    for node in graph.all_nodes():
        names.update(v.name for v in node.outputs if v.name)
        for _, inner in subgraphs_of(node):
            names |= set(inner.initializers) | {v.name for v in inner.inputs if v.name}
    return names


def subgraphs_of(node: oir.Node) -> list[tuple[str, oir.Graph]]:
    """(attribute name, graph) of the graphs a node holds; lists of graphs are numbered."""
    found: list[tuple[str, oir.Graph]] = []
    for name, attr in node.attributes.items():
        if attr.is_ref():
            continue
        if attr.type == oir.AttributeType.GRAPH:
            found.append((name, attr.as_graph()))
        elif attr.type == oir.AttributeType.GRAPHS:
            found += [(f"{name}{i}", g) for i, g in enumerate(attr.as_graphs())]
    return found


def add_initializer(graph: oir.Graph, base: str, array: npt.NDArray[np.generic]) -> oir.Value:
    """Register ``array`` as an initializer under a fresh name derived from ``base``."""
    return register_constant(graph, fresh_name(graph, base), array)


def register_constant(graph: oir.Graph, name: str, array: npt.NDArray[np.generic]) -> oir.Value:
    """Register ``array`` as the initializer ``name``, which must be free."""
    # not oir.tensor: it asks of what kind the value is, which took a quarter of a build's time
    tensor = oir.Tensor(kept(array), name=name)
    value = oir.Value(
        name=name,
        type=oir.TensorType(tensor.dtype),
        shape=oir.Shape(array.shape),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def new_value(
    graph: oir.Graph,
    op_type: str,
    inputs: Sequence[oir.Value | None],
    kind: oir.DataType | None,
    base: str,
    **attributes: int,
) -> tuple[oir.Node, oir.Value]:
    """A node that stands nowhere yet, and its result, both under fresh names derived from ``base``."""
    name = fresh_name(graph, f"{base}_{op_type}")
    node = oir.node(op_type, inputs, attributes=attributes, name=name)
    out = node.outputs[0]
    out.name = fresh_name(graph, f"{name}_out")
    out.type = None if kind is None else oir.TensorType(kind)
    return node, out


def writer_past_cast(value: oir.Value | None) -> oir.Node | None:
    """The node that writes a value, or what a Cast makes it of."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Cast":
        return producer
    read = producer.inputs[0]
    return None if read is None else read.producer()


def replace_value(old: oir.Value, new: oir.Value) -> None:
    """Let every consumer of ``old`` read ``new``; a graph output keeps its name, type and shape.

    For a graph output ``new`` takes over the name. Where it cannot (it is a graph input, an
    initializer, another output, or of an outer graph) an Identity writes the output.
    """
    if not is_graph_output(old):
        old.replace_all_uses_with(new)
        return
    graph = old.graph
    if graph is None:
        raise PassError(f"value '{old.name}' belongs to no graph")
    name = old.name
    bound = new.is_graph_input() or new.is_initializer() or is_graph_output(new)
    written = new
    if bound or new.graph is not graph:
        identity = oir.node("Identity", [new], name=fresh_name(graph, f"{name}_identity"))
        # a graph ends with its outputs, so that everything that may be read stands before
        graph.append(identity)
        written = identity.outputs[0]
    written.shape = old.shape if old.shape is not None else new.shape
    written.type = old.type if old.type is not None else new.type
    written.doc_string = old.doc_string
    written.metadata_props.update(old.metadata_props)
    for use in list(old.uses()):
        if use.node is not written.producer():
            use.node.replace_input_with(use.idx, new)
    for i, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[i] = written
    old.name = fresh_name(graph, f"{name}_replaced")
    written.name = name


def insert_after_value(
    graph: oir.Graph, value: oir.Value, nodes: Sequence[oir.Node], result: oir.Value
) -> None:
    """Put a chain behind ``value``: its consumers then read ``result``.

    ``nodes`` are inserted behind the producer (or first, for graph inputs); those that read
    ``value`` themselves keep reading it, and a graph output stays the value it was.
    """
    inside = set(nodes)
    uses = [u for u in value.uses() if u.node not in inside]
    producer = value.producer()
    if producer is None:
        first = next(iter(graph), None)
        if first is None:
            graph.extend(nodes)
        else:
            graph.insert_before(first, nodes)
    else:
        graph.insert_after(producer, nodes)
    for use in uses:
        use.node.replace_input_with(use.idx, result)


def node_order(graph: oir.Graph) -> dict[oir.Node, int]:
    """Node -> position in the (topological) order of the graph."""
    return {node: i for i, node in enumerate(graph)}


def drop_unused(model: oir.Model) -> int:
    """Remove nodes and initializers that nothing reads; returns how many. Subgraphs included."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    before = sum(1 for _ in _everything(model.graph))
    RemoveUnusedNodesPass()(model)
    return before - sum(1 for _ in _everything(model.graph))


def _everything(graph: oir.Graph) -> Iterator[object]:
    yield from graph.all_nodes()
    yield from graph.initializers.values()
