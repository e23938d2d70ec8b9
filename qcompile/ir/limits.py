"""Models newer than the runtime: brought down to what it opens, where nothing is lost by it."""

from __future__ import annotations

import onnx
import onnx_ir as oir

from qcompile.ir.errors import ModelError
from qcompile.ir.graph import default_opset
from qcompile.ir.notes import Note
from qcompile.ir.save import needed_ir_version

__all__ = ["fit_runtime"]


def fit_runtime(model: oir.Model, opset_limit: int | None, ir_limit: int | None) -> list[Note]:
    """Lower opset and IR version to the runtime's limits.

    An opset is lowered only if every operator used is the same in both (its definition is older).

    Raises:
        ModelError: an operator or type of the model is newer than the runtime.
    """
    notes: list[Note] = []
    opset = default_opset(model)
    if opset_limit is not None and opset > opset_limit:
        newer = sorted(_newer(model, opset, opset_limit))
        if newer:
            raise ModelError(
                f"the model is of opset {opset}, the runtime opens {opset_limit}, and "
                f"{', '.join(newer[:5])} changed in between; update the runtime or export with "
                f"opset {opset_limit}"
            )
        model.opset_imports[""] = opset_limit
        notes.append(Note("", f"opset lowered from {opset} to the runtime's {opset_limit}", True))
    if ir_limit is not None and model.ir_version > ir_limit:
        needed = needed_ir_version(model)
        if needed > ir_limit:
            raise ModelError(
                f"the model holds types of IR version {needed}, the runtime opens {ir_limit}; "
                "update the runtime"
            )
        old, model.ir_version = model.ir_version, ir_limit
        notes.append(Note("", f"IR version lowered from {old} to the runtime's {ir_limit}", True))
    return notes


def _newer(model: oir.Model, opset: int, limit: int) -> set[str]:
    found: set[str] = set()
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        try:
            since = onnx.defs.get_schema(node.op_type, opset, "").since_version
        except onnx.defs.SchemaError:
            continue
        if since > limit:
            found.add(node.op_type)
    return found
