"""Which TensorRT is installed: `tensorrt_rtx` or `tensorrt`, found lazily, told apart by features."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from qcompile.ir.errors import BackendMissingError

__all__ = ["Library", "find_library", "need_library"]

_MODULES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


@dataclass(frozen=True)
class Library:
    """An imported library.

    Attributes:
        api: the module.
        name: as users know it.
        version: as it says itself.
        ahead_of_time: it builds engines for GPUs that are not here.
    """

    api: Any
    name: str
    version: str
    ahead_of_time: bool

    def capabilities(self) -> tuple[str, ...]:
        """Names of the GPU generations that it builds for ahead of time ("SM89")."""
        if not self.ahead_of_time:
            return ()
        return tuple(n for n in self.api.ComputeCapability.__members__ if n.startswith("SM"))


def find_library(ahead_of_time: bool = False) -> Library | None:
    """The first library that imports, or None; with ``ahead_of_time`` one that needs no GPU."""
    for module, name in _MODULES.items():
        try:
            api: Any = importlib.import_module(module)
        # A wheel whose shared libraries are absent fails with OSError, RuntimeError or ImportError.
        except (ImportError, OSError, RuntimeError):
            continue
        if not hasattr(api, "Builder"):
            continue
        found = Library(api, name, str(api.__version__), hasattr(api, "ComputeCapability"))
        if found.ahead_of_time or not ahead_of_time:
            return found
    return None


def need_library(ahead_of_time: bool = False) -> Library:
    """As ``find_library``.

    Raises:
        BackendMissingError: none is installed.
    """
    found = find_library(ahead_of_time)
    if found is None:
        needed = "tensorrt-rtx" if ahead_of_time else "tensorrt or tensorrt-rtx"
        raise BackendMissingError(
            f"{needed} is not installed; `pip install qcompile[tensorrt]` brings tensorrt-rtx"
        )
    return found
