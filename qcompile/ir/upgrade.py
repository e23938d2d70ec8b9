"""Raises the opset of a model, operator by operator.

ONNX's own version converter needs the whole model (weights included) in one proto and fails on
models it does not know all of. Here each step from one opset to the next looks only at the nodes
whose operator changed in it: a rule rewrites them, or the operator is known to mean the same, or
the upgrade stops before that step and says which node held it up.
"""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as oir

from qcompile.ir.errors import ModelError
from qcompile.ir.graph import default_opset, forget_names, origin
from qcompile.ir.notes import Note
from qcompile.ir.shapes import infer_shapes
from qcompile.ir.upgrade_edit import BlockedError, Edit, Editor
from qcompile.ir.upgrade_rules import RULES
from qcompile.ir.upgrade_same import NEWEST, SAME

__all__ = ["upgrade_graph", "upgrade_opset"]


def upgrade_opset(model: oir.Model, to: int) -> tuple[oir.Model, list[Note]]:
    """The model (edited in place) at opset ``to``, or at the highest below it that is safe.

    A model already at ``to`` or above is returned as it is. Shapes must have been inferred
    (Softmax and Clip need rank and dtype). Subgraphs take part; their opset is the model's.

    Raises:
        ModelError: ``to`` is no opset.
    """
    if to < 1:
        raise ModelError(f"opset {to} does not exist")
    before = default_opset(model)
    notes = upgrade_graph(model.graph, to)
    after = default_opset(model)
    if after > before:
        infer_shapes(model)
        notes.insert(0, Note("", f"opset raised from {before} to {after}", True))
    return model, notes


def upgrade_graph(graph: oir.Graph, to: int, *, function: bool = False) -> list[Note]:
    """Raise the default opset that a graph (or a function's body) imports; see ``upgrade_opset``."""
    forget_names(graph)
    editor = Editor(graph, function)
    done: Counter[tuple[str, str, int]] = Counter()
    notes: list[Note] = []
    for step in range(graph.opset_imports.get("", to) + 1, to + 1):
        try:
            edits = [(n, e) for n in list(graph.all_nodes()) for e in _edits(n, step, editor)]
        except _StopError as stop:
            notes.append(Note(stop.where, f"opset stays at {step - 1} (asked: {to}): {stop}"))
            break
        for node, edit in edits:
            text = RULES[node.op_type, step][1]
            done[node.op_type, text, step] += 1
            edit()
        graph.opset_imports[""] = step
    forget_names(graph)
    return [
        Note("", f"{count} {op}: {text} (opset {step})", True)
        for (op, text, step), count in sorted(done.items(), key=lambda item: item[0][2])
    ] + notes


class _StopError(Exception):
    def __init__(self, node: oir.Node, reason: str) -> None:
        super().__init__(f"{node.op_type} '{node.name}' {reason}")
        self.where = origin(node)


def _edits(node: oir.Node, step: int, editor: Editor) -> list[Edit]:
    """What the node needs in this step; nothing is edited yet."""
    if node.domain:
        return []
    name = node.op_type
    rule = RULES.get((name, step))
    if rule is not None:
        try:
            edit = rule[0](node, editor)
        except BlockedError as e:
            raise _StopError(node, str(e)) from e
        return [edit] if edit is not None else []
    if step > NEWEST:
        raise _StopError(node, f"may have changed in opset {step}, which is not known yet")
    if name in SAME.get(step, frozenset()):
        return []
    since = _since(name, step)
    if since == step:
        raise _StopError(node, f"changed in opset {step} in a way that is not handled")
    return []


def _since(name: str, opset: int) -> int | None:
    try:
        return int(onnx.defs.get_schema(name, opset, "").since_version)
    except onnx.defs.SchemaError:
        return None
