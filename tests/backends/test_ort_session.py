"""Opening and running sessions, the runtime's limits, and errors in one line."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.backends import ort
from qcompile.ir.errors import BackendMissingError, ModelError

ADD = onnx.parser.parse_model("""
<ir_version: 8, opset_import: ["" : 17]>
add (float[batch, 2] x, float[2] bias) => (float[batch, 2] y) { y = Add(x, bias) }
""")

BAD = onnx.parser.parse_model("""
<ir_version: 8, opset_import: ["" : 12]>
bad (int8[2] x) => (float[2] y) <float scale = {0.5}, int8 zero = {0}> {
    [the_node] y = DequantizeLinear <axis = 0> (x, scale, zero)
}
""")


@pytest.fixture
def add(tmp_path: Path) -> Path:
    path = tmp_path / "add.onnx"
    onnx.save(ADD, path)
    return path


def fake_builds(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    def version(name: str) -> str:
        if name in installed:
            return "1.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_one_build_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_builds(monkeypatch, "onnxruntime-gpu")
    ort.check_runtime()


def test_two_builds_name_both_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_builds(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(BackendMissingError) as e:
        ort.check_runtime()
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(e.value)
    assert "`pip install onnxruntime-gpu`" in str(e.value)


def test_none_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_builds(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendMissingError, match="pip install onnxruntime") as e:
        ort.check_runtime()
    assert e.value.exit_code == 4


def test_a_build_without_metadata_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_builds(monkeypatch)
    ort.check_runtime()


def test_run_gives_outputs_by_name(add: Path) -> None:
    session = ort.open_session(add, threads=1)
    feed = {"x": np.ones((3, 2), np.float32), "bias": np.array([1, 2], np.float32)}
    np.testing.assert_array_equal(session.run(feed)["y"], [[2, 3]] * 3)
    assert session.inputs[0] == ort.Port("x", "tensor(float)", ("batch", 2))
    assert session.inputs[0].dtype == np.float32
    assert [port.name for port in session.outputs] == ["y"]


def test_bytes_open_too() -> None:
    assert ort.open_session(ADD.SerializeToString(), threads=1).outputs[0].name == "y"


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx' is no file"):
        ort.open_session(tmp_path / "gone.onnx")


def test_refused_model_names_node_first() -> None:
    with pytest.raises(
        ModelError, match=r"refuses it: node 'the_node' \(DequantizeLinear\): Unrec"
    ):
        ort.open_session(BAD.SerializeToString(), threads=1)


def test_no_onnx_at_all(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("hello")
    with pytest.raises(ModelError, match="refuses it"):
        ort.open_session(path)


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"x": np.ones((3, 2), np.float64), "bias": np.ones(2, np.float32)},
        {"x": np.ones((3, 2, 1), np.float32), "bias": np.ones(2, np.float32)},
    ],
)
def test_wrong_feed_is_a_model_error(add: Path, feed: dict[str, np.ndarray]) -> None:
    with pytest.raises(ModelError, match="while running"):
        ort.open_session(add, threads=1).run(feed)


def test_missing_custom_ops_are_said(add: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="custom operators"):
        ort.open_session(add, custom_ops=tmp_path / "ops.so")
    (tmp_path / "ops.so").write_text("no library")
    with pytest.raises(ModelError, match="cannot be loaded"):
        ort.open_session(add, custom_ops=tmp_path / "ops.so")


def test_limits_are_what_opens() -> None:
    def opens(opset: int, ir: int) -> bool:
        model = onnx.parser.parse_model(
            f'<ir_version: {ir}, opset_import: ["" : {opset}]> '
            "m (float[1] x) => (float[1] y) { y = Identity(x) }"
        )
        try:
            ort.open_session(model.SerializeToString(), threads=1)
        except ModelError:
            return False
        return True

    assert opens(ort.max_opset(), 8) and not opens(ort.max_opset() + 1, 8)
    assert opens(13, ort.max_ir_version()) and not opens(13, ort.max_ir_version() + 1)


def test_one_line_drops_paths_and_lists() -> None:
    text = (
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for\n"
        "ConvInteger(10) node with name 'conv'"
    )
    assert ort.one_line(text) == (
        "Could not find an implementation for ConvInteger(10) node with name 'conv'"
    )
