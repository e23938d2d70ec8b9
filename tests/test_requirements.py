"""--require and --best-effort: what turns a delivery into a refusal, and a refusal into a delivery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as oir
import pytest

import qcompile
from qcompile.float_only import why_float
from qcompile.ir.plan import FLOAT, INT8
from qcompile.job import Job
from qcompile.options import make_options
from qcompile.outcome import Outcome, settle
from qcompile.prepare import Prepared
from qcompile.verdict import INCONCLUSIVE, Check, GateResult, conclude, not_measured

Feeds = list[dict[str, npt.NDArray[np.float32]]]

DONE = {"origin": "a", "compute": True, "macs": 1, "requested": INT8, "realised": INT8}
MISSED = {"origin": "b", "compute": True, "macs": 1, "requested": INT8, "realised": FLOAT}
LEFT = {"origin": "c", "compute": True, "macs": 1, "requested": FLOAT, "realised": FLOAT}

PASSED = conclude([Check("opens", "pass", "it opens")])
VAGUE = conclude([Check("speed", "inconclusive", "1.0x the speed of float")])

QUICK: dict[str, Any] = {"gate_time": "0.5s", "effort": "fast", "threads": 1}

SITE = SimpleNamespace(role="compute", reason="")

PLAIN = (
    "g (float[2,4] x) => (float[2,2] y) <float[4,2] w = {1,2,3,4,1,2,3,4}> { y = MatMul (x, w) }"
)
FOREST = "g (float[2,4] x) => (float[2,4] y) { a = Abs (x) b = Abs (a) y = Neg (b) }"
INTEGER = """g (uint8[2,4] x) => (int32[2,4] y) <uint8[4,4] w = {1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4}> {
    y = MatMulInteger (x, w)
}"""
BRANCH = """g (bool go, float[2,4] x) => (float[2,4] y) <float[4,4] w = {1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4}> {
    y = If (go) <then_branch = a () => (float[2,4] p) { p = MatMul (x, w) },
                 else_branch = b () => (float[2,4] q) { q = MatMul (x, w) }>
}"""


def _model(graph: str) -> oir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]>\n{graph}'
    return oir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    ("graph", "sites", "words"),
    [
        (PLAIN, [SITE], ""),
        (PLAIN, [SimpleNamespace(role="compute", reason="too small")], ""),
        (FOREST, [], "it has no Conv, MatMul, Gemm or LSTM (2 Abs, 1 Neg)"),
        (INTEGER, [], "quantized already (1 MatMulInteger); give the float model"),
        (
            BRANCH,
            [],
            "control flow stays in float (2 MatMul inside 1 If); export the model without",
        ),
    ],
)
def test_why_nothing_is_integer(graph: str, sites: list[Any], words: str) -> None:
    why = why_float(cast(Prepared, SimpleNamespace(model=_model(graph), sites=sites)))
    assert words in why and bool(words) == bool(why)


def test_layers_inside_control_flow_are_told_beside_the_share() -> None:
    outcome = settled(PASSED, [DONE], graph=BRANCH)
    assert outcome.exit_code == 0
    assert outcome.warnings[0].startswith("2 MatMul inside 1 If stay float")


def settled(
    gate: GateResult,
    layers: Sequence[Mapping[str, Any]],
    *,
    random: bool = False,
    graph: str = PLAIN,
    **options: Any,
) -> Outcome:
    target = SimpleNamespace(ops={"Conv": None})  # one that has integer forms
    job = SimpleNamespace(
        options=make_options(**options),
        data=SimpleNamespace(random=random),
        prepared=SimpleNamespace(target=target, model=_model(graph), sites=[SITE]),
    )
    return settle(gate, cast(Job, job), layers)


def test_nothing_required() -> None:
    outcome = settled(PASSED, [DONE])
    assert (outcome.exit_code, outcome.warnings, outcome.advice) == (0, (), "")


def test_random_data() -> None:
    assert "calibrated on random data" in settled(PASSED, [DONE], random=True).headline
    assert settled(PASSED, [DONE], random=True, allow_random=True).exit_code == 0
    both = settled(PASSED, [DONE], random=True, allow_random=True, require="real-data")
    assert both.exit_code == 3


def test_realised() -> None:
    outcome = settled(PASSED, [DONE, MISSED])
    assert outcome.exit_code == 0
    assert "'b' (int8 -> float)" in outcome.warnings[0]
    for options in ({"require": "realised"}, {"strict": True}):
        refused = settled(PASSED, [DONE, MISSED], **options)
        assert refused.exit_code == 3
        assert "not realised as requested" in refused.headline


def test_conclusive() -> None:
    assert settled(VAGUE, [DONE]).verdict == INCONCLUSIVE
    refused = settled(VAGUE, [DONE], require=["conclusive", "real-data"])
    assert refused.exit_code == 3
    assert "--gate-time" in refused.headline


def test_measured() -> None:
    assert settled(not_measured("no GPU here"), [DONE]).exit_code == 0
    assert settled(not_measured("no GPU here"), [DONE], require="measured").exit_code == 4


def test_nothing_integer_is_no_delivery() -> None:
    refused = settled(PASSED, [LEFT])
    assert refused.exit_code == 3
    assert "no layer can be integer" in refused.headline
    assert "--best-effort" in refused.advice
    assert settled(PASSED, [LEFT], random=True, best_effort=True).exit_code == 0


def test_what_failed_stays_the_reason() -> None:
    failed = conclude([Check("accuracy", "fail", "SQNR 3.0 dB (10 dB needed)")])
    outcome = settled(failed, [DONE, MISSED], random=True, strict=True)
    assert "SQNR 3.0 dB" in outcome.headline
    assert outcome.exit_code == 3


def test_best_effort_delivers_the_fused_float_model(
    dwcnn: Path, calibration_feeds: Feeds, tmp_path: Path
) -> None:
    # More than eight bits can give, less than float's rounding needs.
    options = {**QUICK, "min_sqnr": 80.0, "min_speedup": 0.01, "calibration": calibration_feeds}
    refused = qcompile.compile(dwcnn, output=tmp_path / "a", **options)
    assert refused.exit_code == 3
    result = qcompile.compile(dwcnn, output=tmp_path / "b", best_effort=True, **options)
    assert result.check().report.data["delivered_form"] == "float"
    assert "IN FLOAT, since nothing quantized passed the gate" in result.headlines()[0]
    assert any("80 dB needed" in line for line in result.headlines()), result.headlines()
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 80
    operators = {node.op_type for node in onnx.load(result.model).graph.node}
    assert not any(op.startswith(("QLinear", "Quantize")) for op in operators)
    assert result.open().run(None, calibration_feeds[0])[0].shape == (32, 10)


def test_best_effort_that_fails_too_is_not_delivered(
    dwcnn: Path, calibration_feeds: Feeds, tmp_path: Path
) -> None:
    result = qcompile.compile(
        dwcnn,
        output=tmp_path / "a",
        calibration=calibration_feeds,
        best_effort=True,
        max_size=1000,
        **QUICK,
    )
    assert result.exit_code == 3
    assert any("does not pass either" in line for line in result.headlines())


def test_best_effort_changes_nothing_where_integers_pass(
    dwcnn: Path, calibration_feeds: Feeds, tmp_path: Path
) -> None:
    result = qcompile.compile(
        dwcnn,
        output=tmp_path / "a",
        calibration=calibration_feeds,
        best_effort=True,
        min_speedup=0.01,
        **QUICK,
    )
    assert result.check().report.data["delivered_form"] == "quantized"


def test_loading_on_a_cpu_that_lacks_features_warns(
    dwcnn: Path, calibration_feeds: Feeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = qcompile.compile(
        dwcnn,
        output=tmp_path / "a",
        calibration=calibration_feeds,
        device="x86-vnni",
        min_speedup=0.01,
        **QUICK,
    )
    from qcompile.backends.devices import get_device

    monkeypatch.setattr("qcompile.result.detect", lambda: get_device("x86-avx2"))
    with pytest.warns(
        RuntimeWarning, match="compiled for x86-vnni, and this CPU lacks avx512_vnni"
    ):
        qcompile.load(result.path)
    other = replace(get_device("x86-vnni"), features=("avx2", "avx_vnni"))
    monkeypatch.setattr("qcompile.result.detect", lambda: other)
    qcompile.load(result.path)


def test_where_nothing_can_be_integer_nothing_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompile.attempts.judge", None)  # calling it would fail
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }'
    )
    feeds = [{"x": np.ones((1, 8), np.float32)} for _ in range(4)]
    result = qcompile.compile(proto, calibration=feeds, output=tmp_path / "out", gate_time="1s")
    assert result.exit_code == 3
    headline = result.report.data["headline"]
    assert headline.count("it has no Conv, MatMul, Gemm or LSTM (1 Relu)") == 1
    assert "--best-effort" in result.report.data["next"]
