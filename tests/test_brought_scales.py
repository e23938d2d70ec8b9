"""Compiling models that come quantized: their scales are in the artifact, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import qcompile

QUICK: dict[str, Any] = {"min_speedup": 0.01, "gate_time": "1s", "effort": "fast", "threads": 1}
RNG = np.random.default_rng(3)

# as TensorFlow exporters write it: float weights behind Q and DQ for each channel, signed activations
FULL = """<ir_version: 8, opset_import: ["" : 13]>
g (float[1, 16, 12, 12] x) => (float[1, 16, 6, 6] y)
<float sx = {0.0234375}, int8 zx = {-7}, float sa = {0.0513}, int8 za = {-128}, int8 zw = {0}> {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    wq = QuantizeLinear<axis = 0>(w, sw, zeros)
    wd = DequantizeLinear<axis = 0>(wq, sw, zeros)
    bd = DequantizeLinear<axis = 0>(b, sb)
    c = Conv<pads = [1, 1, 1, 1]>(xd, wd, bd)
    r = Relu(c)
    rq = QuantizeLinear(r, sa, za)
    rd = DequantizeLinear(rq, sa, za)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(rd)
    vd = DequantizeLinear<axis = 0>(v, sv)
    y = Conv<pads = [1, 1, 1, 1]>(p, vd)
}"""


def arrays() -> dict[str, np.ndarray]:
    w = RNG.normal(0, 0.2, (16, 16, 3, 3)).astype(np.float32)
    sw = (np.abs(w).max(axis=(1, 2, 3)) / 120).astype(np.float32)
    v = RNG.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    sv = RNG.uniform(0.001, 0.003, 16).astype(np.float32)
    b = RNG.integers(-3000, 3000, 16).astype(np.int32)
    sb = (np.float32(0.0234375) * sw).astype(np.float32)
    return {"w": w, "sw": sw, "zeros": np.zeros(16, np.int8), "v": v, "sv": sv, "b": b, "sb": sb}


def model(text: str, path: Path, **constants: np.ndarray) -> Path:
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    onnx.save(made, path)
    return path


def build(path: Path, out: Path) -> Any:
    feeds = [{"x": RNG.normal(0, 1, (1, 16, 12, 12)).astype(np.float32)} for _ in range(12)]
    return qcompile.compile(path, calibration=feeds, output=out, **QUICK)


def constants(path: Path) -> dict[bytes, str]:
    """Bytes of every constant of a file -> its name."""
    graph = onnx.load(path).graph
    return {numpy_helper.to_array(t).tobytes(): t.name for t in graph.initializer}


def test_scales_and_integers_are_in_both_files(tmp_path: Path) -> None:
    given = arrays()
    result = build(model(FULL, tmp_path / "full.onnx", **given), tmp_path / "out")
    assert result.check().verdict == "delivered"
    assert result.report.sqnr_db > 30  # y alone has a range of its own
    for name in ("model.qdq.onnx", "model.onnx"):
        held = constants(tmp_path / "out" / name)
        for wanted in ("sw", "sv", "b"):
            assert given[wanted].tobytes() in held, (name, wanted)
        for scale in (0.0234375, 0.0513):
            assert np.float32(scale).tobytes() in held, (name, scale)
    held = constants(tmp_path / "out" / "model.qdq.onnx")
    assert given["v"].tobytes() in held
    text = " ".join(result.report.data["calibration"]["findings"])
    assert "the model's own scales are kept: 2 of activations, 2 of weights" in text
    assert result.report.data["model"]["name"] == "full.onnx"


HALF = """<ir_version: 8, opset_import: ["" : 13]>
g (float[1, 16, 12, 12] x) => (float[1, 16, 12, 12] y) <float sx = {0.0234375}, uint8 zx = {121}> {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    wd = DequantizeLinear<axis = 0>(v, sv)
    c = Conv<pads = [1, 1, 1, 1]>(xd, wd, bias)
    r = Relu(c)
    y = Conv<pads = [1, 1, 1, 1]>(r, u)
}"""


# as PyTorch's own exporter (dynamo) writes fake quantization: float weights behind Q and DQ with int8
# zero points per channel, "axis" on scales that are one number, ReduceMean with axes as an input
DYNAMO = """<ir_version: 10, opset_import: ["" : 20]>
g (float[1, 16, 12, 12] x) => (float[1, 10] y)
<float sx = {0.0234375}, uint8 zx = {121}, float sa = {0.0513}, uint8 za = {0}, int64[2] axes = {2, 3}> {
    xq = QuantizeLinear<axis = 1>(x, sx, zx)
    xd = DequantizeLinear<axis = 1>(xq, sx, zx)
    wq = QuantizeLinear<axis = 0>(w, sw, zeros)
    wd = DequantizeLinear<axis = 0>(wq, sw, zeros)
    c = Conv<group = 1, pads = [1, 1, 1, 1], auto_pad = "NOTSET", strides = [1, 1]>(xd, wd, bias)
    r = Relu(c)
    rq = QuantizeLinear<axis = 1>(r, sa, za)
    rd = DequantizeLinear<axis = 1>(rq, sa, za)
    m = ReduceMean<noop_with_empty_axes = 0, keepdims = 0>(rd, axes)
    fq = QuantizeLinear<axis = 0>(f, sf, zf)
    fd = DequantizeLinear<axis = 0>(fq, sf, zf)
    y = Gemm<beta = 1.0, transB = 1>(m, fd, fb)
}"""


def test_what_pytorch_exports_keeps_its_scales(tmp_path: Path) -> None:
    given = {k: v for k, v in arrays().items() if k in ("w", "sw", "zeros")}
    given |= {"f": RNG.normal(0, 0.2, (10, 16)).astype(np.float32), "zf": np.zeros(10, np.int8)}
    given["sf"] = (np.abs(given["f"]).max(axis=1) / 127).astype(np.float32)
    given |= {n: RNG.normal(0, 0.1, k).astype(np.float32) for n, k in (("bias", 16), ("fb", 10))}
    result = build(model(DYNAMO, tmp_path / "dynamo.onnx", **given), tmp_path / "out")
    assert result.check().verdict == "delivered"
    assert {row["realised"] for row in result.report.data["layers"]} == {"int8"}
    for name in ("model.qdq.onnx", "model.onnx"):
        held = constants(tmp_path / "out" / name)
        wanted = [given["sw"], given["sf"], np.float32(0.0234375), np.float32(0.0513)]
        assert all(array.tobytes() in held for array in wanted), name


def test_what_is_missing_is_completed(tmp_path: Path) -> None:
    given = arrays()
    floats = {"bias": RNG.normal(size=16).astype(np.float32), "u": given["w"]}
    path = model(HALF, tmp_path / "half.onnx", v=given["v"], sv=given["sv"], **floats)
    result = build(path, tmp_path / "out")
    assert result.check().verdict == "delivered"
    realised = {layer["op_type"]: layer["realised"] for layer in result.report.data["layers"]}
    assert realised["Conv"] == "int8"
    graph = onnx.load(tmp_path / "out" / "model.qdq.onnx").graph
    assert sum(n.op_type == "QuantizeLinear" for n in graph.node) == 3  # x, r and y
    held = constants(tmp_path / "out" / "model.onnx")
    assert given["sv"].tobytes() in held and np.float32(0.0234375).tobytes() in held


OPERATORS = """<ir_version: 8, opset_import: ["" : 13]>
g (float[1, 16, 12, 12] x) => (float[1, 16, 12, 12] y)
<float sx = {0.0234375}, uint8 zx = {121}, float sy = {0.05}, uint8 zy = {128}, int8 zw = {0}> {
    xq = QuantizeLinear(x, sx, zx)
    c = QLinearConv<pads = [1, 1, 1, 1]>(xq, sx, zx, v, sv, zeros, sy, zy)
    y = DequantizeLinear(c, sy, zy)
}"""


def test_integer_operators_stay_as_they_are(tmp_path: Path) -> None:
    given = arrays()
    kept = {k: given[k] for k in ("v", "sv", "zeros")}
    result = build(model(OPERATORS, tmp_path / "ops.onnx", **kept), tmp_path / "out")
    out = tmp_path / "out"
    place = out if (out / "model.onnx").exists() else out / "rejected"
    graph = onnx.load(place / "model.onnx").graph
    assert [n.op_type for n in graph.node] == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
    notes = " ".join(note["text"] for note in result.report.data["notes"])
    assert "integer operators in the model are kept as they are: 1 QLinearConv" in notes
