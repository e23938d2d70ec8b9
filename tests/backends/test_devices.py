"""Devices: read from the machine, or named."""

from __future__ import annotations

import platform
from types import SimpleNamespace

import pytest

from qcompile.backends.devices import Device, detect, device_names, get_device, missing_features


def fake(monkeypatch: pytest.MonkeyPatch, machine: str, *features: str) -> Device:
    """What would be detected on another machine."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(
        "archspec.cpu.detect.detected_info", lambda: SimpleNamespace(features=set(features))
    )
    return detect()


def test_every_name_is_a_device() -> None:
    assert device_names()[0] == "native"
    for name in device_names()[1:]:
        assert get_device(name).name == name
    assert get_device() == get_device("native") == detect()


@pytest.mark.parametrize(
    ("machine", "features", "name", "exact"),
    [
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), "x86-vnni", True),
        ("AMD64", ("avx2", "avx_vnni"), "x86-vnni", True),
        ("x86_64", ("avx2", "avx512f"), "x86-avx2", False),
        ("x86_64", (), "x86-avx2", False),
        ("aarch64", ("asimd", "asimddp"), "arm64-dotprod", True),
        ("arm64", ("FEAT_DotProd", "FEAT_I8MM"), "arm64-i8mm", True),
        ("riscv64", (), "riscv64", False),
    ],
)
def test_features_decide(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    features: tuple[str, ...],
    name: str,
    exact: bool,
) -> None:
    device = fake(monkeypatch, machine, *features)
    assert (device.name, device.exact_dot) == (name, exact)


def test_a_cpu_that_cannot_be_read_gets_the_careful_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no sysctl")

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr("archspec.cpu.detect.detected_info", broken)
    with pytest.warns(UserWarning, match="could not be read.*no sysctl.*--device"):
        assert not detect().exact_dot


def test_missing_features() -> None:
    avx2, vnni = get_device("x86-avx2"), get_device("x86-vnni")
    assert missing_features(vnni.features, avx2) == ("avx512_vnni",)
    assert missing_features(avx2.features, vnni) == ()
    other = Device("x86-vnni", "x86_64", ("avx2", "avx_vnni"), True, "test")
    assert missing_features(vnni.features, other) == (), "either form of VNNI serves"
