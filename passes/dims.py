"""Shapes with provenance: which dimensions of which tensors are the same number.

A dimension is an int, or a token: a string that names an unknown number, "batch" for a symbolic
dimension of an input, "tensor:2" for one that arises at a tensor. Equal tokens are equal numbers. The same
holds for the elements of small integer tensors, so ``Concat(Shape(x)[0], 12, -1)`` is
``("batch", 12, -1)``. Tokens are never guessed from symbols that shape inference or an exporter
wrote on inner tensors, because those are not always true.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import onnx_ir as oir

__all__ = ["MAX_ELEMENTS", "Dim", "Dims", "Known", "total"]

Dim = int | str
Dims = tuple[Dim, ...]
MAX_ELEMENTS = 64
"""Longest integer vector whose elements are followed."""

_PLUS = " plus "


def total(parts: Iterable[Dim]) -> Dim:
    """The sum, one token for one sum in whatever order: behind a cache, positions are past and new.

    >>> total(["past", 1, "new"]) == total([total(["new", "past"]), 1])
    True
    """
    number, tokens = 0, list[str]()
    for part in parts:
        for one in [part] if isinstance(part, int) else part.split(_PLUS):
            if isinstance(one, int):
                number += one
            elif one.lstrip("-").isdecimal():
                number += int(one)
            else:
                tokens.append(one)
    if not tokens:
        return number
    return _PLUS.join([*sorted(tokens), *([str(number)] if number else [])])


class Known(Protocol):
    """What rules ask about the tensors that a node reads."""

    def dims(self, value: oir.Value | None) -> Dims | None:
        """The shape of a tensor, None when not even the rank is known."""

    def elements(self, value: oir.Value | None) -> Dims | None:
        """The elements of a small integer tensor of rank 0 or 1, None when unknown."""
