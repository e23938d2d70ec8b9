"""Small drawings for a notebook's cell: inline SVG, no script, in the colour of the text around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["depth_line", "plan_points"]

WIDE, HIGH, EDGE = 250.0, 92.0, 8.0
EXACT_DB = 120.0
Report = Mapping[str, Any]


def _scaled(values: list[float], length: float) -> list[float]:
    low, high = min(values), max(values)
    return [EDGE + (v - low) / ((high - low) or 1.0) * (length - 2 * EDGE) for v in values]


def plan_points(report: Report) -> dict[str, Any] | None:
    """Plans by latency (left is faster) and SQNR (up is better); None with fewer than two timed."""
    timed = [c for c in report["plan"]["candidates"] if c["speedup"] and c["sqnr_db"] is not None]
    if len(timed) < 2:
        return None
    xs = _scaled([1 / c["speedup"] for c in timed], WIDE)
    ys = _scaled([c["sqnr_db"] for c in timed], HIGH)
    return {
        "width": WIDE,
        "height": HIGH,
        "points": [
            {
                "x": f"{x:.1f}",
                "y": f"{HIGH - y:.1f}",
                "chosen": c["chosen"],
                "text": f"{c['name']}: {c['speedup']:.2f}×, {c['sqnr_db']:.1f} dB",
            }
            for c, x, y in zip(timed, xs, ys, strict=True)
        ],
    }


def depth_line(report: Report) -> dict[str, Any] | None:
    """SQNR along the layers as points of a line; None where it was not measured."""
    nodes = (report.get("graph") or {}).get("nodes", [])
    found = [n["sqnr_db"] for n in nodes if n.get("sqnr_db") is not None]
    found = [db for db in found if db < EXACT_DB]
    if len(found) < 2:
        return None
    # a line of a few hundred points is as wide as the drawing in pixels
    step = max(1, len(found) // 240)
    kept = [min(found[i : i + step]) for i in range(0, len(found), step)]
    xs = _scaled([float(i) for i in range(len(kept))], WIDE)
    ys = _scaled(kept, HIGH)
    return {
        "width": WIDE,
        "height": HIGH,
        "line": " ".join(f"{x:.1f},{HIGH - y:.1f}" for x, y in zip(xs, ys, strict=True)),
        "low": min(kept),
        "high": max(kept),
    }
