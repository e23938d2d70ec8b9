"""Everything an artifact knows of one layer: precision, reason, costs, error, ranges, what passes did."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as oir

from qcompile.artifact import LOCK
from qcompile.ir.errors import OptionError, OutputError
from qcompile.ir.graph import constant, origins
from qcompile.ir.shape_values import own_name
from qcompile.lock import Lock
from qcompile.subject import Subject

__all__ = ["explain_layer", "find_layer"]


def explain_layer(subject: Subject, name: str) -> dict[str, Any]:
    """What is known of the layer that ``name`` (origin id, tensor, or an unambiguous part) means.

    Raises:
        OptionError: no layer or several are meant; the nearest names are in the text.
        OutputError: the artifact cannot be read.
    """
    report = subject.report()
    model = oir.load(subject.layered)
    rows = {row["origin"]: row for row in report["layers"]}
    nodes = _by_origin(model)
    origin = find_layer(name, rows, nodes)
    row = rows.get(origin, {"origin": origin})
    node = nodes.get(origin)
    total = sum(layer["macs"] for layer in report["layers"])
    sensitivity = row.get("sensitivity")
    ranges = _ranges(subject.path)
    tensors = [] if node is None else _tensors(node, ranges)
    return {
        **row,
        "known": origin in rows,
        "mac_share": row["macs"] / total if total and row.get("macs") else None,
        "error_db": -10.0 * math.log10(sensitivity) if sensitivity else None,
        "costs": _costs(subject.path / "costs.json").get(origin, {}),
        "part_of": _host(node, origin),
        "stands_for": [o for o in (origins(node) if node else ()) if o != origin],
        "tensors": tensors,
        "notes": _notes(report, {origin, *(origins(node) if node else ())}, _names(tensors)),
    }


def find_layer(
    name: str, rows: Mapping[str, Any], nodes: Mapping[str, oir.Node] | None = None
) -> str:
    """The origin id that a user means: itself, a tensor it writes, or the only one that holds the text.

    Raises:
        OptionError: none, or several.
    """
    known = dict.fromkeys([*rows, *(nodes or {})])
    if name in known:
        return name
    writers = {
        v.name: o for o, n in (nodes or {}).items() for v in n.outputs if v.name and o in known
    }
    if name in writers:
        return writers[name]
    held = [o for o in known if name.lower() in o.lower()]
    if len(held) == 1:
        return held[0]
    if held:
        raise OptionError(
            f"'{name}' is part of {len(held)} layers' names: {', '.join(held[:5])}"
            + (", ..." if len(held) > 5 else "")
            + "; give one of them in full"
        )
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise OptionError(f"no layer is called '{name}'{hint}; `qcompile inspect --nodes` lists them")


def _by_origin(model: oir.Model) -> dict[str, oir.Node]:
    """Every origin id -> the node that stands for it; Q and DQ nodes stand for none."""
    found: dict[str, oir.Node] = {}
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            for one in origins(node):
                found.setdefault(one, node)
    return found


def _host(node: oir.Node | None, origin: str) -> str | None:
    """The layer into whose node this one was fused."""
    anchor = next(iter(origins(node)), None) if node is not None else None
    return anchor if anchor != origin else None


def _costs(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["layers"]
    except (OSError, ValueError, KeyError):
        return {}
    return dict(found)


def _ranges(folder: Path) -> dict[str, tuple[float, float, str]]:
    """Tensor -> low, high and the estimator that chose them; empty where none are stored.

    The lock's, which are those of the artifact: ranges.npz holds the statistics of channels before
    they were scaled, and each tensor's own best estimator.
    """
    path = folder / LOCK
    if not path.is_file():
        return {}
    try:
        known = Lock.read(path).ranges
    except OptionError as e:
        raise OutputError(f"'{path}' cannot be read ({e}); compile again") from e
    return {n: (float(np.min(r.low)), float(np.max(r.high)), r.method) for n, r in known.items()}


def _names(tensors: Iterable[Mapping[str, Any]]) -> list[str]:
    return [row["name"] for row in tensors if row["role"] != "constant" and row["name"]]


def _tensors(
    node: oir.Node, ranges: Mapping[str, tuple[float, float, str]]
) -> list[dict[str, Any]]:
    """Inputs and outputs with what is known of each; a quantized one under its float tensor's name."""
    found = [_tensor("input", v, ranges) for v in node.inputs if v is not None]
    return found + [_tensor("output", v, ranges) for v in node.outputs if v.name]


def _tensor(
    role: str, value: oir.Value, ranges: Mapping[str, tuple[float, float, str]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"role": role, "quantized": None}
    pair = value.producer() if role == "input" else _quantizer(value)
    source: oir.Value | None = value
    if pair is not None and pair.op_type in ("QuantizeLinear", "DequantizeLinear"):
        row["quantized"] = _quantization(pair)
        source = pair.inputs[0]
        behind = source.producer() if source is not None and role == "input" else None
        if behind is not None and behind.op_type == "QuantizeLinear":
            source = behind.inputs[0]
    shown = source if source is not None else value
    if constant(shown) is not None and role == "input":
        row["role"] = "constant"
    row |= {
        "name": shown.name,
        "dtype": None if shown.dtype is None else shown.dtype.name.lower(),
        "shape": None
        if shown.shape is None
        else [d if isinstance(d, int) else own_name(d.value) for d in shown.shape],
    }
    seen = ranges.get(shown.name or "")
    if seen is not None:
        row["range"] = {"low": seen[0], "high": seen[1], "method": seen[2]}
    return row


def _quantizer(value: oir.Value) -> oir.Node | None:
    return next((u.node for u in value.uses() if u.node.op_type == "QuantizeLinear"), None)


def _quantization(pair: oir.Node) -> dict[str, Any] | None:
    """Scales and zero points of a Q or DQ node; None where they are computed at run time."""
    inputs = [*pair.inputs, None][:3]
    scale, zero = constant(inputs[1]), constant(inputs[2])
    if scale is None:
        return None
    axis = pair.attributes.get("axis")
    return {
        "dtype": "uint8" if zero is None else str(zero.dtype),
        "scales": int(scale.size),
        "scale": [float(scale.min()), float(scale.max())],
        "zero_point": [0, 0] if zero is None else [int(zero.min()), int(zero.max())],
        "axis": int(axis.value) if axis is not None and scale.size > 1 else None,
    }


def _notes(
    report: Mapping[str, Any], names: Iterable[str], tensors: Iterable[str]
) -> list[dict[str, Any]]:
    """What loading, passes and learning said of a layer and of what it reads and writes, in order."""
    own = set(names)
    wanted = own | set(tensors)
    logs = [("load", report["notes"])] + [(p["name"], p["notes"]) for p in report["passes"]]
    return [
        {
            "by": who,
            "text": note["text"] if note["where"] in own else f"'{note['where']}': {note['text']}",
            "changed": note["changed"],
        }
        for who, notes in logs
        for note in notes
        if note["where"] in wanted
    ]
