"""Reasons of layers, joined where they differ in names and measured numbers alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["join_reasons"]

OWN = re.compile(r"'[^']*'|\b\d[\d.,]*(?= ?(?:us|ms|dB|%|x)\b)|(?<=error )\d[\d.e+-]*")
"""What a reason says of one layer alone."""

Layer = Mapping[str, Any]


def join_reasons(
    layers: Iterable[Layer], why: Callable[[Layer], str]
) -> list[tuple[str, list[Layer]]]:
    """Reasons with their layers, in the order in which they are met.

    A reason that several layers have, each with numbers of its own, has dots in their place.
    """
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(OWN.sub("…", why(layer)), []).append(layer)
    return [
        (text if len({why(x) for x in members}) > 1 else why(members[0]), members)
        for text, members in found.items()
    ]
