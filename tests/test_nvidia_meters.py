"""NVML by a stand-in for its package, tegrastats by lines that boards print and by a script in its place."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from qcompile import nvidia_meters
from qcompile.energy_meter import find_meters
from qcompile.nvidia_meters import Tegrastats, find_nvml, find_tegra, tegra_watts

HEAD = (
    "RAM 1903/15692MB (lfb 3251x4MB) SWAP 0/7846MB (cached 0MB) CPU [1%@1190,off,2%@1190] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] AO@32.5C GPU@32C CPU@33.5C thermal@32.9C PMIC@100C "
)

LINES = {
    "Nano": ("POM_5V_IN 2387/2387 POM_5V_GPU 124/124 POM_5V_CPU 460/460", 2.387),
    "TX2": (
        "VDD_SYS_GPU 152/152 VDD_SYS_SOC 687/687 VDD_4V0_WIFI 0/0 VDD_IN 3056/3056 "
        "VDD_SYS_CPU 152/152 VDD_SYS_DDR 883/883",
        3.056,
    ),
    "Xavier NX": ("VDD_IN 4067mW/4067mW VDD_CPU_GPU_CV 738mW/738mW VDD_SOC 1353mW/1353mW", 4.067),
    "AGX Xavier": ("GPU 0/0 CPU 216/216 SOC 864/864 CV 0/0 VDDRQ 144/144 SYS5V 1889/1889", 3.113),
    "AGX Orin": (
        "VDD_GPU_SOC 3205mW/3205mW VDD_CPU_CV 801mW/801mW VIN_SYS_5V0 3850mW/3850mW "
        "NC 0mW/0mW VDDQ_VDD2_1V8AO 604mW/604mW",
        7.856,
    ),
    "AGX Orin, JetPack 7": (
        "VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW "
        "VIN_SYS_5V0 5500mW/5500mW/5500mW",
        13.907,
    ),
}


@pytest.mark.parametrize("board", LINES)
def test_the_rails_of_each_board(board: str) -> None:
    rails, watts = LINES[board]
    assert tegra_watts(HEAD + rails) == pytest.approx(watts)


def test_a_line_without_rails() -> None:
    with pytest.raises(ValueError, match="no rails"):
        tegra_watts(HEAD)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_one_tegrastats_runs_as_long_as_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "tegrastats"
    line = HEAD + "VDD_IN 5000mW/5000mW"
    tool.write_text(f'#!/bin/sh\nwhile :; do echo "{line}"; sleep 0.02; done\n', encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found, why = find_tegra()
    assert why == "" and isinstance(found[0], Tegrastats)
    start = time.perf_counter()
    found[0].start()
    time.sleep(0.3)
    joules = found[0].stop()
    assert 5 * 0.3 * 0.9 < joules <= 5 * (time.perf_counter() - start)


class _Error(Exception):
    """As pynvml.NVMLError."""


def _stand_in(*, counter: bool) -> ModuleType:
    made = ModuleType("pynvml")
    read = iter(range(1000, 100_000, 500))

    def joules(device: object) -> int:
        if not counter:
            raise _Error("Not Supported")
        return next(read)

    members = {
        "NVMLError": _Error,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetTotalEnergyConsumption": joules,
        "nvmlDeviceGetPowerUsage": lambda d: 70_000,
    }
    for name, value in members.items():
        setattr(made, name, value)
    return made


def test_a_gpu_counts_its_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _stand_in(counter=True))
    meter = find_nvml()[0][0]
    meter.start()
    assert meter.stop() == pytest.approx(0.5)


def test_an_older_gpu_tells_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _stand_in(counter=False))
    monkeypatch.setattr(nvidia_meters, "POLL_S", 0.01)
    meter = find_nvml()[0][0]
    start = time.perf_counter()
    meter.start()
    time.sleep(0.1)
    joules = meter.stop()
    assert 7 * 0.5 < joules <= 70 * (time.perf_counter() - start)


def test_a_driver_that_does_not_answer_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = _stand_in(counter=True)

    def refuse() -> None:
        raise _Error("Driver Not Loaded")

    broken.nvmlInit = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    meters, missing = find_meters()
    assert "Driver Not Loaded" in missing["NVML"]
    assert all("NVML" not in meter.name for meter in meters)
