"""Model-local functions inlined, so that passes see operators only.

The nodes of a body get the call's origin id as prefix: ``call/inner``. An inner call adds its own
step: ``call/inner call/inner``. So an id says where a node comes from however deep it lay.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import onnx_ir as oir
from onnx_ir.passes.common import InlinePass

from qcompile.ir.errors import ModelError
from qcompile.ir.graph import ORIGIN_KEY, origin
from qcompile.ir.notes import Note
from qcompile.ir.tidy import assign_origins, unique_name

__all__ = ["inline_functions"]

_STEP_KEY = "qcompile.step."


def inline_functions(model: oir.Model) -> list[Note]:
    """Inline every function; call nodes must have their origin ids already.

    Raises:
        ModelError: functions call one another in a circle, or a body cannot be inlined.
    """
    if not model.functions:
        return []
    _drop_unused(model)
    order = _callers_first(model)
    for rank, key in enumerate(order):
        _name_steps(model.functions[key].graph, rank)
    notes = _unify_opsets(model)
    count = len(model.functions)
    try:
        InlinePass()(model)
    except Exception as e:
        cause: BaseException = e
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(
            f"the model's local functions cannot be inlined: {' '.join(str(cause).split())[:300]}; "
            "inline them with onnx.inliner before"
        ) from e
    taken = {origin(n) for n in model.graph.all_nodes() if not _steps(n)}
    for node in model.graph.all_nodes():
        path = _steps(node)
        if path:
            node.name = unique_name("/".join([origin(node), *path]), taken)
            taken.add(node.name)
            node.metadata_props[ORIGIN_KEY] = node.name
            for step in [k for k in node.metadata_props if k.startswith(_STEP_KEY)]:
                del node.metadata_props[step]
    if count:
        notes.append(Note("", f"{count} model-local functions inlined", True))
    return notes


def _drop_unused(model: oir.Model) -> None:
    reached: set[oir.OperatorIdentifier] = set()
    graphs = [model.graph]
    while graphs:
        called = {n.op_identifier() for n in graphs.pop().all_nodes()} - reached
        for key in [k for k in called if k in model.functions]:
            reached.add(key)
            graphs.append(model.functions[key].graph)
    for key in [k for k in model.functions if k not in reached]:
        del model.functions[key]


def _steps(node: oir.Node) -> list[str]:
    """The node's names on the way from the outermost call inwards."""
    steps = {
        int(k[len(_STEP_KEY) :]): v
        for k, v in node.metadata_props.items()
        if k.startswith(_STEP_KEY)
    }
    return [steps[rank] for rank in sorted(steps)]


def _callers_first(model: oir.Model) -> list[oir.OperatorIdentifier]:
    calls = {
        key: {n.op_identifier() for n in f.all_nodes() if n.op_identifier() in model.functions}
        for key, f in model.functions.items()
    }
    try:
        return list(TopologicalSorter(calls).static_order())[::-1]
    except CycleError as e:
        names = " -> ".join(name for _, name, _ in e.args[1])
        raise ModelError(f"the model's functions call one another in a circle: {names}") from e


def _name_steps(body: oir.Graph, rank: int) -> None:
    """Note each node's own name under a key of its function; ranks rise along every call path."""
    assign_origins(body)
    for node in body.all_nodes():
        node.metadata_props[f"{_STEP_KEY}{rank}"] = node.metadata_props.pop(ORIGIN_KEY)


def _unify_opsets(model: oir.Model) -> list[Note]:
    """Let model and functions import the same opsets, since a body takes the model's when inlined.

    The older side is upgraded.

    Raises:
        ModelError: an operator of the older side cannot be written in the newer opset.
    """
    from qcompile.ir.upgrade import upgrade_graph

    newest = max(
        [model.opset_imports.get("", 1), *(f.opset_imports.get("", 1) for f in _bodies(model))]
    )
    notes: list[Note] = []
    for graph in [model.graph, *_bodies(model)]:
        if "" not in graph.opset_imports or graph.opset_imports[""] == newest:
            continue
        before = graph.opset_imports[""]
        done = upgrade_graph(graph, newest, function=graph is not model.graph)
        if graph is model.graph:
            text = f"opset raised from {before} to {newest}, which the model's functions are in"
            notes += [Note("", text, True), *done]
        if graph.opset_imports[""] != newest:
            raise ModelError(
                f"function '{graph.name}' is written for opset {graph.opset_imports['']}, the model "
                f"for {newest}, and that cannot be written in one: {done[-1].text}; export the model anew"
            )
    return notes


def _bodies(model: oir.Model) -> list[oir.Graph]:
    return [f.graph for f in model.functions.values()]
