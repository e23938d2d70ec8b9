"""The gate: every check failed once on purpose, and passed once; the words and the exit codes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompile import verdict
from qcompile.compare import SQNR_MAX
from qcompile.gate import judge, model_bytes
from qcompile.interval import Interval
from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.limits import Limits
from qcompile.measure import ModelSpeed, SpeedResult
from qcompile.rollout import Rollout
from tests.gate_models import FEEDS, NOISY, failed, gate, load_here, small


@pytest.fixture
def child() -> None:
    """Asked for by the tests that open models in a child process, as the gate does."""


@pytest.fixture(autouse=True)
def opened_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open models in this process, half a second quicker each, except where `child` is asked for."""

    if "child" not in request.fixturenames:
        for place in ("gate", "opening"):
            monkeypatch.setattr(f"qcompile.{place}.measure_load", load_here)


@pytest.fixture
def ref(tmp_path: Path) -> Path:
    return small(tmp_path / "float.onnx")


def test_equal_model_is_delivered(child: None, ref: Path, tmp_path: Path) -> None:
    result = gate(ref, small(tmp_path / "a.onnx"), names=list("abcdef"))
    assert (result.verdict, result.exit_code) == ("delivered", 0)
    assert "outputs equal" in result.headline
    assert result.sqnr_db == SQNR_MAX
    json.dumps(result.to_dict(), allow_nan=False)


def test_sqnr_against_limit(ref: Path, tmp_path: Path) -> None:
    other = small(tmp_path / "a.onnx", NOISY)
    result = gate(ref, other)
    assert result.verdict == "delivered"
    assert result.sqnr_db == pytest.approx(20 * math.log10(5), abs=1e-3)
    assert "SQNR 14.0 dB" in result.headline
    assert "14.0 dB (20 dB needed)" in failed(
        gate(ref, other, limits=Limits(min_sqnr=20)), "accuracy"
    )


def test_refused_artifact_is_a_verdict(child: None, ref: Path, tmp_path: Path) -> None:
    other = small(tmp_path / "a.onnx", "[odd] y = Relu<alpha = 1.0>(x)")
    text = failed(gate(ref, other), "opens")
    assert "refuses it" in text and "odd" in text


def test_no_onnx_is_a_verdict(child: None, ref: Path, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("hello")
    failed(gate(ref, tmp_path / "a.onnx"), "opens")


def test_refused_float_model_is_an_error(ref: Path, tmp_path: Path) -> None:
    bad = small(tmp_path / "bad.onnx", "y = Relu<alpha = 1.0>(x)")
    with pytest.raises(ModelError, match="refuses it"):
        gate(bad, ref)


def test_float_that_cannot_run_the_samples_is_an_error(child: None, ref: Path) -> None:
    with pytest.raises(ModelError, match="float model cannot run the shape x 1x5"):
        gate(ref, ref, [{"x": np.ones((1, 5), np.float32)}])


def test_no_samples(ref: Path) -> None:
    with pytest.raises(CalibrationError, match="no held-back samples"):
        gate(ref, ref, [])


def test_frozen_batch_is_found(child: None, ref: Path, tmp_path: Path) -> None:
    other = small(tmp_path / "a.onnx", ins="float[1, 4] x", out="float[1, 4] y")
    assert "batch 3 (x 3x4)" in failed(gate(ref, other), "runs")


def test_batch_frozen_inside_is_found(ref: Path, tmp_path: Path) -> None:
    body = "s = Constant<value = int64[2] {1, 4}>() r = Reshape(x, s) y = Relu(r)"
    failed(gate(ref, small(tmp_path / "a.onnx", body)), "runs")


def test_rows_that_mix_are_found(ref: Path, tmp_path: Path) -> None:
    # right for one row, wrong for three equal ones: divides by the batch
    body = """
        s = Shape(x) zero = Constant<value = int64 {0}>() n = Gather(s, zero)
        f = Cast<to = 1>(n) r = Relu(x) y = Div(r, f)"""
    text = failed(gate(ref, small(tmp_path / "a.onnx", body)), "runs")
    assert "at batch 3" in text


def test_time_axis_is_no_batch(tmp_path: Path) -> None:
    # a running sum: float's own rows differ, so nothing can be asked of repeated rows
    body = "zero = Constant<value = int64 {0}>() y = CumSum(x, zero)"
    clipped = """
        zero = Constant<value = int64 {0}>() c = CumSum(x, zero)
        lo = Constant<value = float {-0.9}>() hi = Constant<value = float {0.9}>()
        y = Clip(c, lo, hi)"""
    feeds = [{"x": np.full((1, 4), 0.8, np.float32)}]
    result = gate(small(tmp_path / "f.onnx", body), small(tmp_path / "a.onnx", clipped), feeds)
    assert result.verdict == "delivered"


def test_fixed_batch_is_noted(tmp_path: Path) -> None:
    one = small(tmp_path / "f.onnx", ins="float[1, 4] x", out="float[1, 4] y")
    result = gate(one, one)
    assert result.verdict == "delivered"
    assert any("batch: fixed" in note for note in result.notes)


def test_extreme_shapes_are_run(tmp_path: Path) -> None:
    free = {"ins": "float[n, m] x", "out": "float[n, m] y"}
    ref = small(tmp_path / "f.onnx", **free)
    body = "s = Constant<value = int64[2] {-1, 4}>() r = Reshape(x, s) y = Relu(r)"
    other = small(tmp_path / "a.onnx", body, **free)
    wide = {"x": np.ones((1, 6), np.float32)}
    assert "x 1x6" in failed(gate(ref, other, extremes=[wide]), "runs")
    assert gate(ref, other).verdict == "delivered"


def test_what_float_refuses_is_not_timed(tmp_path: Path) -> None:
    body = "s = Constant<value = int64[2] {-1, 4}>() r = Reshape(x, s) y = Relu(r)"
    one = small(tmp_path / "f.onnx", body, ins="float[n, m] x", out="float[n, m] y")
    result = gate(one, one, extremes=[{"x": np.ones((1, 6), np.float32)}], speed=True)
    assert any("since float refuses it too" in note for note in result.notes)
    assert result.speed is not None


def test_a_rank_that_float_declares_wrongly_is_no_fault(tmp_path: Path) -> None:
    """Float declares two axes and gives three; an artifact may declare the three, not four."""
    ins, body = "float[1, 4] x, int64[k] s", "r = Relu(x) y = Reshape(r, s)"
    feeds = [{**feed, "s": np.array([1, 1, 4])} for feed in FEEDS]
    ref = small(tmp_path / "f.onnx", body, ins, "float[1, n] y")
    three = small(tmp_path / "a.onnx", body, ins, "float[1, 1, n] y")
    assert not [c for c in gate(ref, three, feeds).failed if c.name == "interface"]
    four = small(tmp_path / "b.onnx", body, ins, "float[1, 1, 1, n] y")
    assert "rank 4" in failed(gate(ref, four, feeds), "interface")


@pytest.mark.parametrize(
    ("body", "ins", "out", "text"),
    [
        ("z = Relu(x)", "float[n, 4] x", "float[n, 4] z", "output 'y' is missing"),
        ("y = Relu(x) z = Relu(x)", "float[n, 4] x", "float[n, 4] y, float[n, 4] z", "'z'"),
        ("y = Cast<to = 10>(x)", "float[n, 4] x", "float16[n, 4] y", "tensor(float16)"),
        ("y = Flatten<axis = 0>(x)", "float[n, 4] x", "float[n] y", "rank"),
    ],
)
def test_changed_interface_is_found(
    ref: Path, tmp_path: Path, body: str, ins: str, out: str, text: str
) -> None:
    if "rank" in text:
        body = "s = Constant<value = int64[1] {-1}>() y = Reshape(x, s)"
    assert text in failed(gate(ref, small(tmp_path / "a.onnx", body, ins, out)), "interface")


def test_nan_names_the_output(ref: Path, tmp_path: Path) -> None:
    body = "r = Relu(x) y = Div(r, r)"
    text = failed(gate(ref, small(tmp_path / "a.onnx", body)), "finite")
    assert text.startswith("output 'y' has ")


def test_nan_fails_even_with_a_metric(ref: Path, tmp_path: Path) -> None:
    other = small(tmp_path / "a.onnx", "r = Relu(x) y = Div(r, r)")
    failed(gate(ref, other, metric=lambda run: 1.0), "finite")


def test_size_limit(ref: Path, tmp_path: Path) -> None:
    result = gate(ref, ref, limits=Limits(max_bytes=10))
    assert "size" in failed(result, "size")
    assert gate(ref, ref, limits=Limits(max_bytes=10_000)).verdict == "delivered"


def test_model_bytes_counts_external_data(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        "m (float[256] x) => (float[256] y) { y = Add(x, w) }"
    )
    weight = np.ones(256, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert model_bytes(path) == path.stat().st_size + 1024
    assert model_bytes(tmp_path / "none.onnx") is None


def test_worst_slice_of_sqnr(ref: Path, tmp_path: Path) -> None:
    # clips at 1: only the loud slice suffers, and the quiet one drowns it in numbers
    other = small(
        tmp_path / "a.onnx",
        "lo = Constant<value = float {0.0}>() hi = Constant<value = float {0.01}>() y = Clip(x, lo, hi)",
    )
    quiet = [{"x": np.full((1, 4), 100.0, np.float32)}]
    feeds = [{"x": np.full((1, 4), 0.005, np.float32)}, *quiet]
    result = gate(
        ref,
        other,
        feeds,
        limits=Limits(min_sqnr=-10),
        names=["a", "b"],
        slices={"a": "low", "b": "high"},
    )
    assert result.outputs[0].slices["low"] == SQNR_MAX
    assert result.outputs[0].worst_sample == "b"
    feeds = [{"x": np.full((1, 4), v, np.float32)} for v in (0.009, 0.02)]
    mixed = gate(
        ref, other, feeds, Limits(min_sqnr=6.5), names=["a", "b"], slices={"a": "l", "b": "h"}
    )
    assert "in slice 'h'" in failed(mixed, "accuracy")


def test_integer_outputs_agree(tmp_path: Path) -> None:
    form = {"out": "int64[n] y"}
    ref = small(tmp_path / "f.onnx", "y = ArgMax<axis = 1, keepdims = 0>(x)", **form)
    other = small(tmp_path / "a.onnx", "y = ArgMin<axis = 1, keepdims = 0>(x)", **form)
    assert gate(ref, ref).verdict == "delivered"
    assert "agrees in 0.0%" in failed(gate(ref, other), "accuracy")


def test_zero_output_is_judged_by_its_error(tmp_path: Path) -> None:
    ref = small(tmp_path / "f.onnx", "y = Sub(x, x)")
    off = small(
        tmp_path / "a.onnx", "e = Constant<value = float {0.5}>() z = Sub(x, x) y = Add(z, e)"
    )
    near = small(
        tmp_path / "b.onnx", "e = Constant<value = float {0.0001}>() z = Sub(x, x) y = Add(z, e)"
    )
    assert "is zero in float" in failed(gate(ref, off), "accuracy")
    assert gate(ref, near).verdict == "delivered"


def test_saturated_output_is_noted(tmp_path: Path) -> None:
    body = "k = Constant<value = float {1000.0}>() z = Mul(x, k) y = Softmax(z)"
    ref = small(tmp_path / "f.onnx", body)
    feeds = [{"x": np.array([[5, 0, v, 0]], np.float32)} for v in (0, 1, 2)]
    result = gate(ref, ref, feeds)
    assert any("hardly differs between the samples" in note for note in result.notes)


def test_nan_of_float_itself_is_left_out(tmp_path: Path) -> None:
    ref = small(tmp_path / "f.onnx", "y = Log(x)")
    result = gate(ref, ref)
    assert result.verdict == "delivered"
    assert any("float itself gives NaN" in note for note in result.notes)


def test_state_is_rolled_back_in(tmp_path: Path) -> None:
    form = {
        "ins": "float[n, 4] x, float[n, 4] h",
        "out": "float[n, 4] y, float[n, 4] hn",
    }
    ref = small(tmp_path / "f.onnx", "hn = Add(x, h) y = Identity(hn)", **form)
    grow = "k = Constant<value = float {1.1}>() g = Mul(h, k) hn = Add(x, g) y = Identity(hn)"
    other = small(tmp_path / "a.onnx", grow, **form)
    zero = np.zeros((1, 4), np.float32)
    feeds = [{"x": np.ones((1, 4), np.float32), "h": zero} for _ in range(12)]
    once = gate(ref, other, feeds)
    rolled = gate(ref, other, feeds, rollout=Rollout({"hn": "h"}, steps=9))
    assert once.sqnr_db == rolled.sqnr_db == SQNR_MAX
    found = {row.step: row.sqnr_db for row in rolled.steps if row.output == "y"}
    assert list(found) == [1, 5, 9]
    assert found[1] == SQNR_MAX and found[5] > 10 > found[9]
    assert "at step 9 with the state rolled back in" in failed(rolled, "steps")
    assert any("hn -> h" in note for note in rolled.notes)


def test_speed_is_measured_and_said(child: None, ref: Path, tmp_path: Path) -> None:
    chain = " ".join(f"a{i} = Erf({'x' if i == 0 else f'a{i - 1}'})" for i in range(40))
    slow = small(
        tmp_path / "slow.onnx", f"{chain} z = Sub(x, x) w = Mul(a39, z) r = Relu(x) y = Add(r, w)"
    )
    stages: set[str] = set()
    result = judge(
        slow,
        ref,
        [{"x": np.ones((4096, 4), np.float32)}],
        threads=1,
        budget_s=2.0,
        progress=lambda stage, share: stages.add(stage),
    )
    back = judge(ref, slow, [{"x": np.ones((4096, 4), np.float32)}], threads=1, budget_s=2.0)
    if verdict.INCONCLUSIVE in (result.verdict, back.verdict):
        pytest.skip("this machine is too busy to tell 100 x from 1 x")
    assert result.verdict == "delivered" and "x faster (" in result.headline
    assert "p50, 1 thread, this CPU), " in result.headline
    assert stages == {"open", "compare", "time"}
    assert result.speed.models["artifact"].load is not None
    assert "the speed of float" in failed(back, "speed")
    json.dumps(back.to_dict(), allow_nan=False)


def speed(ratio: Interval, p50: float = 4.0) -> SpeedResult:
    models = {
        "float": ModelSpeed(8.4, 9, 10, Interval(8.4, 8, 9, 9), 100),
        "artifact": ModelSpeed(p50, 9, 10, Interval(p50, p50 - 1, p50 + 1, 9), 100, ratio),
    }
    return SpeedResult(models, "float", 4, 1, 9, 1.0, True)


@pytest.mark.parametrize(
    ("ratio", "limits", "wanted", "code"),
    [
        (Interval(2.3, 2.2, 2.4, 9), Limits(), "delivered", 0),
        (Interval(0.9, 0.85, 0.99, 9), Limits(), "not delivered", 3),
        (Interval(1.0, 0.97, 1.02, 9), Limits(), "inconclusive", 0),
        (Interval(2.3, 2.2, 2.4, 9), Limits(min_speedup=3), "not delivered", 3),
        (Interval(2.3, 2.2, 2.4, 9), Limits(max_latency_ms=2.5), "not delivered", 3),
        (Interval(2.3, 2.2, 2.4, 9), Limits(max_latency_ms=4.5), "inconclusive", 0),
        (Interval(2.3, 2.2, 2.4, 9), Limits(max_latency_ms=6), "delivered", 0),
    ],
)
def test_speed_limits(
    ref: Path,
    monkeypatch: pytest.MonkeyPatch,
    ratio: Interval,
    limits: Limits,
    wanted: str,
    code: int,
) -> None:
    import qcompile.gate

    monkeypatch.setattr(qcompile.gate, "measure_pair", lambda *a, **k: speed(ratio))
    result = gate(ref, ref, limits=limits, speed=True)
    assert (result.verdict, result.exit_code) == (wanted, code)
    assert result.headline.startswith(wanted.upper())
    assert "8.4 -> 4.0 ms p50, 4 threads, this CPU" in result.headline


def test_a_fused_float_that_fails_costs_its_row_alone(ref: Path, tmp_path: Path) -> None:
    broken = small(tmp_path / "fused.onnx", "odd_name = Relu<alpha = 1.0>(x) y = Relu(odd_name)")
    result = gate(ref, ref, speed=True, budget_s=2.0, fused=broken, limits=Limits(min_speedup=0.01))
    assert result.verdict == "delivered", result.checks
    assert result.speed is not None and set(result.speed.models) == {"float", "artifact"}
    assert any("the fused float model is not timed" in note for note in result.notes)


def test_an_artifact_that_cannot_be_timed_fails(
    ref: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> SpeedResult:
        raise ModelError("signal 11")

    monkeypatch.setattr("qcompile.gate.measure_pair", crash)
    result = gate(ref, ref, speed=True, fused=ref)
    assert "signal 11" in failed(result, "runs")
    assert not any("fused" in note for note in result.notes)


def test_not_measured_exits_zero() -> None:
    result = verdict.not_measured("no NVIDIA GPU here; run deploy/device.py on the device")
    assert (result.verdict, result.exit_code) == ("not measured", 0)
    assert result.headline.startswith("NOT MEASURED: no NVIDIA")
    json.dumps(result.to_dict(), allow_nan=False)


def test_many_failures_are_counted() -> None:
    checks = [verdict.Check("accuracy", verdict.FAIL, f"output {i}") for i in range(5)]
    assert verdict.conclude(checks).headline == (
        "NOT DELIVERED: output 0; output 1; output 2; and 2 more"
    )
