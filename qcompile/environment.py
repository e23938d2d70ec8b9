"""Which machine and which versions a number was measured with."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

import psutil
from archspec.cpu import host

from qcompile.backends.devices import detect
from qcompile.cores import cores

__all__ = ["describe_machine", "describe_versions"]

_PACKAGES = ("qcompile", "onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "numpy")


def describe_machine() -> dict[str, Any]:
    """The machine: architecture, microarchitecture, cores this process may use, memory."""
    cpu = host()
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu.name,
        "vendor": cpu.vendor,
        # not those of cpu, which are its nearest known relative's: a virtual machine may differ
        "features": list(detect().features),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the bytes and the speed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
