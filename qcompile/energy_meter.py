"""Joules drawn while something runs, from whatever this machine lets be read; nothing is estimated.

Each meter counts a whole package, board or GPU, with everything else that runs there.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Energy", "find_meters", "metered"]

POWERCAP = Path("/sys/class/powercap")  # POSIX: looked for, absent elsewhere
POLL_S = 0.1

_TEGRA = re.compile(r"\b(VDD_IN|POM_5V_IN|VIN_SYS_5V0) (\d+)(?:mW)?/")


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


class _Polled:
    """Integrates watts that are asked for ten times a second."""

    def __init__(self, name: str, watts: Any) -> None:
        self.name = name
        self._watts = watts
        self._done = threading.Event()
        self._joules = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._done.clear()
        self._joules = 0.0
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        last, power = time.perf_counter(), float(self._watts())
        over = False
        while not over:
            over = self._done.wait(POLL_S)
            now, new = time.perf_counter(), float(self._watts())
            self._joules += (power + new) / 2 * (now - last)
            last, power = now, new

    def stop(self) -> float:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        return self._joules


def find_meters() -> tuple[list[Meter], dict[str, str]]:
    """The meters that can be read here, and why the others cannot."""
    meters: list[Meter] = []
    missing: dict[str, str] = {}
    for kind, find in (("RAPL", _find_rapl), ("NVML", _find_nvml), ("tegrastats", _find_tegra)):
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


def _find_nvml() -> tuple[list[Meter], str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], "no nvidia-smi"
    command = [tool, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]

    def watts() -> float:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return sum(float(line) for line in text.stdout.split())

    try:
        watts()
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        return [], f"nvidia-smi tells no power ({e})"
    return [_Polled("NVML GPU", watts)], ""


def _find_tegra() -> tuple[list[Meter], str]:
    tool = shutil.which("tegrastats")
    if tool is None:
        return [], "no tegrastats"

    def watts() -> float:
        with subprocess.Popen([tool, "--interval", "50"], stdout=subprocess.PIPE, text=True) as run:
            line = run.stdout.readline() if run.stdout is not None else ""
            run.terminate()
        return tegra_watts(line)

    try:
        watts()
    except (OSError, ValueError) as e:
        return [], str(e)
    return [_Polled("tegrastats board", watts)], ""


def tegra_watts(line: str) -> float:
    """The board's input power in a line of tegrastats.

    >>> tegra_watts("RAM 2/3MB ... VDD_IN 5044mW/4950mW VDD_CPU 1000mW/900mW")
    5.044
    """
    found = _TEGRA.search(line)
    if found is None:
        raise ValueError("its line names no input power")
    return int(found[2]) / 1e3
