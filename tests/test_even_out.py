"""Scaling of channels in a whole compile: kept where the output gains, undone elsewhere, replayed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompile
from qcompile.backends.tables import get_target
from qcompile.cli import main
from qcompile.explain import explain_layer
from qcompile.factors import fitting_factors, with_factors
from qcompile.ir.errors import PassError
from qcompile.lock import Lock
from qcompile.options import make_options
from qcompile.prepare import prepare
from qcompile.subject import open_subject
from tests.passes.qdq_models import run, text_model

QUICK: dict[str, Any] = {
    "min_speedup": 0.01, "gate_time": "0.5s", "threads": 1, "search_time": "1s", "min_sqnr": 1,
    "techniques": "fold-scales",
}  # fmt: skip
GRAPH = """g (float[1,6,8,8] x) => (float[1,16,8,8] y) {
  c = Conv (x, w1, b1)  t = Relu (c)  y = Conv (t, w2) }"""

CLIPPED = GRAPH.replace("Relu (c)", "Clip (c, zero, six)").replace(
    "{", "<float zero = {0.0}, float six = {6.0}> {", 1
)


def model(spread: float, graph: str = GRAPH, tuned: float = 0.0) -> onnx.ModelProto:
    """Two layers; the channels between them differ in size by up to 2^spread, undone by the second."""
    rng = np.random.default_rng(0)
    size = np.exp2(np.linspace(0, spread, 16)).astype(np.float32)
    arrays = {
        "w1": rng.standard_normal((16, 6, 1, 1)) * size[:, None, None, None],
        "b1": rng.standard_normal(16) * size,
        "w2": rng.standard_normal((16, 16, 1, 1)) / size[:, None, None],
    }
    arrays = {k: v * (1 + tuned * rng.standard_normal(v.shape)) for k, v in arrays.items()}
    return text_model(graph, **{k: v.astype(np.float32) for k, v in arrays.items()})


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 6, 8, 8)).astype(np.float32)} for _ in range(16)]


def record(result: Any, name: str = "fold-scales") -> dict[str, Any]:
    return next(p for p in result.report.data["passes"] if p["name"] == name)


@pytest.fixture(scope="module")
def found(
    feeds: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> qcompile.CompileResult:
    folder = tmp_path_factory.mktemp("evened")
    onnx.save(model(6), folder / "a.onnx")
    return qcompile.compile(folder / "a.onnx", calibration=feeds, output=folder / "a", **QUICK)


def test_uneven_channels_are_evened_and_the_lock_replays_it(
    feeds: list[dict[str, Any]], found: qcompile.CompileResult, tmp_path: Path
) -> None:
    one = found.path.with_name("a.onnx")
    plain = qcompile.compile(
        one, calibration=feeds, output=tmp_path / "p", **{**QUICK, "techniques": "none"}
    )
    assert found.report.sqnr_db > plain.report.sqnr_db + 6
    assert record(found)["changed"] == 1
    assert "1 tensors scaled" in record(found)["notes"][0]["text"]
    locked = json.loads((found.path / "qcompile.lock").read_text())
    assert len(locked["factors"]["c"]) == 16
    told = [(note["where"], note["text"]) for note in record(found)["notes"]]
    assert [where for where, text in told if "channels are divided by 2^" in text] == ["c", "t"]
    again = qcompile.compile(
        one, calibration=feeds, output=tmp_path / "a", locked=True,
        lock=found.path / "qcompile.lock", **QUICK,
    )  # fmt: skip
    assert (again.path / "model.onnx").read_bytes() == (found.path / "model.onnx").read_bytes()
    reused = qcompile.compile(
        one, calibration=feeds, output=tmp_path / "r", ranges=found.path / "ranges.npz", **QUICK
    )
    renewed = json.loads((reused.path / "qcompile.lock").read_text())
    assert renewed["factors"] == locked["factors"]
    feed = feeds[0]
    have = run(onnx.load(found.path / "model.onnx"), feed)[0]
    np.testing.assert_allclose(have, run(onnx.load(one), feed)[0], atol=1.0)


def test_even_channels_stay(feeds: list[dict[str, Any]], tmp_path: Path) -> None:
    found = qcompile.compile(model(0), calibration=feeds, output=tmp_path / "o", **QUICK)
    assert record(found)["changed"] == 0
    assert "factors" not in json.loads((found.path / "qcompile.lock").read_text())


def test_what_the_output_does_not_gain_by_is_undone(
    feeds: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompile.even_out.GAIN_DB", 99.0)
    found = qcompile.compile(model(6), calibration=feeds, output=tmp_path / "o", **QUICK)
    assert record(found)["changed"] == 0
    assert "undone" in record(found)["notes"][0]["text"]


def test_portable_targets_profit_too(feeds: list[dict[str, Any]], tmp_path: Path) -> None:
    options = {**QUICK, "target": "tensorrt-int8"}
    found = qcompile.compile(model(6), calibration=feeds, output=tmp_path / "o", **options)
    assert record(found)["changed"] == 1


def test_a_retrained_checkpoint_takes_the_factors_over(
    feeds: list[dict[str, Any]], found: qcompile.CompileResult, tmp_path: Path
) -> None:
    onnx.save(model(6, tuned=0.05), tmp_path / "b.onnx")
    later = qcompile.compile(
        tmp_path / "b.onnx", calibration=feeds, output=tmp_path / "b", base=found.path, **QUICK
    )
    locks = [json.loads((one.path / "qcompile.lock").read_text()) for one in (found, later)]
    assert locks[0]["factors"] == locks[1]["factors"]
    assert "1 of 1 tensors scaled as in a" in record(later)["notes"][0]["text"]
    assert later.report.sqnr_db > found.report.sqnr_db - 3
    moved = later.report.data["moved"]
    assert all(row["by"] < 0.2 for row in (*moved["weights"], *moved["ranges"]))
    assert moved["factors"] == {"carried": ["c"], "left": []}


def test_factors_that_a_clip_forbids_now_stay_behind(
    feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    prepared = {
        name: prepare(
            model(6, graph), get_target("ort-int8"), make_options(calibration=feeds, **QUICK)
        )
        for name, graph in (("plain", GRAPH), ("clipped", CLIPPED))
    }
    exponents = {"c": tuple(range(-8, 8))}
    assert fitting_factors(prepared["plain"], exponents) == (exponents, [])
    kept, notes = fitting_factors(prepared["clipped"], exponents)
    assert kept == {} and notes[0].where == "c"
    assert "cannot be scaled" in notes[0].text or "a Clip may cut off" in notes[0].text
    with pytest.raises(PassError, match="compile again without the lock"):
        with_factors(prepared["clipped"], exponents)
    kept, notes = fitting_factors(prepared["plain"], {"c": (1, 2), "nowhere": (1, 2)})
    assert kept == {} and "it has 16 channels" in notes[0].text


def test_scaled_tensors_are_explained_and_diagnosed_as_they_are(
    feeds: list[dict[str, Any]],
    found: qcompile.CompileResult,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limits = Lock.read(found.path / "qcompile.lock").ranges["t"]
    row = explain_layer(open_subject(found.path), "n_t")
    seen = next(t["range"] for t in row["tensors"] if t["name"] == "t")
    assert (seen["low"], seen["high"]) == (float(limits.low), float(limits.high))
    assert any("'t': its channels are divided by 2^" in note["text"] for note in row["notes"])
    np.savez(tmp_path / "x.npz", x=np.concatenate([feed["x"] for feed in feeds]))
    capsys.readouterr()
    argv = [
        "diagnose",
        found.path,
        found.path.with_name("a.onnx"),
        "-c",
        tmp_path / "x.npz",
        "--json",
    ]
    assert main([str(a) for a in argv]) == 0
    told = json.loads(capsys.readouterr().out)
    # with the unscaled model beside scaled ranges every tensor would be clipped to nothing
    assert told["likely"] is None and told["all_integer"] < 0.01


BERT = """g (float[1,32,16] x) => (float[1,32,16] y) {
  n = LayerNormalization (x, gain, shift)  q = MatMul (n, w1)  r = Relu (q)
  s = MatMul (r, w2)  y = Add (n, s) }"""


def bert(tuned: float = 0.0) -> onnx.ModelProto:
    """A normalization with two loud channels, read by a product that hardly counts on them, and a sum."""
    rng = np.random.default_rng(0)
    gain = np.ones(16)
    gain[[3, 9]] = 60.0
    w1 = rng.standard_normal((16, 32))
    w1[[3, 9]] /= 60.0
    arrays = {"gain": gain, "shift": np.zeros(16), "w1": w1, "w2": rng.standard_normal((32, 16))}
    arrays["w2"] = arrays["w2"] * (1 + tuned * rng.standard_normal((32, 16)))
    return text_model(BERT, **{k: v.astype(np.float32) for k, v in arrays.items()})


def test_what_no_layer_takes_up_is_divided_where_that_pays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    rows = [{"x": rng.standard_normal((1, 32, 16)).astype(np.float32)} for _ in range(16)]
    given = {**QUICK, "techniques": "smooth-branches", "calibration": rows}
    onnx.save(bert(), tmp_path / "a.onnx")
    onnx.save(bert(0.02), tmp_path / "b.onnx")

    def as_fast(slower: float) -> Any:
        return lambda _, before, after: (
            replace(before, speedup=2.0),
            replace(after, speedup=2.0 * slower),
        )

    monkeypatch.setattr("qcompile.even_out._Stage._timed", as_fast(0.3))
    dear = qcompile.compile(tmp_path / "a.onnx", output=tmp_path / "dear", **given)
    assert record(dear, "smooth-branches")["changed"] == 0
    assert "not worth their time" in record(dear, "smooth-branches")["notes"][0]["text"]
    monkeypatch.setattr("qcompile.even_out._Stage._timed", as_fast(0.99))
    found = qcompile.compile(tmp_path / "a.onnx", output=tmp_path / "a", **given)
    assert record(found, "smooth-branches")["changed"] == 1
    locked = Lock.read(found.path / "qcompile.lock")
    assert list(locked.factors) == ["n"]
    # the division is no layer: a plan holds for the model with and without it
    plain = {"techniques": "none", "plan": found.path / "plan.json", "calibration": rows}
    again = qcompile.compile(
        tmp_path / "a.onnx", output=tmp_path / "p", **{**QUICK, **plain, "effort": "fast"}
    )
    assert again.report.data["plan"]["how"] == "every layer is pinned by the user"
    later = qcompile.compile(tmp_path / "b.onnx", output=tmp_path / "b", base=found.path, **given)
    assert later.report.data["moved"]["factors"] == {"carried": ["n"], "left": []}
