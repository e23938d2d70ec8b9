"""`--show`: how the outputs of the worst samples are to be read, in the user's own words.

``boxes[=names.txt]`` a YOLO head, ``text=letters.txt`` a CTC output, ``classes=names.txt``, one name or
letter a line; or ``file.py:function``, called as ``function(outputs, feed)`` for float and artifact, which
returns a text, a list of boxes, a dict of scores by name, or a picture.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.data.script import load_function
from qcompile.ir.errors import OptionError
from qcompile.report_data.image_data import map_data
from qcompile.report_data.rounded import rounded

__all__ = ["NOTHING_ASKED", "Show", "parse_show", "show_by_function"]

KINDS = {"boxes": False, "text": True, "classes": True}
"""kind -> whether it needs a file of names."""

TOP = 8
Array = npt.NDArray[Any]
Function = Callable[[Mapping[str, Array], Mapping[str, Array]], Any]


@dataclass(frozen=True)
class Show:
    """What was asked.

    Attributes:
        kind: "boxes", "text", "classes", or "" to go by the model's metadata and the preset.
        words: names of classes, or letters.
        function: the user's own.
    """

    kind: str = ""
    words: tuple[str, ...] = ()
    function: Function | None = None


NOTHING_ASKED = Show()
"""Outputs are read by the model's metadata and the preset alone."""


def parse_show(asked: str | Function | None) -> Show:
    """Read ``--show``.

    Raises:
        OptionError: an unknown kind (with the nearest), a file that cannot be read, no such function.
    """
    if asked is None:
        return NOTHING_ASKED
    if callable(asked):
        return Show(function=asked)
    script, _, function = asked.rpartition(":")
    if script.endswith(".py"):
        needed = "a function (outputs, feed) -> text, boxes, scores or picture"
        return Show(function=load_function(Path(script), function, "--show", needed, OptionError))
    kind, _, file = asked.partition("=")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise OptionError(
            f"--show '{asked}' is unknown; use boxes[=names.txt], text=letters.txt, classes=names.txt "
            "or file.py:function" + (f"; did you mean {near[0]}?" if near else "")
        )
    if not file:
        if KINDS[kind]:
            raise OptionError(f"--show {kind} needs a file, one a line: --show {kind}=names.txt")
        return Show(kind)
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise OptionError(f"--show '{asked}': '{file}' cannot be read: {e}") from e
    return Show(kind, tuple(lines if kind == "text" else (line.strip() for line in lines)))


def show_by_function(
    function: Function,
    outputs: tuple[Mapping[str, Array], Mapping[str, Array]],
    feed: Mapping[str, Array],
    pixels: tuple[int, int] | None,
) -> dict[str, Any]:
    """What the user's function makes of float's and the artifact's outputs.

    Args:
        function: see `Show`.
        outputs: float's, the artifact's.
        feed: the inputs of both.
        pixels: height and width of the input image.

    Raises:
        OptionError: it raises, or returns what cannot be shown.
    """
    made = []
    for one in outputs:
        try:
            made.append(function(one, feed))
        except Exception as e:
            raise OptionError(f"--show: the function raised {type(e).__name__}: {e}") from e
    ref, got = made
    try:
        if isinstance(ref, str):
            return {"kind": "sequence", "float": ref, "artifact": str(got)}
        if isinstance(ref, Mapping):
            return _scores(ref, got)
        if isinstance(ref, np.ndarray) and ref.ndim == 2:
            return {"kind": "map", "float": map_data(ref, ref), "artifact": map_data(got, ref)}
        if isinstance(ref, (list, tuple)) and pixels is not None:
            found = {"kind": "boxes", "height": pixels[0], "width": pixels[1]}
            return found | {"float": _boxes(ref), "artifact": _boxes(got)}
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise OptionError(f"--show: the function's result cannot be shown: {e}") from e
    raise OptionError(
        f"--show: the function returned {type(ref).__name__}; it may return a text, a dict of scores by "
        "name, a 2-dimensional array, or for an image a list of {'box': (x0, y0, x1, y1), 'label': ..., "
        "'score': ...}"
    )


def _scores(ref: Mapping[str, float], got: Mapping[str, float]) -> dict[str, Any]:
    order = sorted(ref, key=lambda k: -float(ref[k]))[:TOP]
    order += [k for k in sorted(got, key=lambda k: -float(got[k]))[:1] if k not in order]
    return {
        "kind": "classes",
        "labels": [str(k) for k in order],
        "float": [rounded(float(ref[k])) if k in ref else None for k in order],
        "artifact": [rounded(float(got[k])) if k in got else None for k in order],
    }


def _boxes(rows: Any) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        x0, y0, x1, y1 = (float(v) for v in row["box"])
        centre = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        score = float(row.get("score", 1.0))
        box = [rounded(v) for v in centre]
        found.append({"box": box, "score": rounded(score), "label": str(row.get("label", ""))})
    return found
