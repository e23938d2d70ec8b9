"""TensorRT's old calibration caches, as text in and out.

A header ``TRT-8601-EntropyCalibration2`` (version and algorithm), then a line ``tensor: 3c010a14`` for each
tensor: its scale, a float32 as eight hexadecimal digits, most significant first. The tensor reaches
scale * 127. TensorRT 11 reads them no more; DLA still takes them with TensorRT 10.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from qcompile.ir.errors import CalibrationError

__all__ = ["is_calibration_cache", "read_calibration_cache", "write_calibration_cache"]

LEVELS = 127
"""Symmetric: the lowest integer is not used."""

HEADER = "TRT-100300-EntropyCalibration2"
"""The newest release that runs DLA from a cache (TensorRT 10.3, JetPack 6.2)."""

_HEADER = re.compile(r"TRT-\d+-\w+")
_LINE = re.compile(r"(?P<name>.+): (?P<digits>[0-9a-fA-F]{1,8})")


def is_calibration_cache(text: str) -> bool:
    """Whether a text begins like a cache."""
    return _HEADER.fullmatch(text.split("\n", 1)[0].strip()) is not None


def read_calibration_cache(text: str, where: str = "the cache") -> dict[str, float]:
    """Tensor name -> its scale, exactly as stored.

    Args:
        text: of the file.
        where: what errors call it.

    Raises:
        CalibrationError: no such header, a line that is none of its, or a scale that is not positive.
    """
    lines = text.splitlines()
    if not is_calibration_cache(text):
        shown = lines[0][:40] if lines else ""
        raise CalibrationError(
            f"{where} begins with '{shown}'; a TensorRT calibration cache begins with "
            "TRT-VERSION-ALGORITHM"
        )
    found: dict[str, float] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise CalibrationError(
                f"{where}, line {number}: '{line[:60]}' is not 'tensor: eight hexadecimal digits'"
            )
        (scale,) = struct.unpack(">f", bytes.fromhex(match["digits"].zfill(8)))
        # TensorRT writes 0 for tensors that were always 0, and for those without a value.
        if not 0 <= scale < float("inf"):
            raise CalibrationError(
                f"{where}, line {number}: the scale of '{match['name']}' is {scale}; needed: 0 or more"
            )
        found[match["name"]] = scale
    return found


def write_calibration_cache(peaks: Mapping[str, float]) -> str:
    """A cache of tensor name -> largest absolute value, in the order given."""
    lines = [HEADER]
    for name, peak in peaks.items():
        lines.append(f"{name}: {struct.pack('>f', peak / LEVELS).hex()}")
    return "\n".join(lines) + "\n"
