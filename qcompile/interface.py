"""What a caller of the float model relies on: names, types, ranks and free axes of inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qcompile.backends.ort import Port, Session

__all__ = ["at_batch", "interface_faults", "is_repeated", "same_interface", "shape_extremes"]

Feed = Mapping[str, Any]


def interface_faults(
    kind: str,
    wanted: Sequence[Port],
    found: Sequence[Port],
    ranks: Mapping[str, int] | None = None,
) -> list[tuple[str, str]]:
    """(name, what is wrong) for each port that a caller of the float model would stumble over.

    Args:
        kind: "input" or "output".
        wanted: the float model's.
        found: the artifact's.
        ranks: what the float model really gives: exporters also declare wrong ranks, and a port
            that declares the true one is no fault.
    """
    have = {port.name: port for port in found}
    wrong = []
    for port in wanted:
        other = have.pop(port.name, None)
        if other is None:
            wrong.append((port.name, f"{kind} '{port.name}' is missing"))
        elif other.type != port.type:
            wrong.append((port.name, f"{kind} '{port.name}' is {other.type}, float's {port.type}"))
        elif (
            port.shape
            and other.shape
            and len(other.shape) not in (len(port.shape), (ranks or {}).get(port.name))
        ):
            wrong.append(
                (
                    port.name,
                    f"{kind} '{port.name}' has rank {len(other.shape)}, float's {len(port.shape)}",
                )
            )
        elif kind == "input":
            wrong.extend(_frozen(port, other))
    if kind == "output":
        wrong.extend((name, f"{kind} '{name}' is not in the float model") for name in have)
    else:
        wrong.extend((name, f"{kind} '{name}' is new, callers do not give it") for name in have)
    return wrong


def same_interface(artifact: Session) -> str:
    """What is said of an artifact without a fault: a cache in 8 bits differs on purpose."""
    text = "same inputs and outputs as float"
    if not artifact.cache:
        return text
    names = f"{artifact.cache[0].past} to {artifact.cache[-1].past}"
    return f"{text}, but the cache is int8 ({len(artifact.cache)} inputs, {names}; scales in its metadata)"


def _frozen(wanted: Port, found: Port) -> list[tuple[str, str]]:
    for axis, (a, b) in enumerate(zip(wanted.shape, found.shape, strict=False)):
        if isinstance(b, int) and a != b:
            free = f"'{a}' in float" if isinstance(a, str) else f"{a} in float" if a else "free"
            return [(wanted.name, f"input '{wanted.name}': axis {axis} is fixed at {b}, {free}")]
    return []


def at_batch(feed: Feed, inputs: Sequence[Port], size: int) -> Feed | None:
    """The feed repeated to a batch of ``size``, or None where no input's first axis is free.

    Every axis that bears the name of a free first axis is a batch axis, also elsewhere (a
    recurrent state of shape ``[2, "batch", 128]``).
    """
    ports = {port.name: port for port in inputs}
    first = [p.shape[0] for p in inputs if p.name in feed and p.shape]
    free = {s for s in first if isinstance(s, str)}
    if not free and None not in first:
        return None
    batched: dict[str, Any] = {}
    for name, value in feed.items():
        array = np.asarray(value)
        shape = ports[name].shape if name in ports else ()
        for axis, dim in enumerate(shape[: array.ndim]):
            if dim in free or (dim is None and axis == 0):
                array = np.take(array, np.arange(size) % max(1, array.shape[axis]), axis)
        batched[name] = array
    return batched


def is_repeated(one: Any, many: Any) -> bool:
    """Whether ``many`` is ``one`` repeated along one axis, as a model that keeps rows apart gives."""
    a, b = np.asarray(one), np.asarray(many)
    if a.dtype.kind != "f" or b.dtype.kind != "f" or a.ndim != b.ndim or not a.size:
        return False
    repeats = [y / x for x, y in zip(a.shape, b.shape, strict=True)]
    if any(r != int(r) for r in repeats):
        return False
    tolerance = 1e-3 * float(np.nanmax(np.abs(a), initial=0.0))
    return np.allclose(
        np.tile(a, [int(r) for r in repeats]), b, rtol=1e-3, atol=tolerance, equal_nan=True
    )


def shape_extremes(feeds: Sequence[Feed]) -> list[Feed]:
    """The first feed, and the one with the fewest and the most elements where these differ."""
    sizes = [sum(int(np.size(v)) for v in feed.values()) for feed in feeds]
    picked = dict.fromkeys((0, sizes.index(min(sizes)), sizes.index(max(sizes))))
    if min(sizes) == max(sizes):
        picked = {0: None}
    return [feeds[i] for i in picked]
