"""How much memory a compile may take, and whether a float model fits into it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as oir
import psutil

__all__ = ["Room", "allowed_bytes", "float_bytes", "needed_for", "room_for"]

HELD = 2.2
"""Bytes that the runtime holds for each byte of float weights: as they are read, and packed."""

BASE = 300_000_000
"""Bytes of an interpreter with the runtime, and of activations."""

_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Room:
    """What a float model needs and what may be had.

    Attributes:
        needed: bytes to open and run it.
        allowed: bytes.
    """

    needed: int
    allowed: int

    @property
    def fits(self) -> bool:
        """Whether it can be opened whole."""
        return self.needed <= self.allowed

    @property
    def part(self) -> int:
        """Weights of one segment, in bytes, where it is run in parts."""
        return max(self.allowed // 8, 1 << 20)

    def text(self) -> str:
        """One clause."""
        return (
            f"it needs about {self.needed / 1e9:.1f} GB of memory and {self.allowed / 1e9:.1f} GB "
            "may be had"
        )


def room_for(model: oir.Model, limit: int | None) -> Room:
    """Whether a float model fits.

    Args:
        model: the user's.
        limit: what ``--memory-limit`` allows, None for all that is free.
    """
    return Room(needed_for(float_bytes(model)), allowed_bytes(limit))


def needed_for(weights: int) -> int:
    """Bytes to open and run a float model with so many bytes of weights."""
    return round(HELD * weights) + BASE


def float_bytes(model: oir.Model) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def allowed_bytes(limit: int | None) -> int:
    """The least of: the option, the machine's free memory, the container's limit, the shell's limits."""
    found = [psutil.virtual_memory().available, *_container(), *_shell()]
    return int(min([*found, _NO_LIMIT if limit is None else limit]))


def _shell() -> list[int]:
    """``ulimit -d`` and ``ulimit -v``, where there are any."""
    if sys.platform == "win32":
        return []
    import resource  # POSIX: returned before on Windows

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def _container() -> list[int]:
    """The limit of the control group that this process is in (Docker, systemd), where there is one."""
    try:
        rows = Path("/proc/self/cgroup").read_text("ascii").splitlines()  # POSIX: or no file
    except OSError:
        return []
    found = []
    for row in rows:
        _, kinds, path = row.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root = Path("/sys/fs/cgroup")  # POSIX: reached where the group was read
        folder = root / "memory" if kinds else root
        name = "memory.limit_in_bytes" if kinds else "memory.max"
        # inside a container the group's own path is not mounted, its limit stands at the root
        for place in (folder / path.lstrip("/"), folder):
            limit = _number(place / name)
            if limit is not None:
                found.append(limit)
                break
    return [limit for limit in found if limit < _NO_LIMIT]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no number
        return None
