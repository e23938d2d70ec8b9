"""A session that remembers what came out for the samples of the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from qcompile.backends.ort import Session, open_session
from qcompile.remembered import RememberedSession

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
m (float[n] x) => (float[n] y, float[n] z) { y = Relu (x) z = Neg (x) }"""


def test_known_samples_need_no_session(tmp_path: Path) -> None:
    data = onnx.parser.parse_model(MODEL).SerializeToString()
    opened: list[Session] = []

    def opens() -> Session:
        opened.append(open_session(data, threads=1))
        return opened[-1]

    known, other = {"x": np.array([-1.0, 2.0], "f")}, {"x": np.array([3.0], "f")}
    session = RememberedSession(opens, [known], tmp_path / "kept")
    assert [port.name for port in session.outputs] == ["y", "z"]
    first = session.run(known)
    session.release()
    again = session.run({"x": np.array([-1.0, 2.0], "f")}, ["z"])
    assert len(opened) == 1 and list(again) == ["z"]
    np.testing.assert_array_equal(first["z"], again["z"])
    np.testing.assert_array_equal(session.run(other)["z"], [-3.0])
    assert len(opened) == 2


def test_outputs_that_find_no_room_are_computed_again(tmp_path: Path) -> None:
    data = onnx.parser.parse_model(MODEL).SerializeToString()
    feed = {"x": np.ones(8, "f")}
    session = RememberedSession(lambda: open_session(data), [feed], tmp_path / "kept", most=63)
    np.testing.assert_array_equal(session.run(feed)["y"], feed["x"])
    assert not list((tmp_path / "kept").iterdir())
