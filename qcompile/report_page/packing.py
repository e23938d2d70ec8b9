"""Rows as columns, and repeated words once: thousands of layers in few bytes. `unpack.js` undoes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Names", "pack", "pack_column"]


class Names:
    """Numbers for names in the order of their first use.

    >>> names = Names()
    >>> names.all(["a", "b"]), names.one("a"), names.listed
    ([0, 1], 0, ['a', 'b'])
    """

    def __init__(self) -> None:
        self._at: dict[str, int] = {}

    @property
    def listed(self) -> list[str]:
        """The names by number."""
        return list(self._at)

    def one(self, name: str) -> int:
        """The number of a name."""
        return self._at.setdefault(name, len(self._at))

    def all(self, names: Iterable[str]) -> list[int]:
        """The numbers of several."""
        return [self.one(name) for name in names]


def pack(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One list for each key; a row that lacks a key has None there."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: pack_column([row.get(key) for row in rows]) for key in keys}


def pack_column(values: Sequence[Any]) -> Any:
    """The values; words and their places where the same texts repeat.

    >>> pack_column(["int8", "int8", None, "int8"])
    {'words': ['int8'], 'at': [0, 0, -1, 0]}
    """
    texts = [v for v in values if isinstance(v, str)]
    words = dict.fromkeys(texts)
    only_texts = len(texts) == sum(v is not None for v in values)
    if not texts or not only_texts or 2 * len(words) > len(texts):
        return list(values)
    at = {word: i for i, word in enumerate(words)}
    return {"words": list(words), "at": [-1 if v is None else at[v] for v in values]}
