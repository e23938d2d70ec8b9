"""A model's outputs for one sample as files, so that they are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["keep_outputs", "kept_outputs"]


def keep_outputs(place: Path, found: Mapping[str, Any], room: int) -> int:
    """Write outputs into a new folder; the bytes they take.

    Nothing is written, and 0 given back, where they exceed ``room`` or are not all plain arrays.
    """
    plain = [a for a in found.values() if isinstance(a, np.ndarray) and a.dtype != object]
    size = sum(array.nbytes for array in plain)
    if len(plain) < len(found) or size > room:
        return 0
    draft = place.with_suffix(".part")
    draft.mkdir(exist_ok=True)
    for i, array in enumerate(plain):
        np.save(draft / f"{i}.npy", array, allow_pickle=False)
    draft.rename(place)
    return size


def kept_outputs(place: Path, numbers: Iterable[int]) -> list[Any]:
    """Those with the given numbers, mapped."""
    return [np.load(place / f"{i}.npy", mmap_mode="r") for i in numbers]
