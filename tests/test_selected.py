"""Outputs whose rows a selection orders: judged by what it selects from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest

import qcompile
from qcompile.gate import judge
from qcompile.recheck import recheck
from qcompile.result import CompileResult
from qcompile.rollout import Rollout
from qcompile.selected import NONE_SELECTED, expose, exposed_pair, find_selected, hide
from qcompile.subject import open_subject
from tests.passes.qdq_models import text_model

TOP = """
    s = ReduceMax <keepdims = 0> (scores, last)
    values, index = TopK (s, k)
    places = Unsqueeze (index, last)
    wide = Expand (places, four)
"""
BOXES = TOP + "y = GatherElements <axis = 1> (boxes, wide)"


def model(body: str, output: str) -> oir.Model:
    text = f"""g (float[1, 9, 4] x, float[1, 9, 3] z) => ({output})
    <int64[1] last = {{-1}}, int64[1] k = {{5}}, int64[3] four = {{1, 5, 4}}> {{
        boxes = Relu (x)  scores = Sigmoid (z)
        {body}
    }}"""
    return oir.from_proto(text_model(text, opset=18, w=np.eye(4, dtype=np.float32)))


@pytest.mark.parametrize(
    ("body", "output", "found", "before"),
    [
        (BOXES, "float[1, 5, 4] y", {"y": "TopK"}, ("s", "boxes")),
        (BOXES, "float[1, 5, 4] y, float[1, 9, 4] boxes", {"y": "TopK"}, ("s", "boxes")),
        (TOP, "float[1, 5] values, int64[1, 5] index", {}, ()),
        (BOXES + " u = MatMul (y, w)", "float[1, 5, 4] u", {}, ()),
        ("y = ArgMax <keepdims = 0> (scores)", "int64[9, 3] y", {}, ()),
        (
            "i = ArgMax <keepdims = 0> (scores)  y = Cast <to = 1> (i)",
            "float[9, 3] y",
            {"y": "ArgMax"},
            ("scores",),
        ),
        ("y = Relu (boxes)", "float[1, 9, 4] y", {}, ()),
    ],
)
def test_found(body: str, output: str, found: dict[str, str], before: tuple[str, ...]) -> None:
    told = find_selected(model(body, output))
    assert {name: text.split("(")[1][:-1] for name, text in told.outputs.items()} == found
    assert told.before == before


def test_what_is_exposed_can_be_hidden_again() -> None:
    made = model(BOXES, "float[1, 5, 4] y, float[1, 9, 4] boxes")
    expose(made, ("s", "boxes"))
    assert [v.name for v in made.graph.outputs] == ["y", "boxes", "s"]
    hide(made, ("s",))
    assert [v.name for v in made.graph.outputs] == ["y", "boxes"]


RNG = np.random.default_rng(1)
FEEDS = [{"image": RNG.standard_normal((1, 8, 24, 24)).astype(np.float32)} for _ in range(12)]
DETECTOR = """g (float[1, 8, 24, 24] image) => (float[1, 300, 4] y)
<int64[1] k = {300}, int64[1] last = {-1}, int64[3] whole = {1, 4, 576}, int64[3] row = {1, 576, 1},
 int64[2] flat = {1, 576}, int64[3] four = {1, 300, 4}> {
    a = Conv <pads = [1, 1, 1, 1]> (image, w0)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w1)
    d = Relu (c)
    e = Conv (d, wb)
    f = Reshape (e, whole)
    boxes = Transpose <perm = [0, 2, 1]> (f)
    h = Conv (d, ws)
    i = Reshape (h, flat)
    scores = Sigmoid (i)
    values, index = TopK (scores, k)
    places = Unsqueeze (index, last)
    wide = Expand (places, four)
    y = GatherElements <axis = 1> (boxes, wide)
}"""


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"w0": (16, 8, 3, 3), "w1": (16, 16, 3, 3), "wb": (4, 16, 1, 1), "ws": (1, 16, 1, 1)}
    weights = {n: (rng.standard_normal(s) * 0.2).astype(np.float32) for n, s in shapes.items()}
    path = tmp_path_factory.mktemp("detector") / "detector.onnx"
    onnx.save(text_model(DETECTOR, **weights), path)
    return path


@pytest.fixture(scope="module")
def built(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    output = tmp_path_factory.mktemp("built") / "out"
    options: dict[str, Any] = {"min_speedup": 0.01, "gate_time": "0.5s", "threads": 1}
    return qcompile.compile(
        detector, calibration=FEEDS, output=output, effort="fast", **options
    ).check()


def test_a_detector_is_judged_by_its_boxes_and_scores(detector: Path, built: CompileResult) -> None:
    data = built.report.data
    judged = {row["name"]: row["sqnr_db"] for row in data["gate"]["outputs"]}
    assert set(judged) == {"scores", "boxes"}
    assert min(judged.values()) > 20
    assert built.report.integer_mac_share == 1
    assert data["model"]["name"] == detector.name
    assert any(
        "'n_values' (TopK) selects what stands in 'y'" in text
        for text in data["calibration"]["findings"]
    )
    for name in ("model.onnx", "model.qdq.onnx"):
        written = onnx.load(built.path / name)
        assert [v.name for v in written.graph.output] == ["y"]
    # the rows themselves change places: as a whole they say nothing
    exact = ort.InferenceSession(detector).run(None, FEEDS[0])[0]
    found = built.open().run(None, FEEDS[0])[0]
    assert 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2)) < 15


def test_verify_and_check_judge_it_the_same_way(detector: Path, built: CompileResult) -> None:
    found = recheck(open_subject(built.path), detector, FEEDS, gate_time=0.5)
    assert found.gate is not None
    assert {output.name for output in found.gate.outputs} == {"scores", "boxes"}
    assert found.exit_code == 0, found.checks


def test_an_artifact_without_the_tensors_is_judged_by_its_rows(
    detector: Path, tmp_path: Path
) -> None:
    proto = onnx.load(detector)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = ["places_of" if name == "boxes" else name for name in names]
    onnx.save(proto, tmp_path / "other.onnx")
    pair = exposed_pair(detector, oir.load(detector), tmp_path / "other.onnx", tmp_path)
    assert pair == (detector, tmp_path / "other.onnx", NONE_SELECTED)


def test_steps_with_the_state_rolled_back_in_leave_selected_rows_out(tmp_path: Path) -> None:
    text = """g (float[1, 64] x, float[1, 64] h) => (float[1, 9] y, float[1, 64] hn)
    <int64[1] k = {9}> {
        s = Add (x, h)  n = Mul (s, noise)  t = Add (s, n)  hn = Tanh (t)
        values, index = TopK (t, k)  y = Cast <to = 1> (index)
    }"""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "float.onnx", tmp_path / "artifact.onnx"]
    for path, size in zip(paths, (0.0, 0.1), strict=True):
        noise = (rng.standard_normal((1, 64)) * size).astype(np.float32)
        onnx.save(text_model(text, noise=noise), path)
    zero = np.zeros((1, 64), np.float32)
    feeds = [{"x": rng.standard_normal((1, 64)).astype(np.float32), "h": zero} for _ in range(4)]
    found = [
        judge(*paths, feeds, rollout=Rollout({"hn": "h"}, 5), speed=False, selected=selected)
        for selected in (NONE_SELECTED, find_selected(oir.load(paths[0])))
    ]
    assert {check.where for check in found[0].failed if check.name == "accuracy"} == {"output 'y'"}
    assert not found[1].failed
    assert found[1].steps
