"""Energy of NVIDIA's GPUs (NVML) and Jetson boards (tegrastats).

NVML is asked through the package nvidia-ml-py where it is installed: from Volta on a GPU counts its own
joules, and older ones tell watts. Without the package, ``nvidia-smi`` tells watts. A Jetson has no NVML; its
``tegrastats`` prints the power of each rail, and which of them make up the whole depends on the board.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Counted", "Polled", "Tegrastats", "find_nvml", "find_tegra", "tegra_watts"]

POLL_S = 0.1

RAILS = (
    ("VDD_IN",),  # TX2, Xavier NX, Orin NX and Nano
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("VIN",),  # Thor
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
"""Rails whose sum is what a module draws, by board; the first whose rails are all there is taken."""

_RAIL = re.compile(r"(?<![\w@])([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?![\w%])")


class Counted:
    """The counters of joules of all GPUs."""

    def __init__(self, name: str, joules: Callable[[], float]) -> None:
        self.name, self._joules = name, joules
        self._before = 0.0

    def start(self) -> None:
        """Remember what the counters say."""
        self._before = self._joules()

    def stop(self) -> float:
        """Joules since ``start``."""
        return self._joules() - self._before


class Polled:
    """Integrates watts that are asked for ten times a second."""

    def __init__(self, name: str, watts: Callable[[], float]) -> None:
        self.name = name
        self._watts = watts
        self._done = threading.Event()
        self._joules = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to ask."""
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
        """Joules since ``start``."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        return self._joules


class Tegrastats:
    """Integrates the watts of the lines that one running tegrastats prints."""

    name = "tegrastats board"

    def __init__(self, tool: str) -> None:
        self._tool = tool
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._samples: list[tuple[float, float]] = []

    def start(self) -> None:
        """Run it until ``stop``."""
        self._samples = []
        self._process = subprocess.Popen(
            [self._tool, "--interval", str(round(1000 * POLL_S))],
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._begun = time.perf_counter()
        self._thread = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._thread.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            if _RAIL.search(line):
                self._samples.append((time.perf_counter(), tegra_watts(line)))

    def stop(self) -> float:
        """Joules since ``start``; a line's power holds from the line before it to the line."""
        over = time.perf_counter()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        if self._thread is not None:
            self._thread.join()
        joules, last = 0.0, self._begun
        for at, watts in self._samples:
            joules += watts * max(0.0, min(at, over) - last)
            last = min(at, over)
        if self._samples:
            joules += self._samples[-1][1] * (over - last)
        return joules


def tegra_watts(line: str) -> float:
    """What the module draws, from a line of tegrastats.

    Raises:
        ValueError: no known board's rails are in the line.

    >>> tegra_watts("RAM 2/3MB ... VDD_IN 5044mW/4950mW VDD_CPU_GPU_CV 1000mW/900mW")
    5.044
    >>> tegra_watts("VDD_GPU_SOC 2000mW/2000mW VDD_CPU_CV 500mW/500mW VIN_SYS_5V0 1500mW/1500mW")
    4.0
    """
    found: dict[str, int] = {}
    for name, milliwatts in _RAIL.findall(line):
        found.setdefault(name, int(milliwatts))
    for rails in RAILS:
        if all(rail in found for rail in rails):
            return sum(found[rail] for rail in rails) / 1e3
    raise ValueError(f"tegrastats names no rails of a known board ({', '.join(found) or 'none'})")


def find_nvml() -> tuple[list[Counted | Polled], str]:
    """A meter of all GPUs, or why there is none."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        found, why = _by_tool()
        return found, "" if found else f"{why}, and nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        devices = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        if not devices:
            return [], "no GPU"
        return [_meter(nvml, devices)], ""
    except (nvml.NVMLError, OSError) as e:
        return [], f"nvidia-ml-py cannot ask the driver ({e})"


def _meter(nvml: Any, devices: list[Any]) -> Counted | Polled:
    def joules() -> float:
        return sum(float(nvml.nvmlDeviceGetTotalEnergyConsumption(d)) for d in devices) / 1e3

    def watts() -> float:
        return sum(float(nvml.nvmlDeviceGetPowerUsage(d)) for d in devices) / 1e3

    try:
        joules()
    except nvml.NVMLError:  # before Volta there is no such counter
        watts()
        return Polled("NVML GPU", watts)
    return Counted("NVML GPU", joules)


def _by_tool() -> tuple[list[Counted | Polled], str]:
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
    return [Polled("NVML GPU", watts)], ""


def find_tegra() -> tuple[list[Tegrastats], str]:
    """A meter of a Jetson board, or why there is none."""
    tool = shutil.which("tegrastats")
    if tool is None:
        return [], "no tegrastats"
    try:
        with subprocess.Popen(
            [tool, "--interval", "50"], stdout=subprocess.PIPE, text=True, errors="replace"
        ) as run:
            line = run.stdout.readline() if run.stdout is not None else ""
            run.terminate()
        tegra_watts(line)
    except (OSError, ValueError) as e:
        return [], str(e)
    return [Tegrastats(tool)], ""
