"""The worst samples as the template prints them: what differs between float and artifact is marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

__all__ = ["view_sample"]

Report = Mapping[str, Any]

SAME_BOX = 0.5
"""Overlap from which boxes of two models are the same find."""


def view_sample(sample: Report) -> dict[str, Any]:
    """A sample with rows for its tables, marked runs of its texts, and boxes as corner and size."""
    outputs = []
    for output in sample["outputs"]:
        shown = dict(output)
        if output["kind"] in ("classes", "numbers"):
            shown["rows"] = list(
                zip(output["labels"], output["float"], output["artifact"], strict=True)
            )
        elif output["kind"] == "sequence":
            shown["runs"] = _marked(output["float"], output["artifact"])
        elif output["kind"] == "boxes":
            boxes = output["float"], output["artifact"]
            shown["drawn"] = [
                {"title": title, "boxes": [_corner(b, other, output) for b in own]}
                for title, own, other in (("float", *boxes), ("artifact", *boxes[::-1]))
            ]
            shown["alone"] = sum(b["alone"] for one in shown["drawn"] for b in one["boxes"])
        outputs.append(shown)
    return dict(sample) | {"outputs": outputs}


def _marked(before: str, after: str) -> list[list[tuple[str, bool]]]:
    """Both texts as runs, each with whether the other lacks it; a space that differs is made visible."""
    # numbers of tokens are compared whole, letters one by one
    tokens = all(part.isdigit() or part == "..." for part in before.split())
    pieces: list[list[str]] = [
        text.split(" ") if tokens else list(text) for text in (before, after)
    ]
    joint = " " if tokens else ""
    runs: list[list[tuple[str, bool]]] = [[], []]
    blocks = SequenceMatcher(None, pieces[0], pieces[1], autojunk=False).get_opcodes()
    for kind, *ends in blocks:
        for side, (low, high) in enumerate((ends[:2], ends[2:])):
            text = joint.join(pieces[side][low:high])
            if text:
                differs = kind != "equal"
                runs[side].append(
                    (text.replace(" ", "␣") if differs and not tokens else text, differs)
                )
                if joint:
                    runs[side].append((joint, False))
    return runs


def _corner(box: Report, others: Sequence[Report], output: Report) -> dict[str, Any]:
    """A box to draw, its label written towards the inside of the picture."""
    x, y, w, h = box["box"]
    label = f"{box['label']} {box['score']:.2f}"
    left = x - w / 2
    return {
        "x": left,
        "y": y - h / 2,
        "w": w,
        "h": h,
        "text": label,
        "flip": left > 0.55 * output["width"],
        "alone": not any(
            o["label"] == box["label"] and _overlap(box, o) > SAME_BOX for o in others
        ),
    }


def _overlap(one: Report, other: Report) -> float:
    """Intersection over union."""
    inside = 1.0
    for k in (0, 1):
        low = max(one["box"][k] - one["box"][k + 2] / 2, other["box"][k] - other["box"][k + 2] / 2)
        high = min(one["box"][k] + one["box"][k + 2] / 2, other["box"][k] + other["box"][k + 2] / 2)
        inside *= max(0.0, high - low)
    areas = [b["box"][2] * b["box"][3] for b in (one, other)]
    union = sum(areas) - inside
    return float(inside / union) if union > 0 else 0.0
