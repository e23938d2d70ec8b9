"""compare: outputs, inner tensors, the first bad node, and models that cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompile.cli import main

Capture = pytest.CaptureFixture[str]

CHAIN = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float[4] b = {1,1,1,1}, float[4] s = {SCALE}> {
  a = MatMul (x, w)
  c = Add (a, b)
  d = Mul (c, s)
  e = Tanh (d)
  f = MatMul (e, w)
  y = Add (f, b)
}
"""


def chain(path: Path, scale: str = "1,1,1,1") -> Path:
    proto = onnx.parser.parse_model(CHAIN.replace("SCALE", scale))
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.save(proto, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(4, 4)).astype(np.float32))
    return str(tmp_path / "data.npz")


def compared(capsys: Capture, *args: object) -> dict[str, Any]:
    assert main(["compare", *map(str, args), "--time", "0s", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_model_beside_itself_is_equal(tmp_path: Path, data: str, capsys: Capture) -> None:
    one = chain(tmp_path / "a.onnx")
    found = compared(capsys, one, one, "-c", data)
    assert found["outputs"][0]["max_abs_error"] == 0.0
    assert found["first_bad"] is None and found["bad_output"] is None
    assert [row["tensor"] for row in found["layers"]] == list("acdefy")
    assert all(row["sqnr_db"] == 200.0 for row in found["layers"])


def test_bisection_finds_the_node_that_was_spoilt(
    tmp_path: Path, data: str, capsys: Capture
) -> None:
    one, two = chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", "1,1,1,-9")
    for how in ("--no-layers", "--layers"):
        found = compared(capsys, one, two, "-c", data, how, "--min-sqnr", "25")
        assert found["bad_output"]["name"] == "y"
        assert found["first_bad"]["node"] == "node_d"
        assert found["first_bad"]["reads_db"] == 200.0 > found["first_bad"]["sqnr_db"]
    assert main(["compare", str(one), str(two), "-c", data, "--time", "0s"]) == 0
    assert "node_d (Mul): reads exact, writes" in capsys.readouterr().out


def test_an_artifact_beside_its_model(built: Path, capsys: Capture) -> None:
    found = compared(capsys, built / "net.onnx", built / "net.ort-int8", "-c", built / "data")
    assert found["outputs"][0]["sqnr_db"] > 10
    assert found["samples"] == 8 and found["layers"]
    assert found["bytes"][0] > 0


def test_an_artifacts_own_samples_are_used(built: Path, capsys: Capture) -> None:
    args = ["compare", str(built / "net.onnx"), str(built / "net.ort-int8")]
    assert main([*args, "--time", "500ms", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "stored in net.ort-int8/deploy/sample_in.npz" in said
    assert "speed:" in said and "size:" in said and "load:" in said


def test_random_data_are_said(tmp_path: Path, capsys: Capture) -> None:
    one = chain(tmp_path / "a.onnx")
    found = compared(capsys, one, one)
    assert found["random"] and "random data" in found["notes"][-1]


def test_other_names_are_matched_in_order(tmp_path: Path, data: str, capsys: Capture) -> None:
    one, two = chain(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    proto = onnx.load(one)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "pixels"
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "scores"
    onnx.save(proto, two)
    found = compared(capsys, one, two, "-c", data)
    assert found["outputs"][0]["max_abs_error"] == 0.0
    assert "inputs matched in order: x = pixels" in found["notes"]


def test_what_cannot_be_compared_is_refused(
    built: Path, tmp_path: Path, data: str, capsys: Capture
) -> None:
    one = chain(tmp_path / "a.onnx")
    assert main(["compare", str(one), str(tmp_path / "none.onnx")]) == 2
    assert "does not exist" in capsys.readouterr().err
    proto = onnx.load(one)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1]))
    onnx.save(proto, tmp_path / "b.onnx")
    assert main(["compare", str(one), str(tmp_path / "b.onnx"), "-c", data]) == 2
    assert "the inputs differ: x against x, z" in capsys.readouterr().err


def test_an_artifact_in_4_bit_floats_is_compared_by_what_its_arithmetic_gives(
    tmp_path: Path, capsys: Capture
) -> None:
    rng = np.random.default_rng(1)
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[16, 32] x) => (float[16, 48] y) { a = MatMul (x, w)  y = Relu (a) }"""
    )
    weight = rng.standard_normal((32, 48)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "a.onnx")
    for index in range(6):
        sample = rng.standard_normal((16, 32)).astype(np.float32)
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / f"{index}.npz", x=sample)
    data, out = str(tmp_path / "data"), tmp_path / "out"
    options = ["--target", "tensorrt-nvfp4", "--threads", "1", "--min-sqnr", "0", "-o", str(out)]
    assert main([str(tmp_path / "a.onnx"), "-c", data, *options]) == 0
    capsys.readouterr()
    found = compared(capsys, tmp_path / "a.onnx", out, "-c", data)
    assert found["outputs"][0]["sqnr_db"] > 5
    assert "a" in [row["tensor"] for row in found["layers"]]
