"""What loading, passes and lowering have to say about one place in the model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Note"]


@dataclass(frozen=True)
class Note:
    """What was done or left alone at one place, and why.

    Attributes:
        where: origin id of the node, or the tensor's name; "" for the model as a whole.
        text: one clause.
        changed: True when something was done there, False when it was left alone.
    """

    where: str
    text: str
    changed: bool = False
