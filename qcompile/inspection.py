"""What a model holds and what a target could run of it in integers, as plain data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as oir

from qcompile.data.inputs import random_feeds
from qcompile.ir.errors import QCompileError
from qcompile.ir.graph import constant
from qcompile.ir.shape_values import own_name
from qcompile.prepare import Prepared
from qcompile.scratch import scratch_folder
from qcompile.trace import mac_counts

__all__ = ["inspection"]


def inspection(prepared: Prepared, size: int, custom_ops: Path | None = None) -> dict[str, Any]:
    """What `qcompile inspect` shows.

    Args:
        prepared: the model.
        size: of the file and its side files, in bytes.
        custom_ops: library with custom operators.
    """
    original, model = prepared.loaded.model, prepared.model
    able = {s.origin for s in prepared.sites if s.role == "compute" and not s.reason}
    weights = {s.origin: _weight_bytes(s.node) for s in prepared.sites}
    held = sum(_bytes(v) for v in model.graph.initializers.values())
    counts, at, failure = _macs(prepared, custom_ops)
    total = sum(counts.values())
    return {
        "bytes": size,
        "ir_version": original.ir_version,
        "opset": original.opset_imports.get("", 0),
        "inputs": [str(spec) for spec in prepared.inputs],
        # the user's own, for preparing may give the dimensions other names
        "outputs": [_port(v) for v in original.graph.outputs],
        "nodes": sum(1 for _ in original.graph),
        "prepared_nodes": sum(1 for _ in model.graph),
        "operators": dict(Counter(n.op_type for n in model.graph).most_common()),
        "weight_bytes": held,
        "quantizable_weight_share": sum(weights[o] for o in able) / held if held else None,
        "macs": total or None,
        "macs_at": at,
        "macs_unknown": failure,
        "quantizable_mac_share": sum(counts.get(o, 0) for o in able) / total if total else None,
        "notes": [f"{n.where}: {n.text}" if n.where else n.text for n in prepared.notes],
        "sites": [
            {
                "origin": s.origin,
                "op_type": s.op_type,
                "role": s.role,
                "reason": s.reason,
                "output": _shape(s.node.outputs[0]),
                "weight_bytes": weights[s.origin],
                "macs": counts.get(s.origin),
            }
            for s in prepared.sites
        ],
    }


def _macs(
    prepared: Prepared, custom_ops: Path | None
) -> tuple[dict[str, int], dict[str, list[int]], str]:
    """Multiply-adds by origin for one made-up feed, its shapes, and why there are none."""
    owners = {s.node: s.origin for s in prepared.sites}
    try:
        feed = random_feeds(prepared.inputs, 1)[0]
        with scratch_folder() as work:
            found = mac_counts(prepared.model, feed, work, custom_ops)
    except QCompileError as e:
        return {}, {}, str(e)
    counts = {owners.get(node, node.name or ""): count for node, count in found.items()}
    return counts, {name: list(array.shape) for name, array in feed.items()}, ""


def _weight_bytes(node: oir.Node) -> int:
    return sum(_bytes(v) for v in node.inputs if v is not None and constant(v) is not None)


def _bytes(value: oir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0


def _port(value: oir.Value) -> str:
    kind = "?" if value.dtype is None else str(np.dtype(value.dtype.numpy()))
    return f"{value.name}: {kind}[{_shape(value)}]"


def _shape(value: oir.Value) -> str:
    if value.shape is None:
        return "?"
    dims = [d if isinstance(d, int) else own_name(d.value) for d in value.shape]
    return "x".join("?" if d is None else str(d) for d in dims)
