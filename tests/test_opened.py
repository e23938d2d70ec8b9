"""A model that stands open in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompile.backends.ort import open_session
from qcompile.ir.errors import ModelError
from qcompile.kept_outputs import kept_outputs
from qcompile.measure import measure_load, measure_pair
from qcompile.opened import OpenedModel

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
m (float[n, 4] x) => (float[n, 4] y, int64[2] z) { y = Relu (x) z = Shape (x) }"""

FEEDS = [{"x": np.full((n, 4), n - 2.5, "f")} for n in (1, 2, 3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def opened(path: Path) -> Iterator[OpenedModel]:
    found = OpenedModel(path, threads=1)
    yield found
    found.close()


def test_it_tells_what_a_session_tells(opened: OpenedModel, path: Path, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"x": np.ones((1, 3), "f")}
    opened.wait()
    left = opened.try_out({tmp_path / "right": FEEDS[0], tmp_path / "wrong": wrong}, 1000)
    assert (tmp_path / "right").is_dir() and not (tmp_path / "wrong").exists()
    assert left == 1000 - 32
    session = open_session(path, threads=1)
    assert (opened.inputs, opened.outputs) == (session.inputs, session.outputs)
    alone = measure_load(path, [FEEDS[0], wrong], threads=1)
    assert opened.load.errors[0] is None and opened.load.errors == alone.errors
    assert opened.load.load_ms > 0 and opened.load.first_ms is not None


def test_outputs_lie_in_files(opened: OpenedModel, path: Path, tmp_path: Path) -> None:
    opened.wait()
    places = {tmp_path / str(i): feed for i, feed in enumerate(FEEDS)}
    left = opened.keep_outputs(places, 10_000)
    session = open_session(path, threads=1)
    for place, feed in places.items():
        for found, wanted in zip(
            kept_outputs(place, range(2)), session.run(feed).values(), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)
    assert left == 10_000 - (1 + 2 + 3) * 16 - 3 * 16
    more = {tmp_path / "more": FEEDS[0]}
    assert opened.keep_outputs(more, 16) == 16, "no room for 32 bytes"
    assert not (tmp_path / "more").exists()


def test_a_refused_feed_ends_nothing(opened: OpenedModel, tmp_path: Path) -> None:
    opened.wait()
    with pytest.raises(ModelError, match="Got invalid dimensions"):
        opened.keep_outputs({tmp_path / "a": {"x": np.ones((1, 3), "f")}}, 1000)
    assert opened.child.alive
    opened.keep_outputs({tmp_path / "b": FEEDS[0]}, 1000)
    assert (tmp_path / "b").is_dir()


def test_it_is_timed_where_it_stands(
    opened: OpenedModel, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.wait()

    def none_new(*_: Any) -> None:
        raise AssertionError("another process was started")

    monkeypatch.setattr("qcompile.measure.run_child", none_new)
    found = measure_pair(
        path, path, FEEDS[:1], threads=1, budget_s=0.2, load=False, process=opened.child
    )
    assert found.groups >= 3 and 0.3 < found.speedup("artifact").value < 3


def test_what_cannot_be_opened_is_told_when_it_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    opened = OpenedModel(tmp_path / "bad.onnx")
    try:
        with pytest.raises(ModelError, match="refuses it"):
            opened.wait()
    finally:
        opened.close()
    assert not opened.child.alive


def test_outputs_that_cannot_be_stored_end_nothing(opened: OpenedModel, tmp_path: Path) -> None:
    opened.wait()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ModelError, match="Not a directory"):
        opened.keep_outputs({tmp_path / "file" / "a": FEEDS[0]}, 1000)
    assert opened.child.alive
