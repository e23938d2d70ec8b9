"""What an interrupted compile had finished is taken over exactly, and by the same compile alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompile
from qcompile.checkpoint import claim, progress_folder
from qcompile.ir.errors import OptionError
from qcompile.reporter import Silent
from qcompile.unfinished import Unfinished

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[1,3,8,8] image) => (float[1,8,8,8] y) {
  c = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
  r = Relu (c)
  y = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
}
"""


class Told(Silent):
    """Keeps notes; interrupts at a stage."""

    def __init__(self, at: str = "") -> None:
        self.at, self.notes = at, list[str]()

    def stage(self, name: str) -> None:
        if name == self.at:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "b1": (8,), "b2": (8,)}.items():
        array = rng.normal(size=shape).astype(np.float32)
        array *= np.exp2(np.arange(8)).reshape(8, *[1] * (len(shape) - 1)) if name == "w1" else 1
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(proto, tmp_path / "net.onnx")
    feeds = [{"image": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(16)]
    return {
        "model": tmp_path / "net.onnx",
        "calibration": feeds,
        "search_time": "1s",
        "gate_time": "300ms",
        "min_speedup": 0.01,
        "threads": 1,
        "techniques": "-refit,-range-choice",
    }


def test_what_was_done_is_taken_over_to_the_byte(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as met:
        qcompile.compile(**given, output=tmp_path / "b", progress=Told("plan"))
    folder, stages = met.value.kept  # type: ignore[attr-defined]
    assert folder == progress_folder(tmp_path / "b") and stages == [
        "calibrate",
        "even out",
        "learn",
    ]
    kept = {name: (folder / name).read_bytes() for name in ("ranges.npz", "learned.npz")}
    log = json.loads((folder / "even.json").read_text())["records"]
    told = Told()
    resumed = qcompile.compile(**given, output=tmp_path / "b", progress=told)
    assert [n.partition(":")[0] for n in told.notes if "interrupted" in n] == stages
    assert not folder.exists()
    for name, data in kept.items():
        assert (resumed.path / name).read_bytes() == data, name
    passes = [(p["name"], p["changed"]) for p in resumed.report.data["passes"]]
    assert passes[: len(log)] == [(p["name"], p["changed"]) for p in log]


def test_another_compile_takes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ".b.progress"
    claim(folder, {"model": "one", "option.effort": "default"})
    (folder / "even.json").write_text("{}")
    claim(folder, {"model": "one", "option.effort": "default"})
    assert (folder / "even.json").is_file()
    claim(folder, {"model": "two", "option.effort": "default"})
    assert not (folder / "even.json").exists()


def test_time_limits_make_no_other_compile(tmp_path: Path) -> None:
    folder = tmp_path / ".b.progress"
    Unfinished.begin(folder, {"model": "one", "option.gate_time": 5.0}, Silent())
    (folder / "even.json").write_text("{}")
    assert Unfinished.begin(folder, {"model": "one"}, Silent()).stages() == ["even out"]
    assert Unfinished.begin(folder, {"model": "one", "option.seed": 1}, Silent()).stages() == []


def test_an_error_that_would_come_again_keeps_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ".b.progress"
    with (
        pytest.raises(OptionError),
        Unfinished.begin(folder, {"model": "one"}, Silent()),
    ):
        raise OptionError("no such plan")
    assert not folder.exists()
