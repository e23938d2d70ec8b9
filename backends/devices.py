"""Which CPU features decide the integer form, read from this machine or named by the user."""

from __future__ import annotations

import difflib
import platform
import warnings
from dataclasses import dataclass
from typing import Any

from qcompile.ir.errors import TargetError

__all__ = ["Device", "detect", "device_names", "get_device", "missing_features"]


@dataclass(frozen=True)
class Device:
    """A row of devices.

    Attributes:
        name: as given to ``--device``.
        arch: "x86_64", "aarch64", or what the platform calls itself.
        features: those of ``_KNOWN`` that the CPU has, as Linux names them, sorted.
        exact_dot: 8-bit products are summed in 32 bits. False: pairs are summed in 16 bits first
            (vpmaddubsw), which saturates with full 8-bit weights.
        source: where this is known from.
    """

    name: str
    arch: str
    features: tuple[str, ...]
    exact_dot: bool
    source: str


_KNOWN = ("amx_int8", "asimddp", "avx2", "avx512_vnni", "avx512f", "avx_vnni", "i8mm", "sse4_1")
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})

# Apple and Windows name the same instructions differently.
_ALIASES = {
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "feat_dotprod": "asimddp",
    "dotprod": "asimddp",
    "feat_i8mm": "i8mm",
}

_ROWS = {
    device.name: device
    for device in (
        Device(
            "x86-avx2",
            "x86_64",
            ("avx2",),
            False,
            "ONNX Runtime's header on session.x64quantprecision: u8s8 overflows without VNNI; not run here",
        ),
        Device("x86-vnni", "x86_64", ("avx2", "avx512_vnni"), True, "tried with ONNX Runtime 1.31"),
        Device(
            "arm64-dotprod", "aarch64", ("asimddp",), True, "vendor documentation; not run here"
        ),
        Device(
            "arm64-i8mm", "aarch64", ("asimddp", "i8mm"), True, "vendor documentation; not run here"
        ),
    )
}


def device_names() -> tuple[str, ...]:
    """What ``--device`` takes for CPUs."""
    return ("native", *_ROWS)


def get_device(name: str | None = None) -> Device:
    """A device by name; "native" or None is the CPU of this machine.

    Raises:
        TargetError: unknown name, with the nearest ones.
    """
    if name is None or name == "native":
        return detect()
    if name not in _ROWS:
        near = difflib.get_close_matches(name, device_names(), n=3, cutoff=0.3) or device_names()
        raise TargetError(f"device '{name}' is unknown; nearest: {', '.join(near)}")
    return _ROWS[name]


def detect() -> Device:
    """The CPU of this machine.

    A CPU that tells nothing about itself is taken for one without VNNI: 7-bit weights are right
    everywhere.
    """
    arch, raw = _read_cpu()
    features = tuple(sorted({_ALIASES.get(f, f) for f in raw} & set(_KNOWN)))
    if arch == "aarch64":
        name = "arm64-i8mm" if "i8mm" in features else "arm64-dotprod"
        # Without dot products the kernels widen to 16 bits and sum in 32, which is exact too.
        return Device(name, arch, features, True, "this machine")
    if arch == "x86_64":
        vnni = not _VNNI.isdisjoint(features)
        return Device("x86-vnni" if vnni else "x86-avx2", arch, features, vnni, "this machine")
    return Device(arch, arch, features, False, "this machine")


def missing_features(target_features: tuple[str, ...], device: Device) -> tuple[str, ...]:
    """Features that an artifact was compiled for and a device lacks."""
    needed = set(target_features)
    have = set(device.features)
    if needed & _VNNI and have & _VNNI:
        needed -= _VNNI
    return tuple(sorted(needed - have))


def _read_cpu() -> tuple[str, frozenset[str]]:
    """Architecture and raw feature flags.

    ``archspec.cpu.host()`` is not asked: it names the best known relative of a CPU and returns that
    one's features, so a virtual machine with VNNI reads as a plain x86_64_v4.
    """
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    try:
        from archspec.cpu import detect as archspec_detect

        info: Any = archspec_detect.detected_info()
        return arch, frozenset(str(f).lower() for f in info.features)
    except Exception as e:  # noqa: BLE001 - archspec runs sysctl and cpuid, which may fail in any way
        warnings.warn(
            f"the CPU's features could not be read ({type(e).__name__}: {e}); "
            "the most careful integer form is used, name another with --device",
            stacklevel=2,
        )
        return arch, frozenset()
