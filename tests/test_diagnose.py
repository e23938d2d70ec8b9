"""Models broken on purpose: the right place and the right cause are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import qcompile
from qcompile.causes import OUTLYING, UNLIKE_DATA, Cause
from qcompile.cli import main
from qcompile.diagnose import Finding, _likely

QUICK: dict[str, Any] = {"min_speedup": 0.01, "gate_time": "1s", "effort": "fast", "threads": 1}

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 4, 12, 12] image) => (float[1, 8] y) {
    [first] a = Conv<pads = [1, 1, 1, 1]>(image, w1)
    b = Relu(a)
    [second] c = Conv<pads = [1, 1, 1, 1]>(b, w2)
    d = Relu(c)
    [third] e = Conv<pads = [1, 1, 1, 1]>(d, w3)
    f = Relu(e)
    [pool] p = GlobalAveragePool(f)
    [flat] q = Flatten(p)
    [head] y = Gemm(q, w4)
}"""


def net(path: Path, *, broken: bool = False, text: str = NET) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 4, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "w4": (16, 8)}
    weights = {n: rng.normal(0, 0.15, s).astype(np.float32) for n, s in shapes.items()}
    if broken:
        weights["w2"][5] = np.abs(weights["w2"][5]) * 1e4
        weights["w3"][:, 5] *= 1e-4  # what follows has learned to live with it
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.save(model, path)
    return path


def images(path: Path, scale: float = 1.0) -> Path:
    rng = np.random.default_rng(1)
    np.savez(path, image=scale * rng.random((16, 4, 12, 12), np.float32))
    return path


def diagnosed(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["diagnose", *map(str, argv), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_one_weight_channel_times_ten_thousand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = net(tmp_path / "net.onnx", broken=True), images(tmp_path / "data.npz")
    qcompile.compile(model, calibration=str(data), output=tmp_path / "out", **QUICK)
    found = diagnosed(capsys, tmp_path / "out", model, "-c", data)
    assert found["likely"]["cause"] == "outlier channel"
    assert found["likely"]["blamed"] in ("second", "Relu:d")
    assert "channel 5" in found["likely"]["evidence"]
    assert found["first"]["node"] in ("second", "Relu:d")
    worst = found["ranked"][0]
    assert worst["node"] in ("second", "third") and worst["cause"] == "outlier channel"
    assert worst["error_db"] < 20 and worst["remedy"]
    assert main(["diagnose", str(tmp_path / "out"), str(model), "-c", str(data)]) == 0
    text = capsys.readouterr().out
    assert "MOST LIKELY: outlier channel" in text and "tried: " in text


@pytest.mark.parametrize(
    ("gain", "expected"), [(1.2e4, "broken"), (500.0, "costly"), (0.0, "costly")]
)
def test_a_broken_channel_comes_before_what_costs_most(gain: float, expected: str) -> None:
    def finding(name: str, share: float, gain: float = 0.0) -> Finding:
        return Finding(name, "Conv", share, Cause(OUTLYING, name, name, "", 0.1, 3, gain), ())

    costly = finding("costly", 0.5)
    broken = finding("broken", 0.0, gain).cause
    found = _likely([], broken, None, [costly])
    assert found is not None and found.node == expected
    unlike = Cause(UNLIKE_DATA, "", "image", "", 0.1)
    assert _likely([unlike], broken, None, [costly]) is unlike


RESIDUAL = NET.replace(
    "[third] e = Conv<pads = [1, 1, 1, 1]>(d, w3)",
    "[sum] s = Add(c, b)  [third] e = Conv<pads = [1, 1, 1, 1]>(s, w3)",
).replace("    d = Relu(c)\n", "")


def test_an_outlier_is_followed_through_a_sum_to_the_layer_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = (
        net(tmp_path / "net.onnx", broken=True, text=RESIDUAL),
        images(tmp_path / "data.npz"),
    )
    qcompile.compile(model, calibration=str(data), output=tmp_path / "out", **QUICK)
    likely = diagnosed(capsys, tmp_path / "out", model, "-c", data)["likely"]
    assert (likely["cause"], likely["blamed"]) == ("outlier channel", "second")
    assert "channel 5" in likely["evidence"]
    assert "whose weights of that channel reach" in likely["evidence"]


def test_calibration_in_the_wrong_colour_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = net(tmp_path / "net.onnx")
    right, wrong = images(tmp_path / "right.npz"), images(tmp_path / "wrong.npz", 255.0)
    qcompile.compile(model, calibration=str(wrong), output=tmp_path / "out", **QUICK)
    # the float model lies beside the folder, so it need not be named
    found = diagnosed(capsys, tmp_path / "out", "-c", right)
    assert found["likely"]["cause"] == "calibration data unlike the input"
    assert found["likely"]["tensor"] == "image" and found["likely"]["blamed"] == ""
    assert "these samples hold" in found["likely"]["evidence"]
    assert found["first"]["tensor"] == "image"
    assert "--preprocess" in found["likely"]["remedy"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    model, data = net(folder / "net.onnx"), images(folder / "data.npz")
    qcompile.compile(model, calibration=str(data), output=folder / "out", **QUICK)
    return folder


def test_a_sound_artifact_has_no_likely_cause(
    sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = diagnosed(capsys, sound / "out")  # on its own samples
    assert found["likely"] is None
    assert all(row["cause"] == "8 bits are too coarse" for row in found["ranked"])


def test_another_model_is_refused(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = net(tmp_path / "other.onnx", broken=True)
    assert main(["diagnose", str(sound / "out"), str(other)]) == 2
    assert "was not compiled from" in capsys.readouterr().err
    (sound / "net.onnx").unlink()
    assert main(["diagnose", str(sound / "out")]) == 2
    assert "is not beside it; give it" in capsys.readouterr().err
