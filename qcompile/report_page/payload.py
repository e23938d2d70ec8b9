"""From report.json to what the page's script draws: numbers by index, a layout, few bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qcompile.report_page.layout import lay_out
from qcompile.report_page.packing import Names, pack, pack_column

__all__ = ["as_script", "make_payload"]

TENSOR_BYTES, WEIGHT_BYTES = 2_500_000, 1_200_000
"""Histograms get fewer bins where they would need more than this, so that a page stays below 6 MB."""

LEAST_WIDTH, MOST_WIDTH = 74.0, 230.0
LEAST_HEIGHT, MOST_HEIGHT = 24.0, 72.0
LETTER = 6.6

Report = Mapping[str, Any]


def make_payload(report: Report) -> dict[str, Any]:
    """All that the script needs; reports of older versions lack keys, and the page shows less."""
    layers = [
        layer | {"executed_as": ", ".join(layer["executed_as"])} for layer in report["layers"]
    ]
    graph = report.get("graph") or _chain(layers)
    names = Names()
    return {
        "nodes": _nodes(graph, layers, names, _weight_errors(report)),
        "layers": pack(layers),
        "tensors": _tensors(report, names),
        "names": names.listed,
        "weights": _thinned(list(report.get("weights") or []), WEIGHT_BYTES),
        "candidates": report["plan"]["candidates"],
        "front": report["plan"].get("front") or [],
        "operators": report.get("operators"),
        "samples": report.get("samples") or [],
        "notes": _notes(report),
    }


def as_script(payload: Any) -> str:
    """JSON that may stand in a <script>: no "<", so that no name can end it or open a comment."""
    text = json.dumps(payload, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _chain(layers: Sequence[Report]) -> dict[str, Any]:
    """Layers one after the other, for reports that have no graph."""
    return {
        "inputs": [],
        "outputs": [],
        "nodes": [
            {"origin": x["origin"], "op_type": x["op_type"], "shape": ""}
            | {"reads": [f"#{i - 1}"] if i else [], "writes": [f"#{i}"]}
            for i, x in enumerate(layers)
        ],
    }


def _weight_errors(report: Report) -> dict[str, float]:
    """Origin -> SQNR of its matrix, for weight-only targets."""
    rows = report.get("matrices") or []
    return {u: round(m["sqnr_db"], 2) for m in rows for u in m["uses"] if m["sqnr_db"] is not None}


def _nodes(
    graph: Report, layers: Sequence[Report], names: Names, weights: Mapping[str, float]
) -> dict[str, Any]:
    """Columns, one entry a node: inputs of the graph first, its outputs last."""
    rows = [
        {"origin": name, "op_type": "input", "reads": [], "writes": [name], "shape": ""}
        for name in graph["inputs"]
    ]
    rows += graph["nodes"]
    rows += [
        {"origin": name, "op_type": "output", "reads": [name], "writes": [], "shape": ""}
        for name in graph["outputs"]
    ]
    makers = {name: i for i, row in enumerate(rows) for name in row["writes"]}
    edges = sorted(
        {
            (makers[name], i)
            for i, row in enumerate(rows)
            for name in row["reads"]
            if name in makers and makers[name] < i
        }
    )
    by_layer = {layer["origin"]: i for i, layer in enumerate(layers)}
    times = [_time(row, layers, by_layer) for row in rows]
    most = max((t for t in times if t), default=0.0)
    sizes = [_size(row["op_type"], t, most) for row, t in zip(rows, times, strict=True)]
    layout = lay_out(sizes, edges)
    at = [
        -1 if row["op_type"] in ("input", "output") else by_layer.get(row["origin"], -1)
        for row in rows
    ]
    return {
        # a layer's row has its name already
        "origin": [row["origin"] if k < 0 else None for row, k in zip(rows, at, strict=True)],
        "op": pack_column([row["op_type"] for row in rows]),
        "layer": at,
        "x": [round(x) for x, _ in layout.centres],
        "y": [round(y) for _, y in layout.centres],
        "w": [round(w) for w, _ in sizes],
        "h": [round(h) for _, h in sizes],
        "shape": pack_column([row["shape"] for row in rows]),
        "reads": [names.all(row["reads"]) for row in rows],
        "writes": [names.all(row["writes"]) for row in rows],
        "sqnr": [row.get("sqnr_db") for row in rows],
        "weightDb": [weights.get(row["origin"]) for row in rows] if weights else [],
        "floatNs": [row.get("float_ns") for row in rows],
        "artifactNs": [row.get("artifact_ns") for row in rows],
        "edges": [
            [a, b] if route is None else [a, b, *(round(v) for point in route for v in point)]
            for (a, b), route in zip(edges, layout.routes, strict=True)
        ],
        "width": round(layout.width),
        "height": round(layout.height),
    }


def _tensors(report: Report, names: Names) -> dict[str, Any]:
    rows = _thinned(list(report.get("tensors") or []), TENSOR_BYTES)
    numbers = [
        {key: names.one(row[key]) for key in ("name", "same_as") if key in row} for row in rows
    ]
    return pack([row | number for row, number in zip(rows, numbers, strict=True)])


def _time(row: Report, layers: Sequence[Report], by_layer: Mapping[str, int]) -> float:
    """Nanoseconds in the artifact where they are known, else in the form that was chosen."""
    if row.get("artifact_ns") is not None:
        return float(row["artifact_ns"])
    at = by_layer.get(row["origin"])
    if at is None:
        return 0.0
    layer = layers[at]
    key = "float_ns" if layer["realised"] == "float" else "int_ns"
    return float(layer.get(key) or 0.0)


def _size(op_type: str, time: float, most: float) -> tuple[float, float]:
    """Area grows with time; the operator's name always fits."""
    share = math.sqrt(time / most) if most else 0.0
    width = LEAST_WIDTH + share * (MOST_WIDTH - LEAST_WIDTH)
    height = LEAST_HEIGHT + share * (MOST_HEIGHT - LEAST_HEIGHT)
    return max(width, 18 + LETTER * len(op_type)), height


def _thinned(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The same rows with bins joined in pairs until they are small enough."""
    while len(json.dumps(rows)) > most:
        bins = max(
            (len(row["histogram"]["counts"]) for row in rows if "histogram" in row), default=0
        )
        if bins <= 8:
            return [{k: v for k, v in row.items() if k != "histogram"} for row in rows]
        rows = [_halved(row) for row in rows]
    return rows


def _halved(row: dict[str, Any]) -> dict[str, Any]:
    if "histogram" not in row:
        return row
    old = row["histogram"]
    counts = [sum(old["counts"][i : i + 2]) for i in range(0, len(old["counts"]), 2)]
    return row | {"histogram": old | {"width": 2 * old["width"], "counts": counts}}


def _notes(report: Report) -> dict[str, list[str]]:
    """Where -> what passes did there or left alone, in order."""
    found: dict[str, list[str]] = {}
    for step in report["passes"]:
        for note in step["notes"]:
            if note["where"]:
                found.setdefault(note["where"], []).append(f"{step['name']}: {note['text']}")
    for note in report["notes"]:
        if note["where"]:
            found.setdefault(note["where"], []).append(note["text"])
    for matrix in report.get("matrices") or []:
        text = (
            f"its matrix {matrix['name']}: {matrix['precision']} in blocks of {matrix['block']} by "
        )
        text += f"{matrix['algorithm']}"
        if matrix["sqnr_db"] is not None:
            text += f", {matrix['sqnr_db']:.1f} dB"
        for use in matrix["uses"]:
            found.setdefault(use, []).append(text)
    return found
