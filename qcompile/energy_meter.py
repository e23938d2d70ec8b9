"""Joules drawn while something runs, from whatever this machine lets be read; nothing is estimated.

Each meter counts a whole package, board or GPU, with everything else that runs there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qcompile.nvidia_meters import find_nvml, find_tegra

__all__ = ["Energy", "find_meters", "metered"]

POWERCAP = Path("/sys/class/powercap")  # POSIX: looked for, absent elsewhere


class Meter(Protocol):
    """Counts joules between ``start`` and ``stop``."""

    name: str

    def start(self) -> None:
        """Begin."""

    def stop(self) -> float:
        """Joules since ``start``."""


@dataclass
class Energy:
    """What was read.

    Attributes:
        joules: meter -> joules; empty when nothing can be read.
        missing: why there is no reading, by kind of meter.
    """

    joules: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def text(self, inferences: int) -> str:
        """Millijoules an inference."""
        if not self.joules or not inferences:
            return "not available"
        return ", ".join(f"{n} {j / inferences * 1e3:.2f} mJ" for n, j in self.joules.items())

    def why(self) -> str:
        """Why there is no reading."""
        return "; ".join(f"{kind}: {reason}" for kind, reason in self.missing.items())


@dataclass
class _Rapl:
    """Intel's and AMD's running counters of a package, in microjoules."""

    name: str
    counter: Path
    wraps_at: int
    before: int = 0

    def start(self) -> None:
        self.before = int(self.counter.read_text(encoding="ascii"))

    def stop(self) -> float:
        used = int(self.counter.read_text(encoding="ascii")) - self.before
        return (used if used >= 0 else used + self.wraps_at) / 1e6


def find_meters() -> tuple[list[Meter], dict[str, str]]:
    """The meters that can be read here, and why the others cannot."""
    meters: list[Meter] = []
    missing: dict[str, str] = {}
    finders: dict[str, Callable[[], tuple[Sequence[Meter], str]]] = {
        "RAPL": _find_rapl,
        "NVML": find_nvml,
        "tegrastats": find_tegra,
    }
    for kind, find in finders.items():
        found, why = find()
        meters += found
        if not found:
            missing[kind] = why
    return meters, missing


@contextlib.contextmanager
def metered() -> Iterator[Energy]:
    """Measure the energy of a block; the result is complete when the block ends."""
    meters, missing = find_meters()
    energy = Energy(missing=missing)
    for meter in meters:
        meter.start()
    try:
        yield energy
    finally:
        for meter in meters:
            energy.joules[meter.name] = meter.stop()


def _find_rapl() -> tuple[list[Meter], str]:
    zones = sorted(POWERCAP.glob("*-rapl:[0-9]*")) if POWERCAP.is_dir() else []
    # "intel-rapl:0:1" is a part of "intel-rapl:0" and would count twice
    packages = [z for z in zones if z.name.count(":") == 1 and (z / "energy_uj").exists()]
    if not packages:
        return [], f"no package in {POWERCAP.as_posix()}"
    meters: list[Meter] = []
    for zone in packages:
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            limit = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
            meter = _Rapl(f"RAPL {name}", zone / "energy_uj", limit)
            meter.start()
        except (OSError, ValueError) as e:
            return [], f"{zone.name} cannot be read ({getattr(e, 'strerror', None) or e})"
        meters.append(meter)
    return meters, ""
