"""The samples of a compile: made up in the shapes asked for, and the shapes that must be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompile.backends.tables import get_target
from qcompile.ir.errors import OptionError
from qcompile.job import Data, gather
from qcompile.options import Options
from qcompile.prepare import prepare

TWO = "float[n, 4, h, w] x, float[n, h] mask"


def data(tmp_path: Path, shapes: str | tuple[str, ...] = (), **more: Any) -> Data:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g ({TWO}) => (float[n, h] y, float z)
        {{ m = ReduceSum(x) z = Identity(m) y = Relu(mask) }}"""
    )
    onnx.save(model, tmp_path / "model.onnx")
    target = get_target("ort-int8")
    asked = (shapes,) if isinstance(shapes, str) else shapes
    options = Options(shapes=asked, **more)
    return gather(prepare(tmp_path / "model.onnx", target, options), options)


def dims(feed: Any) -> list[tuple[int, ...]]:
    return [feed[name].shape for name in ("x", "mask")]


def test_made_up_samples_have_the_typical_shape(tmp_path: Path) -> None:
    found = data(tmp_path, "x=1x4x8x8:2x4x16x16:2x4x32x32")
    assert dims(found.calibration.load(0)) == [(2, 4, 16, 16), (2, 16)]
    assert [dims(feed) for feed in found.extremes()] == [
        [(1, 4, 8, 8), (1, 8)],
        [(2, 4, 32, 32), (2, 32)],
    ]


def test_real_samples_keep_their_shapes_and_the_asked_ones_are_tried_too(tmp_path: Path) -> None:
    feeds = [
        {"x": np.ones((1, 4, n, 8), np.float32), "mask": np.ones((1, n), np.float32)}
        for n in (8, 9, 12, 10)
    ]
    found = data(tmp_path, "x=1x4x4x4:1x4x8x8:1x4x99x8", calibration=feeds)
    rows = [feed["mask"].shape[1] for feed in found.extremes()]
    assert rows[-2:] == [4, 99]
    assert {8, 9, 12, 10}.issuperset(rows[:-2])
    plain = data(tmp_path, calibration=feeds)
    assert {4, 99}.isdisjoint(feed["mask"].shape[1] for feed in plain.extremes())


def test_one_shape_for_all_needs_no_further_trial(tmp_path: Path) -> None:
    assert data(tmp_path, "x=1x4x8x8").extremes() == []


def test_a_wrong_name_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no input 'image'; it has x, mask"):
        data(tmp_path, "image=1x4x8x8")


def test_constants_that_nothing_reads_are_left_behind(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y)
        <float[1] two = {2}, float[1] half = {0.5}, float[1] old = {7}>
        { factor = Mul(two, half) t = Mul(x, factor) y = Sigmoid(t) }"""
    )
    onnx.save(model, tmp_path / "model.onnx")
    prepared = prepare(tmp_path / "model.onnx", get_target("ort-int8"), Options())
    read = {v.name for n in prepared.model.graph for v in n.inputs if v is not None}
    assert set(prepared.model.graph.initializers) <= read
