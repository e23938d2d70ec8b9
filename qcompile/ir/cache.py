"""What a model says of a cache in 8 bits: which inputs and outputs hold integers, and their scales.

It stands in the model's own metadata, so that whoever opens the file alone can fill a cache or read it.
Scales are symmetric: value = integer * scale, by head and channel, or one number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.ir.errors import ModelError

__all__ = ["CACHE_KEY", "CachePair", "from_integers", "read_pairs", "to_integers", "write_pairs"]

CACHE_KEY = "qcompile.cache"
"""metadata_props key of a model."""

_VERSION = 1
LARGEST = 127

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CachePair:
    """Keys or values of one layer.

    Attributes:
        past: input that takes those of earlier steps.
        present: output that gives them with the new ones.
        scale: broadcasts to both, (1, heads, 1, channels).
    """

    past: str
    present: str
    scale: Floats


def to_integers(array: npt.NDArray[Any], scale: Floats) -> npt.NDArray[np.int8]:
    """The nearest integers; what lies beyond the range is clipped.

    >>> to_integers(np.array([0.5, 9.0]), np.float32(0.01))
    array([ 50, 127], dtype=int8)
    """
    scaled = np.rint(np.asarray(array, np.float32) / scale)
    return np.asarray(np.clip(scaled, -LARGEST - 1, LARGEST), np.int8)


def from_integers(array: npt.NDArray[np.int8], scale: Floats) -> Floats:
    """What the integers stand for; ``to_integers`` gives the same integers back."""
    return np.asarray(array.astype(np.float32) * scale, np.float32)


def write_pairs(pairs: Sequence[CachePair]) -> str:
    """Text for the metadata."""
    rows = [
        {
            "past": one.past,
            "present": one.present,
            "type": "int8",
            "shape": list(one.scale.shape),
            # nine digits give every float32 back
            "scale": [float(f"{v:.9g}") for v in one.scale.ravel()],
        }
        for one in pairs
    ]
    return json.dumps({"version": _VERSION, "tensors": rows}, separators=(",", ":"))


def read_pairs(metadata: Mapping[str, str]) -> tuple[CachePair, ...]:
    """The pairs that a model's metadata name; none where they are silent.

    Raises:
        ModelError: the text cannot be read.
    """
    text = metadata.get(CACHE_KEY)
    if text is None:
        return ()
    try:
        content = json.loads(text)
        if content["version"] != _VERSION:
            raise ModelError(
                f"the model's metadata '{CACHE_KEY}' have version {content['version']}; this qcompile "
                f"reads {_VERSION}: compile the model again"
            )
        return tuple(
            CachePair(
                str(row["past"]),
                str(row["present"]),
                np.array(row["scale"], np.float32).reshape(row["shape"]),
            )
            for row in content["tensors"]
        )
    except (ValueError, KeyError, TypeError) as e:
        raise ModelError(
            f"the model's metadata '{CACHE_KEY}' cannot be read ({e}); compile the model again"
        ) from e
