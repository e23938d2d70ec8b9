"""A tiny model and one artifact of it, compiled once for all commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import qcompile

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,8,8] image) => (float[N,5] scores) <float[8,3,3,3] w1, float[8] b1, float[8,5] w2> {
  c = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
  r = Relu (c)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  scores = MatMul (f, w2)
}
"""


def write_model(path: Path, seed: int = 0) -> Path:
    """The network with random weights, its nodes named as their outputs."""
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(seed)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 5)}
    del proto.graph.initializer[:]
    for name, shape in shapes.items():
        array = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}/{node.op_type}"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.onnx, data/ and the delivered artifact net.ort-int8/."""
    folder = tmp_path_factory.mktemp("built")
    model = write_model(folder / "net.onnx")
    (folder / "data").mkdir()
    rng = np.random.default_rng(1)
    for i in range(8):
        image = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
        np.savez(folder / "data" / f"{i}.npz", image=image)
    qcompile.compile(
        model,
        calibration=folder / "data",
        effort="fast",
        gate_time="1s",
        search_time="5s",
        min_speedup=0.01,
        threads=1,
    ).check()
    return folder
