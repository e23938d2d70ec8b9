"""Large constants that passes make, kept in files instead of memory while a model is prepared.

A fold multiplies a norm's gain into the matrices behind it: of a model larger than memory that would be a
copy of most of its weights. Within ``large_on_disk`` such arrays are written and mapped at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["kept", "large_on_disk"]

Array = npt.NDArray[np.generic]

LARGE = 1 << 20
"""Bytes from which a constant is worth a file."""

_FOLDER: ContextVar[Path | None] = ContextVar("qcompile_large_constants", default=None)


@contextlib.contextmanager
def large_on_disk(folder: Path | None) -> Iterator[None]:
    """Within, large constants that are made go to ``folder``; None leaves them in memory."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def kept(array: Array) -> Array:
    """The array in C order; mapped from a file where that was asked for and it is large."""
    folder = _FOLDER.get()
    if folder is None or array.nbytes < LARGE:
        return np.asarray(array, order="C")
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    out = np.lib.format.open_memmap(path, "w+", array.dtype, array.shape)
    out[...] = array
    del out
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
