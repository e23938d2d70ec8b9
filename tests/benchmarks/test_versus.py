"""The comparison with other quantizers: what is read, what is held out, what a table shows."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from qcompile.ir.errors import ModelError

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {
  y = MatMul(x, w)
}
"""


@pytest.fixture(scope="module")
def folder(root: Path) -> Iterator[Path]:
    """The scripts' own folder, where they import one another from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        yield root / "benchmarks"


@pytest.fixture(scope="module")
def versus(folder: Path) -> ModuleType:
    return importlib.import_module("versus")


@pytest.fixture(scope="module")
def tables(folder: Path) -> ModuleType:
    return importlib.import_module("versus_tables")


@pytest.fixture(scope="module")
def peer(folder: Path) -> ModuleType:
    return importlib.import_module("peer")


@pytest.fixture(scope="module")
def watched(folder: Path) -> ModuleType:
    return importlib.import_module("watched")


@pytest.fixture
def case(tmp_path: Path, versus: ModuleType) -> object:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "m.onnx")
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        np.savez(data / f"{i:02}.npz", x=rng.normal(size=(2, 4)).astype(np.float32))
    return versus.Case("m", tmp_path / "m.onnx", str(data))


def test_what_models_are_given_as(versus: ModuleType) -> None:
    texts = [r"C:\m\rec.onnx=D:\data", "det.onnx=calib.py:samples=eval.py:f1"]
    rec, det = versus.parse_cases(texts)
    assert (rec.data, rec.metric) == (r"D:\data", None)
    assert (det.name, str(det.model)) == ("det", "det.onnx")
    assert (det.data, det.metric) == ("calib.py:samples", "eval.py:f1")
    alike = versus.parse_cases(["a/model.onnx=data", "b/model.onnx=data"])
    assert [case.name for case in alike] == ["a/model", "b/model"]


@pytest.mark.parametrize("text", ["model.onnx", "m.onnx=", "m.onnx=d=eval.py:f=x"])
def test_what_a_model_is_not_given_as(versus: ModuleType, text: str) -> None:
    with pytest.raises(SystemExit, match="is no MODEL=DATA"):
        versus.parse_cases([text])


def test_the_command_line(versus: ModuleType) -> None:
    line = ["--models", "a.onnx=d", "b.onnx=d", "--peer", "nncf=p", "--threads", "1,2"]
    args = versus.arguments(line)
    assert (args.models, args.peer, args.threads) == (["a.onnx=d", "b.onnx=d"], ["nncf=p"], [1, 2])
    with pytest.raises(SystemExit):
        versus.arguments(["--threads", "0"])


THERE = str(Path("there").absolute())
ORT = ["ort-qdq", "ort-qdq-up", "ort-entropy", "ort-percentile", "ort-qop", "ort-dynamic"]


@pytest.fixture
def having(versus: ModuleType, peer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's peers here; another version of it, and NNCF, there."""

    def ask(python: str) -> dict[str, str]:
        tools = {"ort": "onnxruntime 1"}
        if python == THERE:
            tools = {"ort": "onnxruntime 2", "nncf": "nncf 3"}
        return {name: tools[one.tool] for name, one in peer.PEERS.items() if one.tool in tools}

    monkeypatch.setattr(versus, "ask", ask)


def test_peers_of_this_environment_and_of_others(versus: ModuleType, having: None) -> None:
    assert list(versus.peers_of([])) == ORT
    found = versus.peers_of(["nncf=there", "ort-qop=there"])
    assert list(found) == [*ORT, "nncf"]
    assert found["nncf"] == versus.Found(THERE, "nncf 3")
    assert found["ort-qop"] == versus.Found(THERE, "onnxruntime 2")
    assert found["ort-qdq"] == versus.Found(sys.executable, "onnxruntime 1")


def test_a_tool_stands_for_all_its_peers(versus: ModuleType, having: None) -> None:
    found = versus.peers_of(["ort=there", "nncf=there"], without=["nncf", "ort-qop"])
    assert {name: one.python for name, one in found.items()} == {
        name: THERE for name in ORT if name != "ort-qop"
    }
    assert list(versus.peers_of(["nncf=there"], without=["ort"])) == ["nncf"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nncf", "is no NAME=PYTHON"),
        ("nncv=there", "nncv is unknown; known are aimet"),
        ("ort-trt=there", "ort-trt is unknown"),
        ("aimet=there", r"there' has none of aimet-onnx"),
    ],
)
def test_peers_that_cannot_take_part(
    versus: ModuleType, having: None, given: str, told: str
) -> None:
    with pytest.raises(SystemExit, match=told):
        versus.peers_of([given])


def test_an_interpreter_that_is_none(versus: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"python' cannot run peer\.py: .*No such file"):
        versus.ask(str(tmp_path / "python"))


def test_no_tool_sees_the_held_out_samples(
    versus: ModuleType, case: object, tmp_path: Path
) -> None:
    folder, held = versus.split(case, tmp_path / "calibration")
    files = sorted(folder.glob("*.npz"))
    assert (len(files), len(held)) == (16, 4)
    seen = [np.load(file)["x"] for file in files]
    assert not any(np.array_equal(feed["x"], x) for feed in held for x in seen)


def test_an_artifact_that_does_not_open_is_a_row(
    versus: ModuleType, case: object, tmp_path: Path
) -> None:
    _, held = versus.split(case, tmp_path / "calibration")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    model = tmp_path / "m.onnx"
    rows = {tool: versus.Row("m", tool) for tool in ("float", "same", "bad")}
    able = versus.judge_all(case, held, {"float": model, "same": model, "bad": bad}, rows)
    assert list(able) == ["float", "same"]
    assert rows["bad"].fault.startswith("refused by ONNX Runtime: ")
    assert rows["bad"].fault.count("ONNX Runtime") == 1
    assert rows["same"].sqnr_db == 200


def test_a_float_model_that_does_not_open_is_no_row(versus: ModuleType, case: object) -> None:
    model: Path = case.model  # type: ignore[attr-defined]
    bad = model.with_name("bad.onnx")
    bad.write_bytes(b"no model")
    with pytest.raises(ModelError):
        versus.judge_all(case, [], {"float": bad}, {"float": versus.Row("m", "float")})


def test_which_artifacts_keep_accuracy(versus: ModuleType, case: object) -> None:
    def row(tool: str, sqnr_db: float) -> object:
        return versus.Row("m", tool, sqnr_db=sqnr_db)

    rows = {"float": versus.Row("m", "float"), "qcompile": row("qcompile", 30.0)}
    rows |= {"better": row("better", 31.0), "worse": row("worse", 29.0)}
    rows["failed"] = versus.Row("m", "failed", fault="why")
    versus.mark_kept(case, rows, "2%")
    kept = {tool: one.keeps for tool, one in rows.items()}
    assert kept == {"float": None, "qcompile": True, "better": True, "worse": False, "failed": None}


def test_a_score_decides_where_there_is_a_metric(
    versus: ModuleType, case: object, tmp_path: Path
) -> None:
    script = tmp_path / "eval.py"
    script.write_text("def wrong(run): return 1.0\nwrong.lower_is_better = True\n", "utf-8")
    scored = replace(case, metric=f"{script}:wrong")  # type: ignore[type-var]
    rows = {tool: versus.Row("m", tool, score=1.0) for tool in ("float", "qcompile", "bad")}
    rows["bad"].score = 1.05
    versus.mark_kept(scored, rows, "2%")
    assert (rows["qcompile"].keeps, rows["bad"].keeps) == (True, False)


def test_a_tool_gets_a_copy_of_the_model(folder: Path, case: object, tmp_path: Path) -> None:
    model: Path = case.model  # type: ignore[attr-defined]
    loaded = onnx.load(model)
    (w,) = loaded.graph.initializer
    w.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(w), "w"))  # raw bytes
    outside = model.with_name("outside.onnx")
    onnx.save(loaded, outside, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "tool").mkdir()
    copy = importlib.import_module("versus_cases").copy_model(outside, tmp_path / "tool")
    assert onnx.load(copy).graph.initializer[0].raw_data
    assert {p.name for p in copy.parent.iterdir()} == {"outside.onnx", "w.bin"}


def test_processor_time_is_that_of_the_tool_and_not_of_waiting(watched: ModuleType) -> None:
    ran = watched.run_watched([sys.executable, "-c", "import time; time.sleep(0.5)"], 60.0)
    assert ran.seconds >= 0.5
    assert ran.processor_s <= ran.seconds


def test_a_tool_that_hangs_is_ended(watched: ModuleType) -> None:
    ran = watched.run_watched([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    assert ran.code != 0
    assert ran.seconds < 30
    assert ran.peak_mb > 0
    assert ran.fault().startswith("not done after ")


@pytest.mark.parametrize(
    ("code", "text", "fault"),
    [
        (1, "Traceback\nerror: ValueError: no\nbye", "error: ValueError: no"),
        (3, "NOT FASTER 0.9x\nnext: ...", "NOT FASTER 0.9x"),
        (1, "first\nlast\n\n", "last"),
        (-11, "loading", "crashed (SIGSEGV)"),
        (2, "", "exit code 2 without a word"),
    ],
)
def test_why_a_tool_failed(watched: ModuleType, code: int, text: str, fault: str) -> None:
    assert watched.Ran(code, text, 1.0, 1.0).fault() == fault


def test_another_interpreter_sees_nothing_of_this_one(
    watched: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "ours")
    assert watched.clean_environment(sys.executable)["PYTHONPATH"] == "ours"
    assert "PYTHONPATH" not in watched.clean_environment("python-of-another")


def test_a_row_for_every_tool(tables: ModuleType) -> None:
    good = tables.Row("m", "a", ms={1: 1.0}, speedup={1: 2.0}, sqnr_db=30.0, megabytes=1.5)
    text = tables.tools_table([good, tables.Row("m", "b", fault="a | b", compile_s=2.0)], [1])
    lines = text.splitlines()
    assert "| m | a | 1 ms, 2.00x | 30.0 |  | 1.50 |  |  |" in lines
    assert lines[-1] == "| m | b | a / b |  |  |  | 2.0 |  |"
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_the_summary(tables: ModuleType) -> None:
    def row(tool: str, speedup: float, score: float, sqnr_db: float, keeps: bool) -> object:
        ms, faster = {1: 2.0 / speedup}, {1: speedup}
        found = tables.Row("m", tool, ms=ms, speedup=faster, score=score, sqnr_db=sqnr_db)
        found.keeps = keeps
        return found

    base = tables.Row("m", "float", ms={1: 2.0}, speedup={1: 1.0}, score=0.9, quantized=False)
    ours = row("qcompile", 2.0, 0.9, 30.0, True)
    ours.integer_share = 0.5  # type: ignore[attr-defined]
    baseline = row("simple", 3.0, 0.9, 200.0, True)
    baseline.quantized = False  # type: ignore[attr-defined]
    peers = [row("fast", 1.8, 0.5, 9.0, False), row("fair", 1.5, 0.89, 20.0, True)]
    failed = tables.Row("m", "failed", fault="why")
    unread = tables.Row("n", "float", fault="no such file")
    text = tables.summary_table([base, ours, baseline, *peers, failed, unread], 1)
    assert text.splitlines()[2:] == [
        "| m | 2 | 2.00x | 0.900 -> 0.900 | 50% "
        "| fair 1.50x, 0.890, 20.0 dB | fair 1.50x, 0.890, 20.0 dB |",
        "| n |  | no such file |  |  |  |  |",
    ]


def test_a_summary_of_what_nothing_was_made_of(tables: ModuleType) -> None:
    base = tables.Row("m", "float", ms={1: 2.0}, speedup={1: 1.0}, quantized=False)
    ours = tables.Row("m", "qcompile", fault="NOT FASTER")
    text = tables.summary_table([base, ours], 1)
    assert text.splitlines()[-1] == "| m | 2 | NOT FASTER |  |  | none | none |"


def test_stages_in_order_of_first_sight(tables: ModuleType) -> None:
    one = tables.Row("m", "qcompile", stages={"load": 0.1, "plan": 2.0}, compile_s=3.0)
    two = tables.Row("n", "qcompile", stages={"load": 0.2, "pack": 1.0}, compile_s=2.0)
    assert tables.stages_table([one, tables.Row("m", "float"), two]).splitlines() == [
        "| model | load | plan | pack | rest | all |",
        "|---|---|---|---|---|---|",
        "| m | 0.1 | 2.0 |  | 0.9 | 3.0 |",
        "| n | 0.2 |  | 1.0 | 0.8 | 2.0 |",
    ]
    assert tables.stages_table([tables.Row("m", "float")]) == ""


def test_versions_of_all_peers(tables: ModuleType) -> None:
    machine = {"cpu": "zen4", "system": "Linux", "features": ["avx2"], "cores": 1}
    peers = {"ort-qdq": "onnxruntime 1", "ort-qop": "onnxruntime 1", "nncf": "nncf 3"}
    text = tables.versions_text(machine, {"qcompile": "0.1"}, peers, "2026-11-21")
    assert text.splitlines() == [
        "Measured 2026-11-21 on zen4 (Linux, avx2), 1 core; compiled and timed with qcompile 0.1.",
        "* ort-qdq, ort-qop: onnxruntime 1",
        "* nncf: nncf 3",
    ]


def test_peers_tell_what_is_installed(folder: Path, peer: ModuleType) -> None:
    command = [sys.executable, str(folder / "peer.py"), "--installed"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found) <= set(peer.PEERS)
    assert all(" " in version for version in found.values())


def test_a_peer_that_fails_says_why_in_one_line(
    peer: ModuleType,
    case: object,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("\nno such operator\nmore of it")

    monkeypatch.setitem(peer.PEERS, "nncf", peer.Peer("nncf", ("nncf",), fail))
    model: Path = case.model  # type: ignore[attr-defined]
    data = str(model.parent / "data")
    assert peer.main(["nncf", str(model), data, str(model.with_name("out.onnx"))]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == "error: ValueError: no such operator"


def test_old_models_are_upgraded_and_new_ones_left(peer: ModuleType, tmp_path: Path) -> None:
    for opset in (11, 13):
        model = onnx.parser.parse_model(MODEL.replace(": 17", f": {opset}"))
        onnx.save(model, tmp_path / f"{opset}.onnx")
    old, new = str(tmp_path / "11.onnx"), str(tmp_path / "13.onnx")
    raised = peer.upgraded(old, str(tmp_path / "out.onnx"))
    assert onnx.load(raised).opset_import[0].version == peer.UPGRADED
    assert peer.upgraded(new, str(tmp_path / "out.onnx")) == new


def test_calibration_is_measured_in_processes_of_their_own(folder: Path, case: object) -> None:
    calibration = importlib.import_module("calibration")
    model = case.model  # type: ignore[attr-defined]
    for kind in calibration.KINDS:
        found = calibration.child(kind, model, model.parent / "data", 8, 1)
        assert found["seconds"] > 0
        assert found["peak_mb"] > 10
