"""Puts a parsed model into the one form that everything else relies on.

Afterwards nodes are sorted, names are unique across subgraphs, and every node carries its origin
id as name. What had to be changed is told in notes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx_ir as oir

from qcompile.ir.errors import ModelError
from qcompile.ir.graph import ORIGIN_KEY, forget_names, fresh_name, origin, subgraphs_of
from qcompile.ir.notes import Note

__all__ = [
    "assign_origins",
    "check_values",
    "describe",
    "fix_weight_inputs",
    "integer_operators",
    "rename_shadows",
    "sort_nodes",
    "unique_name",
]

_QUANTIZED = (
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantize",
    "MatMulInteger",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QLinear",
    "QuantizeLinear",
)
"""How the names of integer operators begin."""

_PAIRS = ("DequantizeLinear", "QuantizeLinear")

_KNOWN_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})


def assign_origins(graph: Iterable[oir.Node], prefix: str = "") -> list[Note]:
    """Give every node a stable unique origin id and let it be the node's name.

    The id is the node's name when that is unique in its graph, else "OpType:first_output"; nodes
    of subgraphs are prefixed by "parent/attribute/". Ids that a model already carries stay.
    """
    nodes = list(graph)
    names = Counter(n.name or "" for n in nodes if not origin(n))
    taken = {origin(n) for n in nodes if origin(n)}
    renamed = 0
    for node in nodes:
        own = origin(node)
        if not own:
            own = _one_line(node.name or "")
            if not own or names[node.name or ""] > 1:
                renamed += bool(own)
                own = f"{node.op_type}:{_one_line(_first_output(node))}"
            own = unique_name(prefix + own, taken)
            taken.add(own)
            node.metadata_props[ORIGIN_KEY] = own
            node.name = own
        elif not node.name:
            node.name = own
        for attr, inner in subgraphs_of(node):
            assign_origins(inner, f"{own}/{attr}/")
    if renamed:
        return [Note("", f"{renamed} nodes shared a name and got one of their own", True)]
    return []


def _first_output(node: oir.Node) -> str:
    return next((v.name for v in node.outputs if v.name), "")


def _one_line(name: str) -> str:
    return " ".join(name.split())


def unique_name(name: str, taken: set[str]) -> str:
    """``name``, or ``name#2``, ... if that is taken."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}#{count}"
    return candidate


def check_values(model: oir.Model) -> None:
    """Check that everything read is written somewhere.

    Raises:
        ModelError: names the node and the tensor.
    """
    for graph in [model.graph, *model.graph.subgraphs()]:
        for node in graph:
            for value in node.inputs:
                if value is not None and not _defined(value):
                    what = f"node '{node.name}' ({node.op_type})" if node.name else node.op_type
                    raise ModelError(
                        f"{what} reads '{value.name}', which nothing "
                        "in the model writes; the model is damaged or was cut out of a larger one"
                    )
        for output in graph.outputs:
            if not _defined(output):
                raise ModelError(f"the graph output '{output.name}' is written by nothing")


def _defined(value: oir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def sort_nodes(model: oir.Model) -> list[Note]:
    """Put the nodes of graph and functions into topological order, if they are not.

    Raises:
        ModelError: nodes read one another in a circle.
    """
    graphs = [("", model.graph), *((f.name, f.graph) for f in model.functions.values())]
    notes: list[Note] = []
    for name, graph in graphs:
        if _sorted(graph, set()):
            continue
        try:
            graph.sort()
        except ValueError as e:
            raise ModelError("nodes of the model read one another in a circle") from e
        notes.append(Note(name, "nodes put into topological order", True))
    return notes


def _sorted(graph: oir.Graph, written: set[oir.Value]) -> bool:
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() is not None and value not in written:
                return False
        for _, inner in subgraphs_of(node):
            if not _sorted(inner, written):
                return False
        written.update(node.outputs)
    return True


def rename_shadows(model: oir.Model) -> list[Note]:
    """Rename values of subgraphs that have the name of a value of an enclosing graph."""
    forget_names(model.graph)
    renamed = sum(_rename_shadows(model.graph, model.graph, set()))
    forget_names(model.graph)
    if not renamed:
        return []
    text = f"{renamed} tensors of subgraphs had the name of an outer one and were renamed"
    return [Note("", text, True)]


def _rename_shadows(root: oir.Graph, graph: oir.Graph, outer: set[str]) -> Iterator[int]:
    own: set[str] = set()
    for value in _values(graph):
        if not value.name:
            continue
        if value.name in outer or (value.name in own and not value.is_graph_input()):
            value.name = fresh_name(root, value.name)
            yield 1
        own.add(value.name)
    for node in graph:
        for _, inner in subgraphs_of(node):
            yield from _rename_shadows(root, inner, outer | own)


def _values(graph: oir.Graph) -> list[oir.Value]:
    """All values a graph defines, each once."""
    found = dict.fromkeys([*graph.inputs, *graph.initializers.values()])
    found.update(dict.fromkeys(v for node in graph for v in node.outputs))
    return list(found)


def fix_weight_inputs(model: oir.Model, fix: bool | None) -> list[Note]:
    """Take initializers out of the graph's inputs, where they are constants.

    Before IR 4 they must be listed there. From IR 4 on a listed one is a default that callers may
    override; but where all are listed, an exporter did it (PyTorch up to 1.4, and later ones with
    ``keep_initializers_as_inputs``), and nobody means to hand in weights with every call.

    Args:
        model: is changed.
        fix: True takes all out, False none (from IR 4 on), None decides as above.
    """
    inputs, weights = model.graph.inputs, model.graph.initializers
    both = [v for v in inputs if v.name in weights]
    if not both:
        return []
    count = f"{len(both)} weights are" if len(both) > 1 else f"weight '{both[0].name}' is"
    by_exporter = len(both) == len(weights) > 1
    if model.ir_version >= 4 and not (by_exporter if fix is None else fix):
        text = f"{count} also graph inputs: callers may override them, so they are no constants"
        return [Note("", f"{text}; --fix-weights takes them as constants")]
    kept = [v for v in inputs if v.name not in weights]
    inputs.clear()
    inputs.extend(kept)
    if model.ir_version < 4:
        model.ir_version = 4
        return [Note("", "IR version raised to 4, where weights need not be graph inputs", True)]
    return [Note("", f"{count} no longer graph inputs: taken as constants", True)]


def describe(model: oir.Model) -> list[Note]:
    """What a model holds that is left as it is: subgraphs, custom operators, integer operators."""
    nodes = list(model.graph.all_nodes())
    notes: list[Note] = []
    holders = Counter(n.op_type for n in model.graph if subgraphs_of(n))
    if holders:
        notes.append(Note("", f"subgraphs stay in float: {_counts(holders)}"))
    custom = Counter(f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in _KNOWN_DOMAINS)
    if custom:
        notes.append(Note("", f"custom operators are left alone: {_counts(custom)}"))
    pairs = Counter(n.op_type for n in nodes if n.op_type in _PAIRS)
    integer = integer_operators(model)
    if pairs:
        notes.append(Note("", f"the model brings its own scales, which are kept: {_counts(pairs)}"))
    if integer:
        text = f"integer operators in the model are kept as they are: {_counts(integer)}"
        notes.append(Note("", text))
    return notes


def integer_operators(model: oir.Model) -> Counter[str]:
    """Operators that another quantizer wrote, with their numbers, without Q/DQ pairs."""
    types = (n.op_type for n in model.graph.all_nodes())
    return Counter(t for t in types if t.startswith(_QUANTIZED) and t not in _PAIRS)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counter.items()))
