"""An indexable set of samples; nothing is held in memory that was not asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from qcompile.data.inputs import Feed

__all__ = ["FeedSet"]


@dataclass
class FeedSet:
    """Feeds by index, loaded when asked for.

    Attributes:
        description: for people ("photos/: 256 images, imagenet").
        names: one name a sample (file name, "file.npz[3]", "sample 7").
        load: index into ``names`` -> feed that fits the model.
        random: made up, so that nothing measured on it counts as accuracy.
        notes: what was done to make the data fit, without repeats.
    """

    description: str
    names: list[str]
    load: Callable[[int], Feed]
    random: bool = False
    notes: dict[str, None] = field(default_factory=dict)
    keep: object = None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Feed]:
        return (self.load(i) for i in range(len(self.names)))

    def subset(self, indices: Sequence[int]) -> FeedSet:
        """The samples at ``indices``, in that order, sharing this set's storage."""
        chosen = list(indices)
        return FeedSet(
            self.description,
            [self.names[i] for i in chosen],
            lambda i: self.load(chosen[i]),
            self.random,
            self.notes,
            self,
        )

    def sha256(self) -> str:
        """Hash of all arrays, dtypes and shapes in order; equal data hash equally wherever they lie."""
        digest = hashlib.sha256()
        for feed in self:
            for name in sorted(feed):
                array = np.ascontiguousarray(feed[name])
                digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()
