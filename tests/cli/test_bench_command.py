"""bench: figures of every kind, the limit of latency, meters of energy, and what is refused."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from qcompile import energy_meter
from qcompile.bench import parse_slo
from qcompile.cli import main
from qcompile.ir.errors import OptionError
from qcompile.serve import best_rate, serve_at

Capture = pytest.CaptureFixture[str]


def test_an_artifact_against_its_float_model(built: Path, capsys: Capture) -> None:
    args = ["bench", str(built / "net.ort-int8"), "--seconds", "0.3", "--threads", "1"]
    assert main([*args, "--batch", "2", "--slo", "p99=1s", "--concurrency", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch"] == 2 and found["slo"] == {"percentile": 99.0, "limit_ms": 1000.0}
    for name in ("float", "net.ort-int8"):
        assert found["speed"]["models"][name]["load"]["first_ms"] > 0
        assert found["loads"][name]["tried"][0]["kept"]
        energy = found["loads"][name]["energy"]
        assert energy["joules"] or set(energy["missing"]) == {"RAPL", "NVML", "tegrastats"}


def test_a_plain_model_alone(built: Path, capsys: Capture) -> None:
    assert main(["bench", str(built / "net.onnx"), "--seconds", "0.2", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "latency p50" in said and "name it with --float" in said and "random data" in said


@pytest.mark.parametrize("text", ["10ms", "p99", "p99=10", "p0=1ms", "p999=1ms"])
def test_a_limit_needs_percentile_and_unit(text: str) -> None:
    with pytest.raises(OptionError, match="ms"):
        parse_slo(text)


def test_latency_counts_from_the_arrival() -> None:
    """One worker at 10 ms cannot answer 200 a second: they queue, and the percentile shows it."""
    lock = threading.Lock()

    def run(_: int) -> None:
        with lock:
            time.sleep(0.01)

    behind = serve_at(run, 200.0, 0.3, 1, limit_ms=20.0)
    assert not behind.kept and behind.percentile_ms["p99"] > 50
    assert behind.served < 110
    assert serve_at(run, 5.0, 0.3, 1, limit_ms=1e4).kept


def test_the_best_rate_keeps_the_limit_and_the_next_does_not() -> None:
    tried = best_rate(lambda _: time.sleep(0.002), 0.002, 0.7, 1, 99.0, 1e-3)
    assert len(tried) == 7 and not any(one.kept for one in tried)
    rates = [one.rate for one in tried]
    assert rates == sorted(rates, reverse=True)


def test_rapl_counters_wrap_and_parts_do_not_count_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core")):
        (tmp_path / zone).mkdir()
        for file, text in (
            ("name", name),
            ("energy_uj", "900"),
            ("max_energy_range_uj", "1000"),
        ):
            (tmp_path / zone / file).write_text(f"{text}\n")
    monkeypatch.setattr(energy_meter, "POWERCAP", tmp_path)
    with energy_meter.metered() as energy:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("400\n")
    assert energy.joules["RAPL package-0"] == pytest.approx(500e-6)
    assert "RAPL core" not in energy.joules
    assert energy.text(10).startswith("RAPL package-0 0.05 mJ")


def test_no_meter_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_meter, "POWERCAP", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with energy_meter.metered() as energy:
        pass
    assert energy.text(3) == "not available"
    assert "no nvidia-smi" in energy.why() and "no tegrastats" in energy.why()
