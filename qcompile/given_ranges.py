"""Ranges that another tool measured: TensorRT calibration caches, and JSON with dynamic ranges.

JSON is an object of tensor name -> number (the largest absolute value), [low, high], or an object with
"min" and "max", or with "amax"; such an object may stand under "ranges" or "dynamic_ranges".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.backends.trt_calibration import (
    LEVELS,
    is_calibration_cache,
    read_calibration_cache,
)
from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import CalibrationError

__all__ = ["read_given_ranges"]

_UNDER = ("ranges", "dynamic_ranges")


def read_given_ranges(path: Path) -> dict[str, TensorRange] | None:
    """Tensor name -> range; None where the file is of neither kind (a ranges.npz).

    Raises:
        CalibrationError: it cannot be read, or a range in it is none.
    """
    try:
        start = path.read_bytes()[:2]
        if start == b"PK":  # a .npz is a zip file
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CalibrationError(f"--ranges '{path}' cannot be read: {e}") from e
    where = f"'{path}'"
    if is_calibration_cache(text):
        scales = read_calibration_cache(text, where)
        return {n: _symmetric(s * LEVELS, "calibration cache") for n, s in scales.items() if s > 0}
    try:
        content = json.loads(text)
    except ValueError as e:
        raise CalibrationError(
            f"{where} is neither a ranges.npz, nor a TensorRT calibration cache (it would begin with "
            f"TRT-), nor JSON ({e})"
        ) from e
    return _from_json(content, where)


def _symmetric(peak: float, method: str) -> TensorRange:
    return TensorRange(np.float64(-peak), np.float64(peak), method)


def _from_json(content: Any, where: str) -> dict[str, TensorRange]:
    if not isinstance(content, Mapping):
        raise CalibrationError(f"{where} holds {type(content).__name__}; needed: tensor -> range")
    for key in _UNDER:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    found: dict[str, TensorRange] = {}
    for name, value in content.items():
        low, high = _ends(value, f"{where}: range of '{name}'")
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise CalibrationError(
                f"{where}: range of '{name}' is [{low}, {high}]; needed: finite, low first"
            )
        found[name] = TensorRange(np.float64(low), np.float64(high), "given")
    if not found:
        raise CalibrationError(f"{where} holds no range")
    return found


def _ends(value: Any, where: str) -> tuple[float, float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return -abs(float(value)), abs(float(value))
    if isinstance(value, Mapping) and "amax" in value:
        return _ends(value["amax"], where)
    if isinstance(value, Mapping) and {"min", "max"} <= set(value):
        value = [value["min"], value["max"]]
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        try:
            return float(value[0]), float(value[1])
        except (TypeError, ValueError):
            pass
    raise CalibrationError(
        f"{where} is {json.dumps(value)[:60]}; needed: a number, [low, high], or min and max"
    )
