"""Both models' outputs for one sample as people read them: classes, boxes, text, maps, or numbers."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.report_data.image_data import map_data
from qcompile.report_data.rounded import rounded
from qcompile.report_data.show import NOTHING_ASKED, Show

__all__ = ["Reader"]

TOP = 5
TOKENS = 40
BOXES = 20
CONFIDENT, OVERLAP = 0.25, 0.5
"""YOLO's usual limits: least score of a box, and the overlap from which two are one."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Reader:
    """Reads outputs with what the model's metadata and the preset say about them.

    Attributes:
        metadata: of the user's model; "names" are classes, "character" the letters of a CTC output.
        preset: of the images, "" without one.
        asked: what the user says of the outputs.
        decode: tokens to text, with the user's tokenizer.
    """

    metadata: Mapping[str, str]
    preset: str
    asked: Show = NOTHING_ASKED
    decode: Callable[[list[int]], str] | None = None

    def read(self, ref: Array, got: Array, pixels: tuple[int, int] | None) -> dict[str, Any]:
        """``kind`` and the content in ``float`` and ``artifact``; {} for what cannot be shown.

        Args:
            ref: the float model's output.
            got: the artifact's.
            pixels: height and width of the input image.
        """
        if ref.shape != got.shape or not ref.size or ref.dtype.kind not in "fiub":
            return {}
        if pixels is not None and self._is_boxes(ref):
            found = {"kind": "boxes", "height": pixels[0], "width": pixels[1]}
            return found | {"float": self._boxes(ref), "artifact": self._boxes(got)}
        if ref.ndim == 4 and ref.shape[1] == 1 and min(ref.shape[2:]) >= 16:
            return {
                "kind": "map",
                "float": map_data(ref[0, 0], ref[0, 0]),
                "artifact": map_data(got[0, 0], ref[0, 0]),
            }
        if ref.dtype.kind == "f" and ref.ndim == 3 and ref.shape[0] == 1 and ref.shape[2] > 8:
            rows = {"kind": "sequence"}
            return rows | {"float": self._sequence(ref[0]), "artifact": self._sequence(got[0])}
        if ref.dtype.kind == "f" and ref.size > 1 and ref.size == ref.shape[-1]:
            return self._classes(ref.reshape(-1), got.reshape(-1))
        return _numbers(ref.reshape(-1), got.reshape(-1))

    @property
    def names(self) -> dict[int, str]:
        """Class names that the user gave or an exporter recorded."""
        if self.asked.kind in ("boxes", "classes") and self.asked.words:
            return dict(enumerate(self.asked.words))
        try:
            found = ast.literal_eval(self.metadata.get("names", "{}"))
        except (ValueError, SyntaxError):
            return {}
        if isinstance(found, (list, tuple)):
            found = dict(enumerate(found))
        return {int(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def _is_boxes(self, ref: Array) -> bool:
        """YOLO's heads: (1, 4 + classes, boxes), (1, boxes, 5 + classes), or (1, boxes, 6) when sifted."""
        told = self.preset.startswith("yolo") or self.metadata.get("task") == "detect"
        told = told or self.asked.kind == "boxes"
        return told and ref.ndim == 3 and ref.shape[0] == 1 and min(ref.shape[1:]) >= 5

    def _boxes(self, output: Array) -> list[dict[str, Any]]:
        """Boxes that a detector would show, the surest first."""
        rows, scores, classes = _candidates(np.asarray(output[0], np.float64))
        order = [i for i in np.argsort(-scores, kind="stable")[:300] if scores[i] >= CONFIDENT]
        kept: list[int] = []
        for i in order:
            same = [k for k in kept if classes[k] == classes[i]]
            if all(_overlap(rows[i, :4], rows[k, :4]) < OVERLAP for k in same):
                kept.append(int(i))
        names = self.names
        return [
            {
                "box": [rounded(v) for v in rows[i, :4]],
                "score": rounded(scores[i]),
                "label": names.get(int(classes[i]), str(int(classes[i]))),
            }
            for i in kept[:BOXES]
        ]

    def _sequence(self, rows: Array) -> str:
        """Letters of an alphabet (CTC: repeats and blanks dropped), text of a tokenizer, else indices."""
        best = rows.argmax(axis=-1)
        letters: Sequence[str] = self.metadata.get("character", "").splitlines()
        if self.asked.kind == "text":
            letters = self.asked.words
        # the blank comes first, a space may come last
        if letters and 0 <= rows.shape[1] - 1 - len(letters) <= 1:
            alphabet = ["", *letters, " "]
            changed = np.concatenate([[True], best[1:] != best[:-1]])
            return "".join(alphabet[int(k)] for k in best[changed] if k)
        more = " ..." if len(best) > TOKENS else ""
        if self.decode is not None:
            return self.decode([int(k) for k in best[:TOKENS]]) + more
        return " ".join(str(int(k)) for k in best[:TOKENS]) + more

    def _classes(self, ref: Array, got: Array) -> dict[str, Any]:
        order = np.argsort(-ref, kind="stable")[:TOP].tolist()
        order += [k for k in np.argsort(-got, kind="stable")[:1].tolist() if k not in order]
        names = self.names
        return {
            "kind": "classes",
            "labels": [names.get(k, str(k)) for k in order],
            "float": [rounded(ref[k]) for k in order],
            "artifact": [rounded(got[k]) for k in order],
        }


def _numbers(ref: Array, got: Array) -> dict[str, Any]:
    """The places where the two differ most."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        error = np.nan_to_num(np.abs(ref.astype(np.float64) - got.astype(np.float64)))
    order = np.argsort(-error, kind="stable")[:TOP].tolist()
    return {
        "kind": "numbers",
        "labels": [str(k) for k in order],
        "float": [rounded(ref[k]) for k in order],
        "artifact": [rounded(got[k]) for k in order],
    }


def _candidates(found: Array) -> tuple[Array, Array, Array]:
    """Boxes as centre and size, scores and classes, of one image's head in any of its three layouts."""
    if found.shape[0] < found.shape[1]:  # YOLOv8 and later
        rows = found.T
        return rows[:, :4], rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)
    if found.shape[1] == 6:  # end to end: corners, score, class
        size = found[:, 2:4] - found[:, :2]
        boxes = np.concatenate([found[:, :2] + size / 2, size], axis=1)
        return boxes, found[:, 4], found[:, 5].astype(np.int64)
    each = found[:, 5:] * found[:, 4:5]  # YOLOv5 to v7: objectness times class
    return found[:, :4], each.max(axis=1), each.argmax(axis=1)


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes given as centre and size."""
    low = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    inside = float(np.prod(np.maximum(high - low, 0.0)))
    both = float(a[2] * a[3] + b[2] * b[3]) - inside
    return inside / both if both > 0 else 0.0
